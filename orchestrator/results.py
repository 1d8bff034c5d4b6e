"""From outcomes to laws: cells, optima, one law a value of the further axes, checks, and the files of a report."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.config import Loaded, resolve_text
from orchestrator.logged import cells_logged
from orchestrator.search import chooser_of
from orchestrator.store import SweepStore
from orchestrator.store.index import Index
from orchestrator.tracking import Tracker
from sweeps import __version__
from sweeps.agenda import Agenda, Outcome, is_done, result_of
from sweeps.errors import FitError, ReachError
from sweeps.laws.heldout import check
from sweeps.laws.law import Law, fit_law
from sweeps.laws.records import Verdict
from sweeps.optima.optimum import find_optimum
from sweeps.optima.pooled import refine
from sweeps.optima.records import CellOptimum
from sweeps.plan import Bracket, group_label, grown_lrs, held_out_cell, is_profiled, trials_of
from sweeps.spec import JOINT, Cell, LawSpec, Result, Sweep, Trial, Variant, content_key, six_digits
from sweeps.surrogate.law import joint_cells, joint_law

HELD_OUT_GROW = 2  # LRs a held-out check may add beyond each neighbour: a law off by 2 x 2^2 is still bracketed
LONGEST_NAME = 100  # characters of a file's name that come from a label


@dataclass(frozen=True)
class Findings:
    """What a sweep found, one law a value of the further axes; keys are labels, "" where there is one law.

    `variants` holds what each law's recipe is and its held-out check trains: that of its largest model and longest run.
    """

    cells: Mapping[str, tuple[CellOptimum, ...]]
    laws: Mapping[str, Law | None]
    refusals: Mapping[str, str] = field(default_factory=dict)
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    held_out: Mapping[str, CellOptimum] = field(default_factory=dict)
    variants: Mapping[str, Variant] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the laws and their checks for people."""
        lines = []
        for label, law in self.laws.items():
            name = f"law ({label}): " if label else "law: "
            refused = self.refusals.get(label, "").removeprefix("law: ")
            lines.append(name + (law.one_line() if law is not None else f"none. {refused}"))
            verdict = self.verdicts.get(label)
            if verdict is not None:
                lines.append(f"held-out check: {verdict.status}. {verdict.reason}")
        return lines


def collect(sweep: Sweep, found: Iterable[tuple[Cell, Sequence[Result]]]) -> dict[str, list[CellOptimum]]:
    """Return every cell with its optimum, by law."""
    groups: dict[str, list[CellOptimum]] = {}
    for cell, results in found:
        groups.setdefault(group_label(sweep, cell.variant), []).append(_found(cell, results))
    return {label: _profiled(sweep, _refined(sweep.law, cells)) for label, cells in groups.items()}


def _refined(law: LawSpec, cells: Sequence[CellOptimum]) -> Sequence[CellOptimum]:
    """Return the cells with what they say of each other's optima."""
    if law.estimator == JOINT:
        return joint_cells(cells, confidence=law.confidence)
    return refine(cells, estimator=law.estimator, confidence=law.confidence)


def of_agenda(agenda: Agenda) -> list[tuple[Cell, list[Result]]]:
    """Return every cell with what it has learnt so far."""
    return [(cell, agenda.results(cell)) for cell in agenda.cells]


def _found(cell: Cell, results: Sequence[Result]) -> CellOptimum:
    """Return a cell with its results; its optimum is still to be found."""
    return CellOptimum(
        key=cell.key,
        label=cell.label,
        batch_tokens=cell.batch_tokens,
        tokens=cell.tokens,
        parameters=cell.parameters,
        optimum=find_optimum(results),
        results=tuple(results),
        values=dict(cell.variant.values),
    )


