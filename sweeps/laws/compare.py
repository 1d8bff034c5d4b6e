"""Which of two recipes is better, each at its own tuned LR: the difference of their losses where their cells match."""

# C matched cells, S seeds, G clusters of cells

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sweeps.errors import ConfigError, FitError
from sweeps.laws.law import Law
from sweeps.laws.regression import clusters_of
from sweeps.optima.noise import Minimum, minimum_of
from sweeps.optima.records import CellOptimum
from sweeps.optima.student import is_confidence, two_sided
from sweeps.spec import Json

Floats = NDArray[np.float64]

SAID = 3  # cells named in a refusal


@dataclass(frozen=True, slots=True)
class Tuned:
    """One cell of a recipe at its own best LR.

    Attributes:
        label: for people.
        place: batch, tokens and model size.
        lr: the best LR; None where the cell is censored.
        minimum: the loss there, with what is known of its error; None where the cell is censored.
        trials: keys of its trials: cells that share some err together.
        censored: why there is no optimum, or None.
    """

    label: str
    place: tuple[int, int, int]
    lr: float | None
    minimum: Minimum | None
    trials: tuple[str, ...] = ()
    censored: str | None = None


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate between two ends."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class CellDifference:
    """Loss of A less that of B (nats) in one matched cell, each at its own best LR; `sd` None where nothing says it."""

    label: str
    lr: tuple[float, float]
    loss: tuple[float, float]
    difference: float
    sd: float | None
    seeds: int  # paired ones


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two recipes differ by.

    Attributes:
        better: "A", "B" or "cannot tell".
        reason: one sentence for people.
        loss: loss of A less that of B (nats), the mean over matched cells.
        tokens: how many times A's tokens B needs for A's loss: above 1, A is ahead; None where no slope is known.
        dof: of the t interval.
        confidence: of both intervals.
        cells: the matched cells.
        left_out: the other cells of both, each with the reason.
    """

    better: str
    reason: str
    loss: Interval
    tokens: Interval | None
    dof: float
    confidence: float
    cells: tuple[CellDifference, ...]
    left_out: tuple[Mapping[str, str], ...]


def compare(a: Sequence[Tuned], b: Sequence[Tuned], *, confidence: float = 0.95) -> Comparison:
    """Return which of two recipes has the lower loss, each at its own best LR, by the cells that both have.

    Cells match at the same batch, tokens and model size. In a cell, seeds of the same name are paired: what they share
    (data order, initialisation) leaves the difference. The mean is over clusters of cells that share trials; its
    variance is that of their scatter, or what their own errors say where that is more; t with clusters less one, or
    with the seeds' degrees of freedom.

    Raises:
        ConfigError: a confidence outside (0, 1).
        FitError: no cell matches with an optimum in both; or one alone does and nothing says its error, its
            `estimate` is then the difference.
    """
    if not is_confidence(confidence):
        raise ConfigError(f"confidence: must be in (0, 1), got {confidence}")
    pairs, left_out = _matched(a, b)
    if not pairs:
        raise FitError(f"compare: no cell of the two matches with an optimum in both{_why(a, b, left_out)}")
    cells = tuple(_difference(x, y) for x, y in pairs)
    mean, sd, dof = _mean(cells, clusters_of([_trials(x, y) for x, y in pairs]))
    half = two_sided(confidence, dof=dof) * sd
    loss = Interval(mean, mean - half, mean + half)
    better = "A" if loss.high < 0.0 else "B" if loss.low > 0.0 else "cannot tell"
    many = f"{len(cells)} matched cell{'s' if len(cells) > 1 else ''}"
    said = f"A's loss less B's is {mean:+.4g} ({loss.low:+.4g} to {loss.high:+.4g}) over {many}"
    reason = f"{said}: {'the interval holds 0' if better == 'cannot tell' else f'{better} is better'}"
    return Comparison(
        better, reason, loss, _in_tokens(loss, [y for _, y in pairs]), dof, confidence, cells, tuple(left_out)
    )


def of_cells(cells: Sequence[CellOptimum]) -> tuple[Tuned, ...]:
    """Return the cells of a sweep, as they are compared."""
    return tuple(
        Tuned(
            label=cell.label,
            place=(cell.batch_tokens, cell.tokens, cell.parameters),
            lr=cell.optimum.lr if cell.optimum.censored is None else None,
            minimum=minimum_of(cell),
            trials=tuple(sorted({r.key for r in cell.results})),
            censored=cell.optimum.censored,
        )
        for cell in cells
    )


def of_law(law: Law) -> tuple[Tuned, ...]:
    """Return the cells of a law; what each seed gave is known where the law's file says it.

    Where it does not say which cells share trials, those of one batch and size are taken to.
    """
    return tuple(_of_json(cell) for cell in law.cells)


def _of_json(cell: Mapping[str, Json]) -> Tuned:
    optimum, told = cell["optimum"], cell.get("minimum")
    if told is None:
        told = {"loss": optimum["loss"], "by_seed": {}, "offset_sd": None, "fit_sd": None}
    by_seed = {int(seed): float(loss) for seed, loss in told["by_seed"].items()}
    return Tuned(
        label=str(cell["label"]),
        place=(cell["batch_tokens"], cell["tokens"], cell["parameters"]),
        lr=optimum["lr"],
        minimum=None if told["loss"] is None else Minimum(told["loss"], by_seed, told["offset_sd"], told["fit_sd"]),
        trials=(str(cell.get("cluster", f"{cell['batch_tokens']} {cell['parameters']}")),),
    )


def _matched(a: Sequence[Tuned], b: Sequence[Tuned]) -> tuple[list[tuple[Tuned, Tuned]], list[Mapping[str, str]]]:
    """Return the pairs of cells at one place with an optimum each, by place; and the rest with the reason."""
    theirs = {cell.place: cell for cell in b if cell.minimum is not None}
    pairs = [(x, theirs[x.place]) for x in sorted(a, key=lambda c: c.place) if x.minimum and x.place in theirs]
    matched = {x.place for x, _ in pairs}
    left_out: list[Mapping[str, str]] = []
    for name, cells in (("A", a), ("B", b)):
        for cell in sorted(cells, key=lambda c: c.place):
            if cell.place not in matched:
                why = cell.censored or "the other has no optimum there"
                left_out.append({"recipe": name, "label": cell.label, "reason": why})
    return pairs, left_out


def _trials(a: Tuned, b: Tuned) -> list[str]:
    return [f"{name} {key}" for name, cell in (("A", a), ("B", b)) for key in cell.trials]


def _why(a: Sequence[Tuned], b: Sequence[Tuned], left_out: Sequence[Mapping[str, str]]) -> str:
    names = ("batches", "token counts", "model sizes")
    apart = [name for i, name in enumerate(names) if not {x.place[i] for x in a} & {x.place[i] for x in b}]
    if apart:
        return f": they share no {' and no '.join(apart)}"
    said = [f"{cell['recipe']}, {cell['label']}: {cell['reason']}" for cell in left_out[:SAID]]
    return f": {'; '.join(said)}" if said else ""


def _difference(a: Tuned, b: Tuned) -> CellDifference:
    assert a.minimum is not None
    assert b.minimum is not None
    assert a.lr is not None
    assert b.lr is not None
    x, y = a.minimum, b.minimum
    both = sorted(x.by_seed.keys() & y.by_seed.keys())
    fit = x.fit_sd**2 + y.fit_sd**2 if x.fit_sd is not None and y.fit_sd is not None else None
    difference, variance, paired = x.loss - y.loss, None, 0
    if len(both) > 1:
        by_seed_S = np.array([x.by_seed[s] - y.by_seed[s] for s in both])
        difference, paired = float(by_seed_S.mean()), len(both)
        variance = float(by_seed_S.var(ddof=1)) / paired
    elif x.offset_sd is not None and y.offset_sd is not None:
        variance = x.offset_sd**2 / len(x.by_seed) + y.offset_sd**2 / len(y.by_seed)
    sd = None if variance is None else math.sqrt(variance + (fit or 0.0))
    return CellDifference(a.label, (a.lr, b.lr), (x.loss, y.loss), difference, sd, paired)


def _mean(cells: Sequence[CellDifference], cluster_C: NDArray[np.intp]) -> tuple[float, float, float]:
    """Return the mean difference, its standard error and degrees of freedom."""
    clusters = [np.flatnonzero(cluster_C == g) for g in range(int(cluster_C.max()) + 1)]
    difference_C = np.array([cell.difference for cell in cells])
    difference_G = np.array([difference_C[of].mean() for of in clusters])
    mean, count = float(difference_G.mean()), len(clusters)
    sds = [cell.sd for cell in cells]
    own = None
    if all(sd is not None for sd in sds):  # cells of a cluster err together: their errors add up
        sd_C = np.array([sd or 0.0 for sd in sds])
        own = float(np.sum([sd_C[of].mean() ** 2 for of in clusters])) / count**2
    scatter = float(difference_G.var(ddof=1)) / count if count > 1 else None
    if scatter is not None and (own is None or scatter >= own):
        return mean, math.sqrt(scatter), float(count - 1)
    if own is None:
        message = "compare: one cell alone matches, and nothing says its error: give it two seeds"
        raise FitError(message, estimate=mean)
    dof = sum(max(1, cell.seeds - 1) for cell in (cells[int(of[0])] for of in clusters))
    return mean, math.sqrt(own), float(max(dof, count - 1))


def _in_tokens(loss: Interval, b: Sequence[Tuned]) -> Interval | None:
    """Return how many times the tokens B needs for A's loss: exp(-difference / s), s the slope of B's loss in ln T.

    s = -d loss / d ln T by least squares through B's matched cells, each at its own best LR, with a level of its own
    for every batch and size. None where tokens do not vary, or the loss does not fall with them.
    """
    rows: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for cell in b:
        assert cell.minimum is not None
        batch, tokens, size = cell.place
        rows.setdefault((batch, size), []).append((math.log(tokens), cell.minimum.loss))
    up = across = 0.0
    for group in rows.values():
        x, y = np.array(group).T
        up, across = up + float((x - x.mean()) @ y), across + float(np.sum((x - x.mean()) ** 2))
    if across == 0.0 or up >= 0.0:
        return None
    slope = -up / across
    return Interval(*(math.exp(min(-d / slope, 50.0)) for d in (loss.value, loss.high, loss.low)))
