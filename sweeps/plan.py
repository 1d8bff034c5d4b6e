"""The plan of a sweep: its cells, the brackets their LRs are searched in, and the trials that fill them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sweeps.schedules import schedule_of
from sweeps.spec import Cell, Json, Range, Reports, Result, Sweep, Trial, Variant, content_key, six_digits

FIRST_OPEN_OCTAVE = 3  # an open-ended run reports from step 2^3 on: an absolute mark, as its horizon may grow


def whole_batches(tokens: float, batch_tokens: int) -> int:
    """Return the nearest positive multiple of the batch."""
    return max(1, round(tokens / batch_tokens)) * batch_tokens


def is_open_ended(sweep: Sweep) -> bool:
    """Return whether a run of this sweep does not depend on its horizon, so that one run serves them all."""
    return schedule_of(sweep.schedule).open_ended


@dataclass(frozen=True)
class Bracket:
    """The cells whose LRs are searched together.

    One cell; or, under an open-ended schedule, all the token counts of one (variant, batch), as one run passes
    through them all.
    """

    cells: tuple[Cell, ...]

    @property
    def variant(self) -> Variant:
        """The workload and optimizer all its cells share."""
        return self.cells[0].variant

    @property
    def batch_tokens(self) -> int:
        """The batch all its cells share."""
        return self.cells[0].batch_tokens

    @cached_property
    def key(self) -> str:
        """The same in every process."""
        return content_key([cell.key for cell in self.cells])

    def horizon(self, seed: int) -> int | None:
        """Return how far a run of this seed must go, or None if no cell wants the seed."""
        return max((cell.tokens for cell in self.cells if seed in cell.seeds), default=None)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds any of its cells wants."""
        return tuple(dict.fromkeys(seed for cell in self.cells for seed in cell.seeds))


def cells_of(sweep: Sweep) -> list[Cell]:
    """Return every cell once: variants, then batches, then token counts rounded to whole batches."""
    cells: dict[str, Cell] = {}
    for variant in sweep.variants:
        for batch in sweep.axes.batch_tokens:
            horizons = sweep.axes.tokens or tuple(steps * batch for steps in sweep.axes.steps or ())
            for tokens in horizons:
                cell = Cell(variant, batch, whole_batches(tokens, batch), sweep.axes.seeds.of(tokens))
                cells.setdefault(cell.key, cell)
    return list(cells.values())


def brackets_of(sweep: Sweep) -> list[Bracket]:
    """Return the cells grouped into what is searched together."""
    if not is_open_ended(sweep):
        return [Bracket((cell,)) for cell in cells_of(sweep)]
    groups: dict[str, list[Cell]] = {}
    for cell in cells_of(sweep):
        shape = content_key([cell.variant.workload.identity(), cell.variant.optimizer.identity(), cell.batch_tokens])
        groups.setdefault(shape, []).append(cell)
    return [Bracket(tuple(group)) for group in groups.values()]


def group_label(sweep: Sweep, variant: Variant) -> str:
    """Return which law a variant belongs to: its further axes, but those the law has as a variable or profiles over.

    A law in parameters has the axes of the workload that change N.
    """
    sizes = sweep.size_axes if "parameters" in sweep.law.variables else ()
    return _axes_text(sweep, variant, [x for x in variant.values if x not in sizes and not is_profiled(sweep, x)])


def _axes_text(sweep: Sweep, variant: Variant, axes: Iterable[str]) -> str:
    """Return the values that a variant has on these of its further axes, in words."""
    values = {axis: _value_text(variant.values[axis], sweep.axes.extra.get(axis, ())) for axis in axes}
    return ", ".join(f"{axis.split('.')[-1]} {text}" for axis, text in values.items())


def is_profiled(sweep: Sweep, axis: str) -> bool:
    """Return whether the law takes the best of a further axis, by its whole name or the last word of it."""
    return axis in sweep.law.profile_over or axis.split(".")[-1] in sweep.law.profile_over


def _value_text(value: Json, among: Sequence[Json]) -> str:
    """Return a value of an axis in words: of a choice with fields its name, and what tells it from its namesakes."""
    if not isinstance(value, Mapping):
        return str(value)
    same = [other for other in among if isinstance(other, Mapping) and other.get("name") == value.get("name")]
    fields = [name for name in value if name != "name" and any(o.get(name) != value[name] for o in same)]
    return " ".join([*([str(value["name"])] if "name" in value else []), *(f"{n} {value[n]}" for n in fields)])


def held_out_cell(sweep: Sweep, variant: Variant) -> Cell:
    """Return the cell of the held-out check."""
    check = sweep.validate
    assert check is not None
    tokens = whole_batches(check.tokens, check.batch_tokens)
    return Cell(variant, check.batch_tokens, tokens, tuple(range(check.seeds)))