def _profiled(sweep: Sweep, cells: Sequence[CellOptimum]) -> list[CellOptimum]:
    """Return the cells, but of those that differ in profiled axes alone only the one with the lowest loss."""
    best: dict[str, CellOptimum] = {}
    for cell in cells:
        kept = {axis: value for axis, value in cell.values.items() if not is_profiled(sweep, axis)}
        place = content_key([cell.batch_tokens, cell.tokens, kept])
        if place not in best or _rank(cell) < _rank(best[place]):
            best[place] = cell
    return list(best.values())


def _rank(cell: CellOptimum) -> tuple[bool, float]:
    loss = cell.optimum.loss
    return (cell.optimum.censored is not None, float("inf") if loss is None else loss)


def study(sweep: Sweep, found: Iterable[tuple[Cell, Sequence[Result]]]) -> Findings:
    """Return the laws of a sweep's cells, without their held-out checks."""
    cells = collect(sweep, found)
    variants = {label: _furthest(sweep, group) for label, group in cells.items()}
    laws: dict[str, Law | None] = {}
    refusals: dict[str, str] = {}
    for label, group in cells.items():
        try:
            laws[label] = (joint_law if sweep.law.estimator == JOINT else fit_law)(
                group,
                spec=sweep.law,
                recipe=recipe_of(sweep, variants[label]),
                sweep_key=sweep.key,
                version=__version__,
            )
        except FitError as error:
            laws[label], refusals[label] = None, str(error)
    return Findings({k: tuple(v) for k, v in cells.items()}, laws, refusals, variants=variants)


def _furthest(sweep: Sweep, cells: Sequence[CellOptimum]) -> Variant:
    """Return the variant of the cell with the largest model, then the longest run, then the lowest loss."""
    furthest = min(cells, key=lambda cell: (-cell.parameters, -cell.tokens, _rank(cell)))
    return next(variant for variant in sweep.variants if dict(variant.values) == furthest.values)


def recipe_of(sweep: Sweep, variant: Variant) -> dict[str, object]:
    """Return what a law of this variant is a law of."""
    return {
        "workload": variant.workload.identity(),
        "optimizer": variant.optimizer.identity(),
        "schedule": sweep.schedule.identity(),
        "precision": sweep.precision,
        "data": variant.size.data_fingerprint,
        "unit": variant.size.unit,
    }


def held_out_trials(sweep: Sweep, findings: Findings, outcomes: Mapping[str, Outcome] | None = None) -> list[Trial]:
    """Return the trials of the held-out checks: each law's LR at the target and its two neighbours, on paired seeds.

    Where these have ended, by `outcomes`, and the best of them is the lowest or the highest, the next LR beyond it
    follows, up to HELD_OUT_GROW on each side: an edge is not an optimum here either.
    """
    if sweep.validate is None:
        return []
    trials: list[Trial] = []
    for label, law in findings.laws.items():
        if law is not None:
            cell = held_out_cell(sweep, findings.variants[label])
            try:
                lr = law.predict(batch_tokens=cell.batch_tokens, tokens=cell.tokens, parameters=cell.parameters).lr
            except ReachError:
                continue  # said by its verdict
            factor = sweep.validate.factor
            first = [six_digits(lr / factor), six_digits(lr), six_digits(lr * factor)]
            trials += _grown(sweep, cell, first, outcomes or {})
    return trials


def _grown(sweep: Sweep, cell: Cell, first: Sequence[float], outcomes: Mapping[str, Outcome]) -> list[Trial]:
    """Return the trials of a held-out cell at its first LRs, and at those that its ended trials ask for."""
    lrs, trials = list(first), trials_of(sweep, Bracket((cell,)), first)
    while all(is_done(t, outcomes.get(t.key)) for t in trials):
        more = grown_lrs(
            {cell.key: [result_of(t, cell.tokens, outcomes[t.key]) for t in trials]},
            grow=HELD_OUT_GROW,
            added_low=sum(lr < first[0] for lr in lrs),
            added_high=sum(lr > first[-1] for lr in lrs),
        )
        if not more:
            break
        lrs += more
        trials += trials_of(sweep, Bracket((cell,)), more)
    return trials


