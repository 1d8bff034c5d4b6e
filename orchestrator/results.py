"""From outcomes to laws: cells, optima, one law a value of the further axes, checks, and the files of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.config import Loaded, resolve_text
from orchestrator.search import chooser_of
from orchestrator.store import SweepStore
from orchestrator.store.index import Index
from orchestrator.tracking import Tracker
from orchestrator.tracking.card import card_of
from orchestrator.tracking.reader import BEYOND_FLOAT, RunCurves
from sweeps import __version__
from sweeps.agenda import LOSS, Agenda, Outcome, result_of
from sweeps.curves import Curve
from sweeps.errors import FitError, ReachError
from sweeps.laws.heldout import check
from sweeps.laws.law import Law, fit_law
from sweeps.laws.optimum import find_optimum
from sweeps.laws.pooled import refine
from sweeps.laws.records import CellOptimum, Verdict
from sweeps.plan import Bracket, cells_of, group_label, held_out_cell, is_open_ended, trials_of
from sweeps.spec import Cell, Result, Sweep, Trial, Variant, six_digits

LOGGED = {"lr", "batch_tokens", "tokens"}  # parameters that place a run of MLflow in a cell


@dataclass(frozen=True)
class Findings:
    """What a sweep found, one law a value of the further axes; keys are labels, "" where there is one law."""

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
    law = sweep.law
    return {
        label: _profiled(refine(cells, estimator=law.estimator, confidence=law.confidence))
        for label, cells in groups.items()
    }


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


def _profiled(cells: Sequence[CellOptimum]) -> list[CellOptimum]:
    """Return one cell a (batch, tokens, N): of those that differ in a profiled axis, the one with the lowest loss."""
    best: dict[tuple[int, int, int], CellOptimum] = {}
    for cell in cells:
        place = (cell.batch_tokens, cell.tokens, cell.parameters)
        if place not in best or _rank(cell) < _rank(best[place]):
            best[place] = cell
    return list(best.values())


def _rank(cell: CellOptimum) -> tuple[bool, float]:
    loss = cell.optimum.loss
    return (cell.optimum.censored is not None, float("inf") if loss is None else loss)


def study(sweep: Sweep, found: Iterable[tuple[Cell, Sequence[Result]]]) -> Findings:
    """Return the laws of a sweep's cells, without their held-out checks."""
    cells = collect(sweep, found)
    variants: dict[str, Variant] = {}
    for variant in sorted(sweep.variants, key=lambda v: v.size.parameters):
        variants[group_label(sweep, variant)] = variant  # the largest of each
    laws: dict[str, Law | None] = {}
    refusals: dict[str, str] = {}
    for label, group in cells.items():
        try:
            laws[label] = fit_law(
                group, spec=sweep.law, recipe=_recipe(sweep, variants[label]), sweep_key=sweep.key, version=__version__
            )
        except FitError as error:
            laws[label], refusals[label] = None, str(error)
    return Findings({k: tuple(v) for k, v in cells.items()}, laws, refusals, variants=variants)


def _recipe(sweep: Sweep, variant: Variant) -> dict[str, object]:
    return {
        "workload": variant.workload.identity(),
        "optimizer": variant.optimizer.identity(),
        "schedule": sweep.schedule.identity(),
        "precision": sweep.precision,
        "data": variant.size.data_fingerprint,
        "unit": variant.size.unit,
    }


def held_out_trials(sweep: Sweep, findings: Findings) -> list[Trial]:
    """Return the trials of the held-out checks: each law's LR at the target and its two neighbours, on paired seeds."""
    if sweep.validate is None:
        return []
    trials: list[Trial] = []
    for label, law in findings.laws.items():
        if law is not None:
            cell = held_out_cell(sweep, findings.variants[label])
            try:
                lr = law.predict(batch_tokens=cell.batch_tokens, tokens=cell.tokens, parameters=cell.parameters).lr
            except ReachError:
                continue  # said by Findings.lines
            factor = sweep.validate.factor
            lrs = [six_digits(lr / factor), six_digits(lr), six_digits(lr * factor)]
            trials += trials_of(sweep, Bracket((cell,)), lrs)
    return trials