def grid_lrs(sweep: Sweep) -> tuple[float, ...]:
    """Return the LRs of a grid search."""
    lr = sweep.axes.lr
    return lr.grid() if isinstance(lr, Range) else lr


def trials_of(sweep: Sweep, bracket: Bracket, lrs: Iterable[float]) -> list[Trial]:
    """Return the trials of a bracket at these LRs: all its seeds, each to the furthest cell that wants it."""
    open_ended = is_open_ended(sweep)
    size = bracket.variant.size
    stopping = tuple(part.identity() for part in sweep.stoppers)
    label = _axes_text(sweep, bracket.variant, bracket.variant.values)
    trials = []
    for lr in lrs:
        for seed in bracket.seeds:
            horizon = bracket.horizon(seed)
            assert horizon is not None
            rungs, ladder = (_open_marks if open_ended else _marks)(sweep.reports, horizon, bracket.batch_tokens)
            marks = rungs | {cell.tokens for cell in bracket.cells if cell.tokens <= horizon}
            trials.append(
                Trial(
                    workload=bracket.variant.workload,
                    optimizer=bracket.variant.optimizer,
                    schedule=sweep.schedule,
                    lr=lr,
                    batch_tokens=bracket.batch_tokens,
                    tokens=horizon,
                    seed=seed,
                    marks=tuple(sorted(marks)),
                    ladder=ladder,
                    asides=tuple(sorted(marks - rungs)),
                    absurd_factor=sweep.absurd_factor,
                    stopping=stopping,
                    data_fingerprint=size.data_fingerprint,
                    precision=sweep.precision,
                    open_ended=open_ended,
                    parameters=size.parameters,
                    flops_per_token=size.flops_per_token,
                    label=label,
                )
            )
    return trials


def _marks(reports: Reports, horizon: int, batch_tokens: int) -> tuple[set[int], Json]:
    """Return the ladder of report marks up to a horizon, horizon x 2^(-j / per_octave), and its identity."""
    octaves = math.log2(1 / reports.first_fraction)
    rungs = range(math.floor(octaves * reports.per_octave + 1e-9) + 1)
    ladder = {whole_batches(horizon * 2 ** (-j / reports.per_octave), batch_tokens) for j in rungs}
    return ladder, {"per_octave": reports.per_octave, "first_fraction": reports.first_fraction}


def _open_marks(reports: Reports, horizon: int, batch_tokens: int) -> tuple[set[int], Json]:
    """Return the same of an open-ended run, which knows no horizon: batch x 2^(j / per_octave), in whole batches.

    So a longer horizon only adds marks. A horizon off the ladder is no mark of it: it is looked at aside.
    """
    rungs = range(
        FIRST_OPEN_OCTAVE * reports.per_octave, math.ceil(math.log2(horizon / batch_tokens) + 1) * reports.per_octave
    )
    ladder = {round(2 ** (j / reports.per_octave)) * batch_tokens for j in rungs}
    return {mark for mark in ladder if mark <= horizon}, {"per_octave": reports.per_octave}


def grown_lrs(results: Mapping[str, Sequence[Result]], *, grow: int, added_low: int, added_high: int) -> list[float]:
    """Return the LRs to add because some cell's best one is at the edge of what was tried; [] if none is.

    Args:
        results: of complete cells, by cell key; all of one bracket.
        grow: at most this many points beyond each edge of the first grid.
        added_low: points added below so far.
        added_high: points added above so far.
    """
    new: list[float] = []
    for cell_results in results.values():
        loss = mean_losses(cell_results)
        lrs = sorted(loss)
        if len(lrs) < 2 or not any(math.isfinite(x) for x in loss.values()):
            continue
        best = min(lrs, key=lambda lr: loss[lr])
        if best == lrs[0] and added_low < grow:
            new.append(six_digits(lrs[0] * lrs[0] / lrs[1]))
        elif best == lrs[-1] and added_high < grow:
            new.append(six_digits(lrs[-1] * lrs[-1] / lrs[-2]))
    return sorted(set(new))


def mean_losses(results: Sequence[Result]) -> dict[float, float]:
    """Return the mean loss over seeds at each LR; infinite where any seed diverged or was stopped."""
    by_lr: dict[float, list[float]] = {}
    for result in results:
        by_lr.setdefault(result.lr, []).append(math.inf if result.loss is None else result.loss)
    return {lr: sum(losses) / len(losses) for lr, losses in by_lr.items()}


@dataclass(frozen=True, slots=True)
class Price:
    """What a list of trials costs."""

    trials: int
    tokens: int
    flops: float


def price(trials: Iterable[Trial]) -> Price:
    """Return the trials, tokens and FLOPs of a list of trials."""
    listed = list(trials)
    return Price(len(listed), sum(t.tokens for t in listed), sum(t.tokens * t.flops_per_token for t in listed))