def with_checks(sweep: Sweep, findings: Findings, outcomes: Mapping[str, Outcome]) -> Findings:
    """Return the findings with each law's held-out check, where its trials have ended or none can be made."""
    verdicts: dict[str, Verdict] = {}
    held_out: dict[str, CellOptimum] = {}
    laws = dict(findings.laws)
    for label, law in findings.laws.items():
        trials = held_out_trials(sweep, replace(findings, laws={label: law}), outcomes)
        ended = [t for t in trials if t.key in outcomes and outcomes[t.key].outcome != "failed"]
        if law is not None and sweep.validate is not None and (ended or not trials):
            cell = held_out_cell(sweep, findings.variants[label])
            results = [result_of(t, cell.tokens, outcomes[t.key]) for t in ended]
            verdicts[label] = check(
                law,
                results,
                batch_tokens=cell.batch_tokens,
                tokens=cell.tokens,
                parameters=cell.parameters,
            )
            laws[label] = law.with_verdict(verdicts[label])
            if results:
                held_out[label] = replace(_found(cell, results), optimum=verdicts[label].observed)
    return replace(findings, laws=laws, verdicts=verdicts, held_out=held_out)


def law_files(findings: Findings) -> dict[str, str]:
    """Return the file name of each law: law.json, or one a value of the further axes, in letters, digits and -_."""
    if list(findings.laws) == [""]:
        return {"": "law.json"}
    clean = {label: re.sub(r"[^A-Za-z0-9_.-]+", "-", label) for label in findings.laws}
    twice = {name for name, count in Counter(name.lower() for name in clean.values()).items() if count > 1}
    names = {}
    for label, name in clean.items():
        short = len(name) <= LONGEST_NAME and name.lower() not in twice
        names[label] = name if short else f"{name[:LONGEST_NAME]}-{content_key(label)[:8]}"
    return {label: f"law-{name}.json" for label, name in names.items()}


def agenda_of(loaded: Loaded, store: SweepStore) -> Agenda:
    """Return the agenda of a sweep as its outcomes stand now; it asks for nothing that its driver has not asked for."""
    chooser = chooser_of(loaded.sweep, journal=store.folder / "optuna.journal", only_read=True)
    return Agenda(loaded.sweep, chooser, Index.open(store).outcomes())


def fit(loaded: Loaded, *, home: Path, environ: Mapping[str, str], from_mlflow: bool = False) -> Findings:
    """Return what the curves there are say, and train nothing.

    Args:
        loaded: the sweep.
        home: where everything is kept.
        environ: says where MLflow is.
        from_mlflow: read the curves from MLflow, whoever logged them, instead of the outcomes.
    """
    sweep = loaded.sweep
    if from_mlflow:
        return fit_logged(loaded, home=home, environ=environ)
    agenda = agenda_of(loaded, SweepStore(home, sweep.experiment))
    return with_checks(sweep, study(sweep, of_agenda(agenda)), agenda.outcomes)


def fit_logged(loaded: Loaded, *, home: Path, environ: Mapping[str, str]) -> Findings:
    """Return what the runs of the sweep's MLflow experiment say, whoever logged them, and train nothing.

    Its cells are those of `logged.cells_logged`.
    """
    with closing(open_tracker(loaded, home=home, environ=environ, create=False)) as tracker:
        found = cells_logged(loaded.sweep, tracker)
    return study(loaded.sweep, found)


def open_tracker(loaded: Loaded, *, home: Path, environ: Mapping[str, str], create: bool = True) -> Tracker:
    """Return the tracker of a sweep; secrets in its URI are filled in only now."""
    uri = loaded.sweep.tracking.uri
    resolved = resolve_text(uri, environ) if uri is not None else None
    return Tracker.open(resolved, home=home, experiment=loaded.sweep.experiment, environ=environ, create=create)
