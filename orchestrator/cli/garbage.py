"""Which checkpoints of a sweep nobody needs any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.store import SCRIPT_FOLDER, SweepStore
from orchestrator.store.index import Index
from orchestrator.store.lease import Lease
from sweeps.agenda import Agenda, Outcome, grid_chooser, is_done
from sweeps.spec import Sweep, Trial

LONGER = " (a longer horizon would start anew)"
OTHERWISE = " (under another rule it would start anew)"


@dataclass(frozen=True, slots=True)
class Garbage:
    """The checkpoints of one trial that can go, with what a user's script kept, and why."""

    key: str
    why: str
    files: int
    size_bytes: int


def find_garbage(sweep: Sweep, *, home: Path) -> list[Garbage]:
    """Return the checkpoints of ended trials, and of trials that the sweep as it is now would not run."""
    store = SweepStore(home, sweep.experiment)
    outcomes = Index.open(store).outcomes()
    wanted = _wanted_keys(sweep, outcomes)
    followed = [part.identity() for part in sweep.stoppers]
    garbage = []
    for key in sorted(store.keys()):
        folder = store.trials / key
        files = [*folder.glob("*.safetensors"), *(p for p in (folder / SCRIPT_FOLDER).rglob("*") if p.is_file())]
        outcome, in_plan = outcomes.get(key), wanted is None or key in wanted
        why = _why(outcome, in_plan=in_plan)
        if why is None and outcome is not None and outcome.stop is not None and outcome.stop.by in followed:
            why = f"stopped{OTHERWISE}"
        if files and why is not None:
            garbage.append(Garbage(key, why, len(files), sum(file.stat().st_size for file in files)))
    return garbage


def _why(outcome: Outcome | None, *, in_plan: bool) -> str | None:
    if outcome is not None and outcome.outcome in ("finished", "diverged"):
        longer = in_plan and outcome.trial and not is_done(Trial.from_json(outcome.trial), outcome)
        again = outcome.outcome == "finished" and outcome.trial.get("open_ended")
        return None if longer else f"{outcome.outcome}{LONGER if again else ''}"
    return None if in_plan else "not in the plan"


def _wanted_keys(sweep: Sweep, outcomes: dict[str, Outcome]) -> set[str] | None:
    """Return the keys of the plan; None where they are not known: the LRs of a search, or of a held-out check."""
    if sweep.search.name != "grid":
        return None
    agenda = Agenda(sweep, grid_chooser(sweep), outcomes)
    if sweep.validate is not None:
        from orchestrator.results import held_out_trials, of_agenda, study

        agenda.add(held_out_trials(sweep, study(sweep, of_agenda(agenda)), outcomes))
    return set(agenda.trials)


def drop(garbage: Sequence[Garbage], sweep: Sweep, *, home: Path) -> None:
    """Delete the checkpoints. Raises LeaseError while a driver runs the sweep."""
    store = SweepStore(home, sweep.experiment)
    lease = Lease.acquire(store.folder, holder="powersweep gc")
    try:
        for item in garbage:
            store.trial(item.key, fence=lease.fence).drop_checkpoints(script_too=True)
    finally:
        lease.release()
