"""The files of a sweep's findings (law, curves, figures, page), in its folder and on its parent run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchestrator.config import Loaded
from orchestrator.results import Findings, agenda_of, fit, held_out_trials, law_files
from orchestrator.store import SweepStore
from orchestrator.tracking import Tracker
from sweeps import __version__
from sweeps.agenda import Agenda
from sweeps.curves import Scalar, write_parquet
from sweeps.report import Cost, LawReport, ReportData, write_report
from sweeps.spec import Sweep, content_key

STAMP_FILE = "report.stamp"  # what the report was made from: it is not made twice from the same


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
    folder = store.folder / "report"
    stamp = _stamp(loaded, findings, agenda, tracker)
    stamp_file = store.folder / STAMP_FILE
    names = law_files(findings)
    laws = [store.folder / names[label] for label, law in findings.laws.items() if law is not None]
    if stamp_file.exists() and stamp_file.read_text() == stamp:
        return [*laws, *sorted(folder.iterdir())]
    stamp_file.unlink(missing_ok=True)
    for label, law in findings.laws.items():
        if law is not None:
            law.save(store.folder / names[label])
        else:
            (store.folder / names[label]).unlink(missing_ok=True)
    curves = store.folder / "curves.parquet"
    used = {key: agenda.outcomes[key].curve for key in agenda.trials if key in agenda.outcomes}
    write_parquet(curves, used, about={key: _about(agenda, key) for key in used})
    paths = [*laws, *write_report(folder, _report_data(loaded, findings, agenda, store, tracker))]
    if tracker is not None:
        tracker.log_report([*paths, curves])
        tracker.describe("\n\n".join(f"`{line}`" for line in findings.lines()))  # code: a * is no emphasis then
    stamp_file.write_text(stamp)
    return [*paths, curves]


def write_folder(loaded: Loaded, *, home: Path, environ: Mapping[str, str]) -> list[Path]:
    """Write the files of what has ended so far into the sweep's folder, and return their paths."""
    store = SweepStore(home, loaded.sweep.experiment)
    findings = fit(loaded, home=home, environ=environ)
    agenda = agenda_of(loaded, store)
    agenda.add(held_out_trials(loaded.sweep, findings))
    (store.folder / STAMP_FILE).unlink(missing_ok=True)
    return write_findings(loaded, findings, agenda=agenda, store=store, tracker=None)


def _stamp(loaded: Loaded, findings: Findings, agenda: Agenda, tracker: Tracker | None) -> str:
    """Return a hash of all that a report is made from."""
    return content_key(
        [
            __version__,
            loaded.yaml,
            {label: None if law is None else law.to_json() for label, law in findings.laws.items()},
            sorted((key, o.outcome, o.tokens, o.seconds) for key, o in agenda.outcomes.items()),
            None if tracker is None else [tracker.uri, tracker.experiment_id],
        ]
    )


def _about(agenda: Agenda, key: str) -> dict[str, Scalar]:
    trial = agenda.trials[key]
    return {
        "lr": trial.lr,
        "batch_tokens": trial.batch_tokens,
        "tokens": trial.tokens,
        "seed": trial.seed,
        "parameters": trial.parameters,
        "outcome": agenda.outcomes[key].outcome,
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
        remarks=tuple([*agenda.refused, *_failed(loaded.sweep, agenda)]),
        tracking=None if tracker is None else tracker.uri,
    )


def _failed(sweep: Sweep, agenda: Agenda) -> list[str]:
    del sweep
    return [
        f"trial {key[:12]} failed: {outcome.reason}"
        for key, outcome in sorted(agenda.outcomes.items())
        if outcome.outcome == "failed"
    ]


def _cost(agenda: Agenda, store: SweepStore) -> Cost:
    """Return what the sweep took; tokens trained twice are those the work log holds beyond the tokens reached."""
    trials = [agenda.trials[key] for key in agenda.trials if key in agenda.outcomes]
    reached = sum(agenda.outcomes[t.key].tokens for t in trials)
    worked = sum(last - first for t in trials for first, last in store.trial(t.key, fence=0).read_work())
    return Cost(
        trials=len(trials),
        tokens=max(worked, reached),
        flops=sum(agenda.outcomes[t.key].tokens * t.flops_per_token for t in trials),
        seconds=sum(agenda.outcomes[t.key].seconds for t in trials),
        tokens_redone=max(0, worked - reached),
    )