def with_checks(sweep: Sweep, findings: Findings, outcomes: Mapping[str, Outcome]) -> Findings:
    """Return the findings with each law's held-out check, where its trials have ended."""
    verdicts: dict[str, Verdict] = {}
    held_out: dict[str, CellOptimum] = {}
    laws = dict(findings.laws)
    for label, law in findings.laws.items():
        trials = held_out_trials(sweep, replace(findings, laws={label: law}))
        ended = [t for t in trials if t.key in outcomes and outcomes[t.key].outcome != "failed"]
        if law is not None and ended:
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
            held_out[label] = replace(_found(cell, results), optimum=verdicts[label].observed)
    return replace(findings, laws=laws, verdicts=verdicts, held_out=held_out)


def law_files(findings: Findings) -> dict[str, str]:
    """Return the file name of each law: law.json, or one a value of the further axes."""
    if list(findings.laws) == [""]:
        return {"": "law.json"}
    return {label: f"law-{label.replace(', ', '-').replace(' ', '-')}.json" for label in findings.laws}


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
    """Return what the runs of the sweep's MLflow experiment say of its cells, whoever logged them.

    A run counts where its parameters lr, batch_tokens and tokens name one of the cells, and no parameter contradicts
    the recipe or the further axes; its loss there is `validation/loss` at step `tokens`. One that has not come so far
    says nothing, unless it diverged.
    """
    sweep = loaded.sweep
    with closing(open_tracker(loaded, home=home, environ=environ, create=False)) as tracker:
        runs = [run for run in tracker.read_curves(metrics=[LOSS]) if run.run.params.keys() >= LOGGED]
    open_ended = is_open_ended(sweep)
    found = []
    for cell in cells_of(sweep):
        recipe = _recipe_params(sweep, cell.variant)
        results = {}
        for run in runs:
            params = run.run.params
            horizon = _number(params["tokens"])
            far_enough = horizon == cell.tokens or (open_ended and horizon > cell.tokens)
            if far_enough and _number(params["batch_tokens"]) == cell.batch_tokens and _agrees(params, recipe, sweep):
                result = _logged_result(run, cell.tokens)
                if result is not None:
                    results[(result.lr, result.seed)] = result
        found.append((cell, [results[place] for place in sorted(results)]))
    return study(sweep, found)


def _recipe_params(sweep: Sweep, variant: Variant) -> dict[str, str]:
    """Return the parameters that a run of this variant has in MLflow, if powersweep logged it."""
    parts = {"workload": variant.workload, "optimizer": variant.optimizer, "schedule": sweep.schedule}
    card = card_of({"precision": sweep.precision, **{name: part.to_json() for name, part in parts.items()}})
    return dict(card.params)


def _agrees(params: Mapping[str, str], recipe: Mapping[str, str], sweep: Sweep) -> bool:
    """Return whether a run's parameters do not contradict a recipe, and say which variant of several it is."""
    if any(name in params and not _same(params[name], text) for name, text in recipe.items()):
        return False
    for axis in sweep.axes.extra:
        name = axis if axis in params else axis.split(".")[-1]
        if axis in recipe and not _same(params.get(name), recipe[axis]):
            return False
    return True


def _same(one: str | None, other: str) -> bool:
    if one is None:
        return False
    numbers = _number(one), _number(other)
    return one == other or (numbers[0] == numbers[0] and math.isclose(*numbers, rel_tol=1e-5))


def _number(text: str) -> float:
    """Return the number a parameter holds, NaN if it holds none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _logged_result(run: RunCurves, tokens: int) -> Result | None:
    """Return what a run says of the loss at `tokens`, None if nothing."""
    params = run.run.params
    lr, seed = _number(params["lr"]), _number(params.get("seed", "0"))
    if not (lr > 0 and seed == seed):
        return None
    curve = Curve.from_json(run.curve).until(tokens)
    loss = curve.at(tokens, LOSS)
    key = run.run.key or run.run.run_id
    if loss is not None and math.isfinite(loss):
        return Result(key=key, lr=lr, seed=int(seed), loss=loss, outcome="finished")
    latest = run.run.metrics.get(LOSS, 0.0)
    if run.run.outcome == "diverged" or not abs(latest) < BEYOND_FLOAT:  # infinite, or not a number
        return Result(key=key, lr=lr, seed=int(seed), loss=None, outcome="diverged")
    return None


def open_tracker(loaded: Loaded, *, home: Path, environ: Mapping[str, str], create: bool = True) -> Tracker:
    """Return the tracker of a sweep; secrets in its URI are filled in only now."""
    uri = loaded.sweep.tracking.uri
    resolved = resolve_text(uri, environ) if uri is not None else None
    return Tracker.open(resolved, home=home, experiment=loaded.sweep.experiment, environ=environ, create=create)
