"""The held-out check: whether the optimum found one scale up meets the interval that the law gave for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from sweeps.errors import ReachError
from sweeps.laws.law import Law
from sweeps.laws.records import Prediction, Verdict
from sweeps.optima.optimum import SAME, Tried, as_optimum, posterior_of, shape_of, tabulate
from sweeps.optima.pooled import pooled_curvature
from sweeps.optima.records import Optimum
from sweeps.spec import Json, Result

MINIMUM_SEEDS = 3  # paired; with two, the noise of a difference has one degree of freedom
MINIMUM_LRS = 3
MOST_OCTAVES = 2.0  # of tokens, up to which a slope is followed; assumed


def check(
    law: Law, results: Sequence[Result], *, batch_tokens: float, tokens: float, parameters: float | None = None
) -> Verdict:
    """Return the verdict of results at the law's LR and its neighbours, on three paired seeds or more.

    The interval of the held-out optimum is that of `optimum.posterior_of`, seeds' offsets removed: it may lie beyond
    the LRs tried. Disjoint from the law's: rejected. Meeting it, and both narrower than the range tried: validated.
    Anything else: cannot tell. `regret` is by the fitted basin, or, without an optimum, the mean loss at the LR nearest
    to the law's above the best; `regret_tokens` is what it is worth (`tokens_worth`).
    """
    target = {"batch_tokens": float(batch_tokens), "tokens": float(tokens)}
    if parameters is not None:
        target["parameters"] = float(parameters)
    try:
        predicted = law.predict(batch_tokens=batch_tokens, tokens=tokens, parameters=parameters)
    except ReachError as error:
        return Verdict("cannot tell", str(error), target, cast(Prediction, error.estimate), _none("no minimum"))
    limit = _lowest_divergence(results)
    if limit is not None and limit <= predicted.low * (1.0 + SAME):
        reason = f"all seeds diverged at {limit:.3g}, and the law's interval starts at {predicted.low:.3g}"
        return Verdict("rejected", reason, target, predicted, _none("edge low"))
    relative = all(bool(cell["optimum"].get("relative", True)) for cell in law.cells)
    tried = tabulate(results, relative=relative)
    lacking = _lacking(tried)
    if tried is None or lacking is not None:
        observed = _none("too few points", tried)
        regret = None if tried is None else _mean_regret(tried, predicted)
        worth = tokens_worth(law, regret, best=observed.loss, target=target)
        return Verdict("cannot tell", str(lacking), target, predicted, observed, regret, worth)
    basins = [cell["optimum"]["basin"] for cell in law.cells]
    posterior, used = posterior_of(
        tried, shape=shape_of(law.estimator), noise_sd=law.noise.get("seed_sd"), curvature=pooled_curvature(basins)
    )
    found = as_optimum(posterior, tried, used, confidence=law.confidence)
    span = posterior.interval(law.confidence)
    width = float(tried.log_lr[-1] - tried.log_lr[0])
    inside = tried.log_lr[0] < posterior.mean < tried.log_lr[-1]
    determined = bool(posterior.convex and inside and span[1] - span[0] < width)
    status, reason = _judge(predicted, span, width, determined=determined)
    observed = found if determined else _none(_where(tried), tried)
    regret = _basin_regret(found, predicted) if determined else _mean_regret(tried, predicted)
    worth = tokens_worth(law, regret, best=observed.loss, target=target)
    return Verdict(status, reason, target, predicted, observed, regret, worth)


def tokens_worth(law: Law, loss: float | None, *, best: float | None, target: Mapping[str, float]) -> float | None:
    """Return the tokens beyond the target's that make good a loss (nats) at the target; None where no slope is known.

    T (exp(loss / s) - 1), with s = -d loss / d ln T between whole runs, each at its own best LR: from the longest of
    the law's cells of the target's batch and model size to the held-out one. (Along one run a schedule's decay is in
    the slope.) The slope at the target is flatter than that over the way there where loss flattens: the tokens are
    then a lower bound. It holds for losses small beside s.
    """
    if loss is None or best is None:
        return None
    cells = [cell for cell in law.cells if _same_place(cell, target) and cell["optimum"].get("loss") is not None]
    if not cells:
        return None
    longest = max(cells, key=lambda cell: float(cell["tokens"]))
    slope = (longest["optimum"]["loss"] - best) / math.log(target["tokens"] / longest["tokens"])
    if not slope > 0.0 or loss > slope * MOST_OCTAVES * math.log(2.0):
        return None
    return float(target["tokens"] * math.expm1(loss / slope))


def _same_place(cell: Mapping[str, Json], target: Mapping[str, float]) -> bool:
    """Return whether a law's cell differs from the target in tokens alone, and has fewer."""
    sizes = (cell.get("parameters"), target.get("parameters", cell.get("parameters")))
    same = cell.get("batch_tokens") == target["batch_tokens"] and sizes[0] == sizes[1]
    return bool(same and cell.get("tokens", math.inf) < target["tokens"])


