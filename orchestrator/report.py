"""The files of a sweep's findings (law, curves, figures, page), in its folder and on its parent run.

They lie in the folder of the sweep's experiment; where that bears another name than the sweep, in
`findings/<sweep>/` there, as several sweeps may share an experiment.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from orchestrator.build import target_of
from orchestrator.config import Loaded
from orchestrator.results import Findings, agenda_of, fit, held_out_trials, law_files
from orchestrator.store import SweepStore
from orchestrator.tracking import Tracker
from sweeps import __version__
from sweeps.agenda import Agenda, Target
from sweeps.curves import Scalar, write_parquet
from sweeps.errors import ConfigError
from sweeps.laws.law import Law
from sweeps.report import Cost, LawReport, ReportData, write_report
from sweeps.spec import Sweep, content_key

STAMP_FILE = "report.stamp"  # what the report was made from, and its files: it is not made twice from the same
SHARED = "findings"  # in the folder of an experiment: the findings of sweeps of other names


def findings_folder(sweep: Sweep, store: SweepStore) -> Path:
    """Return where the files of a sweep's findings are."""
    return store.folder if sweep.name == sweep.experiment else store.folder / SHARED / sweep.name


def law_paths(name: str, sweeps: Path) -> list[Path]:
    """Return the laws of all sweeps of this name, by file, in the folder of all experiments."""
    folders = [sweeps / name, *(shared / name for shared in sorted(sweeps.glob(f"*/{SHARED}")))]
    return [path for folder in folders for path in sorted(folder.glob("law*.json"))]


def fitted_sweeps(sweeps: Path) -> set[str]:
    """Return the names of all sweeps that have a law, in the folder of all experiments."""
    return {path.parent.name for way in ("*", f"*/{SHARED}/*") for path in sweeps.glob(f"{way}/law*.json")}


def write_findings(
    loaded: Loaded, findings: Findings, *, agenda: Agenda, store: SweepStore, tracker: Tracker | None
) -> list[Path]:
    """Write the files of a sweep's findings and return their paths; leaves them alone where nothing has changed.

    Args:
        loaded: the sweep.
        findings: its laws and checks.
        agenda: its trials and outcomes.
        store: its folder.
        tracker: gets the files as artifacts of the parent run; None: the folder alone.
    """
    folder = findings_folder(loaded.sweep, store)
    stamp = _stamp(loaded, findings, agenda, tracker)
    kept = _made_before(folder, stamp)
    if kept:
        return kept
    (folder / STAMP_FILE).unlink(missing_ok=True)
    names = law_files(findings)
    findings = _with_marks(findings, {label: folder / name for label, name in names.items()})
    laws = {folder / names[label]: law for label, law in findings.laws.items() if law is not None}
    for old in set(folder.glob("law*.json")) - laws.keys():  # of axes the sweep had before
        old.unlink()
    for path, law in laws.items():
        law.save(path)
    curves = folder / "curves.parquet"
    used = {key: agenda.outcomes[key].curve for key in agenda.trials if key in agenda.outcomes}
    targets = targets_of(agenda)
    write_parquet(curves, used, about={key: _about(agenda, key, targets.get(key)) for key in used})
    pages = write_report(folder / "report", _report_data(loaded, findings, agenda, store, tracker))
    for old in set((folder / "report").glob("*-[0-9]*.png")) - set(pages):
        old.unlink()
    paths = [*laws, *pages]
    if tracker is not None:
        tracker.log_report([*paths, curves])
        tracker.describe("\n\n".join(f"`{line}`" for line in findings.lines()))  # code: a * is no emphasis then
    files = [*paths, curves]
    stamped = {"made_from": stamp, "files": [str(path.relative_to(folder)) for path in files]}
    (folder / STAMP_FILE).write_text(json.dumps(stamped))
    return files


def _with_marks(findings: Findings, paths: Mapping[str, Path]) -> Findings:
    """Return the findings, each law with the verdict that its file holds, if that is the same law and it has none."""
    laws = dict(findings.laws)
    for label, law in findings.laws.items():
        if law is not None and law.validation is None and paths[label].exists():
            with contextlib.suppress(ConfigError):  # a file that is no law any more is written anew
                old = Law.load(paths[label])
                if {**old.to_json(), "status": law.status, "validation": None} == law.to_json():
                    laws[label] = old
    return replace(findings, laws=laws)


def _made_before(folder: Path, stamp: str) -> list[Path]:
    """Return the files of a report made from the same, [] unless all of them are there."""
    try:
        stamped = json.loads((folder / STAMP_FILE).read_text())
    except (OSError, ValueError):
        return []
    if not isinstance(stamped, dict) or stamped["made_from"] != stamp:
        return []
    files = [folder / name for name in stamped["files"]]
    return files if all(path.exists() for path in files) else []


def write_folder(loaded: Loaded, *, home: Path, environ: Mapping[str, str]) -> list[Path]:
    """Write the files of what has ended so far into the sweep's folder, and return their paths."""
    store = SweepStore(home, loaded.sweep.experiment)
    findings = fit(loaded, home=home, environ=environ)
    agenda = agenda_of(loaded, store)
    agenda.add(held_out_trials(loaded.sweep, findings, agenda.outcomes))
    (findings_folder(loaded.sweep, store) / STAMP_FILE).unlink(missing_ok=True)
    return write_findings(loaded, findings, agenda=agenda, store=store, tracker=None)


