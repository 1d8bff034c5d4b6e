"""The plan of a sweep: its cells, the brackets their LRs are searched in, and the trials that fill them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sweeps.schedules import SCHEDULES
from sweeps.spec import Cell, Json, Range, Reports, Result, Sweep, Trial, Variant, content_key, six_digits

FIRST_OPEN_STEP = 8  # an open-ended run reports from this step on: an absolute mark, as its horizon may grow


def whole_batches(tokens: float, batch_tokens: int) -> int:
    """Return the nearest positive multiple of the batch."""
    return max(1, round(tokens / batch_tokens)) * batch_tokens


def is_open_ended(sweep: Sweep) -> bool:
    """Return whether a run of this sweep does not depend on its horizon, so that one run serves them all."""
    return bool(SCHEDULES[sweep.schedule.name](**_tuples(sweep.schedule.fields)).open_ended)


def _tuples(fields: Mapping[str, Json]) -> dict[str, Json]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


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
    """Return which law a variant belongs to: its further axes, but those the law has as a variable or profiles over."""
    with_size = "parameters" in sweep.law.variables
    parts = []
    for axis, value in variant.values.items():
        profiled = axis in sweep.law.profile_over or axis.split(".")[-1] in sweep.law.profile_over
        if not profiled and not (with_size and axis.startswith("workload.")):
            parts.append(f"{axis.split('.')[-1]} {value}")
    return ", ".join(parts)


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
    trials = []
    for lr in lrs:
        for seed in bracket.seeds:
            horizon = bracket.horizon(seed)
            assert horizon is not None
            marks, ladder = _marks(sweep.reports, bracket, horizon, open_ended=open_ended)
            trials.append(
                Trial(
                    workload=bracket.variant.workload,
                    optimizer=bracket.variant.optimizer,
                    schedule=sweep.schedule,
                    lr=lr,
                    batch_tokens=bracket.batch_tokens,
                    tokens=horizon,
                    seed=seed,
                    marks=marks,
                    ladder=ladder,
                    data_fingerprint=size.data_fingerprint,
                    precision=sweep.precision,
                    open_ended=open_ended,
                    parameters=size.parameters,
                    flops_per_token=size.flops_per_token,
                )
            )
    return trials


def _marks(reports: Reports, bracket: Bracket, horizon: int, *, open_ended: bool) -> tuple[tuple[int, ...], Json]:
    """Return the report marks up to a horizon, and what of them belongs to the identity.

    Marks stand at horizon x 2^(-j / per_octave). An open-ended run is anchored at the smallest horizon's mantissa
    instead, so that horizons which are powers of two apart share all marks and a longer one only adds to them; a
    horizon off that ladder is a mark of its own, and part of the identity.
    """
    batch = bracket.batch_tokens
    per_octave = reports.per_octave
    if not open_ended:
        octaves = math.log2(1 / reports.first_fraction)
        ladder = [horizon * 2 ** (-j / per_octave) for j in range(math.floor(octaves * per_octave + 1e-9) + 1)]
        marks = {whole_batches(tokens, batch) for tokens in ladder}
        return tuple(sorted(marks)), {"per_octave": per_octave, "first_fraction": reports.first_fraction}
    horizons = sorted(cell.tokens for cell in bracket.cells)
    anchor = math.frexp(horizons[0])[0]
    first = FIRST_OPEN_STEP * batch
    exponents = range(
        math.ceil(per_octave * math.log2(first / anchor) - 1e-9),
        math.floor(per_octave * math.log2(horizon / anchor) + 1e-9) + 1,
    )
    marks = {whole_batches(anchor * 2 ** (j / per_octave), batch) for j in exponents}
    extra = [tokens for tokens in horizons if tokens <= horizon and tokens not in marks]
    identity = {"per_octave": per_octave, "anchor": six_digits(anchor), "extra": extra}
    return tuple(sorted({*(m for m in marks if m <= horizon), *extra, horizon})), identity


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