def _judge(predicted: Prediction, span: tuple[float, float], width: float, *, determined: bool) -> tuple[str, str]:
    """Return the status and why; `width` is ln of the highest LR tried over the lowest."""
    low, high = math.exp(span[0]), math.exp(span[1])
    said = f"the law says {predicted.low:.3g} to {predicted.high:.3g}"
    held = f"the held-out optimum lies in {low:.3g} to {high:.3g}, {said}"
    if high < predicted.low or low > predicted.high:
        return "rejected", f"{held}: apart"
    if not determined:
        return "cannot tell", f"the losses do not determine an optimum: {held}"
    if not math.log(predicted.high / predicted.low) < width:
        return "cannot tell", f"the law's interval is as wide as the LRs tried: {held}"
    return "validated", f"{held}: they meet"


def _lacking(tried: Tried | None) -> str | None:
    """Return what is missing for a verdict, or None."""
    if tried is None:
        return "no held-out trial gave a loss"
    finite = np.isfinite(tried.loss)
    if np.count_nonzero(finite) < MINIMUM_LRS:
        return f"needs losses at {MINIMUM_LRS} learning rates, got {np.count_nonzero(finite)}"
    paired = int(np.count_nonzero(np.isfinite(tried.residuals[finite]).all(axis=0)))
    if paired < MINIMUM_SEEDS:
        return f"needs {MINIMUM_SEEDS} seeds that ran at every learning rate, got {paired}"
    return None


def _lowest_divergence(results: Sequence[Result]) -> float | None:
    """Return the lowest LR from which on every seed tried diverged."""
    limit = None
    for lr in sorted({r.lr for r in results if r.outcome != "failed"}, reverse=True):
        if any(r.outcome != "diverged" for r in results if r.lr == lr and r.outcome != "failed"):
            break
        limit = lr
    return limit


def _where(tried: Tried) -> str:
    finite = np.flatnonzero(np.isfinite(tried.loss))
    return {finite[0]: "edge low", finite[-1]: "edge high"}.get(tried.best, "no minimum")


def _none(reason: str, tried: Tried | None = None) -> Optimum:
    if tried is None:
        return Optimum(None, None, None, None, None, reason)
    lr, loss = math.exp(float(tried.log_lr[tried.best])), float(tried.loss[tried.best])
    return Optimum(lr, None, None, None, None, reason, loss=loss)


def _basin_regret(found: Optimum, predicted: Prediction) -> float:
    assert found.lr is not None
    return max(0.0, found.fitted(predicted.lr) - found.fitted(found.lr))


def _mean_regret(tried: Tried, predicted: Prediction) -> float | None:
    nearest = int(np.argmin(np.abs(tried.log_lr - math.log(predicted.lr))))
    regret = float(tried.loss[nearest] - tried.loss[tried.best])
    return regret if math.isfinite(regret) else None