def _stamp(loaded: Loaded, findings: Findings, agenda: Agenda, tracker: Tracker | None) -> str:
    """Return a hash of all that a report is made from."""
    return content_key(
        [
            __version__,
            loaded.yaml,
            {label: None if law is None else law.to_json() for label, law in findings.laws.items()},
            sorted((key, o.outcome, o.tokens, o.seconds) for key, o in agenda.outcomes.items()),
            None if tracker is None else [tracker.uri, tracker.experiment_id, tracker.parent_id],
        ]
    )


def targets_of(agenda: Agenda) -> dict[str, Target]:
    """Return the target of every trial that ended, by key, those without one left out."""
    found = {
        key: target_of(trial.workload, agenda.outcomes[key].curve, cwd=Path.cwd())
        for key, trial in agenda.trials.items()
        if key in agenda.outcomes and agenda.outcomes[key].outcome != "failed"
    }
    return {key: target for key, target in found.items() if target is not None}


def reached_lines(sweep: Sweep, targets: Iterable[Target]) -> list[str]:
    """Return how many trials reached their workload's target, and the first of them; [] where there is no target."""
    reached: dict[tuple[str, float], list[int | None]] = {}
    for target in targets:
        reached.setdefault((target.metric, target.value), []).append(target.reached_tokens)
    lines = []
    for (metric, value), tokens in sorted(reached.items()):
        found = [count for count in tokens if count is not None]
        count = f"{len(found):,}" if found else "none"
        line = f"{count} of {len(tokens):,} trials reached the target ({metric} {value:g})"
        first = f", the first after {min(found):,} {sweep.variants[0].size.unit}s" if found else ""
        lines.append(line + first)
    return lines


def _about(agenda: Agenda, key: str, target: Target | None) -> dict[str, Scalar]:
    trial = agenda.trials[key]
    return {
        "lr": trial.lr,
        "batch_tokens": trial.batch_tokens,
        "tokens": trial.tokens,
        "seed": trial.seed,
        "parameters": trial.parameters,
        "outcome": agenda.outcomes[key].outcome,
        "target_reached_tokens": None if target is None else target.reached_tokens,
    }


def _report_data(
    loaded: Loaded, findings: Findings, agenda: Agenda, store: SweepStore, tracker: Tracker | None
) -> ReportData:
    names = law_files(findings)
    first = loaded.sweep.variants[0]
    return ReportData(
        name=loaded.sweep.name,
        laws=tuple(
            LawReport(
                cells=findings.cells[label],
                law=law,
                refusal=findings.refusals.get(label),
                verdict=findings.verdicts.get(label),
                held_out=findings.held_out.get(label),
                label=label,
                file=names[label],
            )
            for label, law in findings.laws.items()
        ),
        curves={key: agenda.outcomes[key].curve for key in agenda.trials if key in agenda.outcomes},
        cost=_cost(agenda, store),
        recipe=loaded.yaml,
        fingerprint=content_key(loaded.sweep.recipe()),
        made_by=f"powersweep {__version__}",
        unit=first.size.unit,
        stopped=_stopped(agenda),
        targets=tuple(reached_lines(loaded.sweep, targets_of(agenda).values())),
        remarks=tuple([*agenda.refused, *_failed(loaded.sweep, agenda)]),
        tracking=None if tracker is None else tracker.uri,
    )


def _stopped(agenda: Agenda) -> tuple[dict[str, str], ...]:
    """Return which trials were stopped, when, by which rule, and what they were to end with against the best."""
    found = []
    for trial in sorted(agenda.trials.values(), key=lambda t: (t.batch_tokens, t.tokens, t.lr, t.seed, t.key)):
        outcome = agenda.outcomes.get(trial.key)
        if outcome is None or outcome.stop is None or outcome.outcome != "stopped":
            continue
        stop, said = outcome.stop, outcome.stop.forecast
        found.append(
            {
                "batch": f"{trial.batch_tokens:,}",
                "horizon": f"{trial.tokens:,}",
                **({"variant": trial.label} if trial.label else {}),
                "lr": f"{trial.lr:.3g}",
                "seed": str(trial.seed),
                "stopped at": f"{outcome.tokens:,}",
                "on the report at": f"{stop.report_tokens:,}",
                "by": str(stop.by["name"]),
                "forecast": "-" if said is None else f"{said.loss:.4f} ({said.low:.4f} to {said.high:.4f})",
                "best then": "-" if said is None else f"{said.best:.4f}",
            }
        )
    return tuple(found)


def _failed(sweep: Sweep, agenda: Agenda) -> list[str]:
    del sweep
    return [
        f"trial {key[:12]} failed: {outcome.reason}"
        for key, outcome in sorted(agenda.outcomes.items())
        if outcome.outcome == "failed"
    ]


def _cost(agenda: Agenda, store: SweepStore) -> Cost:
    """Return what the sweep took; tokens trained twice are those the work log holds beyond the tokens reached.

    What trials share with each other they trained once: as their trunk.
    """
    ended = [agenda.outcomes[key] for key in agenda.trials if key in agenda.outcomes]
    trunks = {outcome.forked_from[0] for outcome in ended if outcome.forked_from is not None}
    every = [*ended, *(agenda.outcomes[key] for key in sorted(trunks) if key in agenda.outcomes)]
    reached = sum(outcome.own_tokens for outcome in every)
    worked = sum(last - first for o in every for first, last in store.trial(o.key, fence=0).read_work())
    return Cost(
        trials=len(ended),
        tokens=max(worked, reached),
        flops=sum(outcome.own_tokens * outcome.trial.get("flops_per_token", 0.0) for outcome in every),
        seconds=sum(outcome.seconds for outcome in every),
        tokens_redone=max(0, worked - reached),
    )
