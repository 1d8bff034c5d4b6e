"""How well a curve law fitted on some recorded curves says the others."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import rankdata

from sweeps.errors import ConfigError, unknown_name
from sweeps.forecast.fitting import FittedCurveLaw, fit_curves
from sweeps.forecast.form import CurveForm
from sweeps.forecast.records import Floats, LossCurve
from sweeps.spec import Json

LEAST_AFTER = 3  # points for an R2; fewer say nothing
SAME_LENGTH = 0.99  # of the longest: logs of equal runs end at different rows; assumed


@dataclass(frozen=True, slots=True)
class CurveScore:
    """What a law says of one curve, against the truth; points of the warm-up are left out.

    Attributes:
        name: of the curve.
        fitted: whether the law was fitted on it.
        steps: length of its schedule.
        points: number scored.
        mae: mean absolute error, nats.
        mape: the same as a share of the loss, in percent.
        r2: of the whole curve; None where its losses do not vary.
        leaves_step: the last step up to which its LRs are those of a curve that was fitted; None for a fitted curve.
        r2_after: of the steps after that; None for a fitted curve or under three points.
        final_step: step of the last point.
        final_loss, final_predicted: loss there, true and predicted.
    """

    name: str
    fitted: bool
    steps: int
    points: int
    mae: float
    mape: float
    r2: float | None
    leaves_step: int | None
    r2_after: float | None
    final_step: int
    final_loss: float
    final_predicted: float

    @property
    def final_error(self) -> float:
        """Distance of the predicted final loss from the true one, nats."""
        return abs(self.final_predicted - self.final_loss)


@dataclass(frozen=True, slots=True)
class Ranking:
    """The curves of one length (to 1 %; `steps` is the longest), best first: as predicted and as it was."""

    steps: int
    predicted: tuple[str, ...]
    true: tuple[str, ...]
    spearman: float | None


@dataclass(frozen=True, eq=False)
class CurvesReplay:
    """A law, what it says of every curve, and the rankings of curves of one length."""

    law_name: str
    law: FittedCurveLaw
    scores: tuple[CurveScore, ...]
    rankings: tuple[Ranking, ...]

    @property
    def held_out(self) -> tuple[CurveScore, ...]:
        """Scores of the curves that were not fitted."""
        return tuple(score for score in self.scores if not score.fitted)

    @property
    def spearman(self) -> float | None:
        """Rank correlation in the largest group of curves of one length (the longest of several)."""
        return self.rankings[0].spearman if self.rankings else None

    def mean(self, name: str) -> float | None:
        """Return the mean of a score over the held-out curves that have it."""
        found = [value for score in self.held_out if (value := getattr(score, name)) is not None]
        return statistics.fmean(found) if found else None

    def to_json(self) -> Json:
        """Return plain JSON; means are over the curves not fitted on."""
        return {
            "law": self.law_name,
            "warmup": self.law.form.warmup,
            "parameters": self.law.parameters,
            "fitted_on": list(self.law.fitted_on),
            "mae": self.mean("mae"),
            "mape": self.mean("mape"),
            "r2": self.mean("r2"),
            "r2_after": self.mean("r2_after"),
            "final_error_mean": self.mean("final_error"),
            "final_error_max": max(score.final_error for score in self.held_out),
            "spearman": self.spearman,
            "rankings": [asdict(ranking) for ranking in self.rankings],
            "curves": [{**asdict(score), "final_error": score.final_error} for score in self.scores],
        }


def replay_curves(
    curves: Mapping[str, LossCurve], fit: Sequence[str], *, form: CurveForm, law_name: str
) -> CurvesReplay:
    """Return the scores of a law fitted on some of the curves.

    Raises:
        ConfigError: a name that is no curve, or no curve left to predict.
        FitError: curves that the law cannot be fitted on.
    """
    for name in fit:
        if name not in curves:
            raise unknown_name("--fit", name, curves, "curve")
    if not fit or not set(curves) - set(fit):
        raise ConfigError("--fit: must name some of the curves and leave one to predict")
    chosen = list(dict.fromkeys(fit))
    law = fit_curves([curves[name] for name in chosen], form)
    scores = tuple(
        _score(curve, law, trained=[curves[n] for n in chosen], fitted=name in chosen)
        for name, curve in sorted(curves.items())
        if len(curve.settled)
    )
    return CurvesReplay(law_name, law, scores, _rankings(scores))


def _score(curve: LossCurve, law: FittedCurveLaw, *, trained: Sequence[LossCurve], fitted: bool) -> CurveScore:
    seen = curve.settled
    loss_P, found_P = seen.loss, law.predict(seen.path, seen.step)
    error_P = np.abs(found_P - loss_P)
    leaves = None if fitted else max(curve.path.shares(other.path) for other in trained)
    after_P = np.zeros(len(seen), dtype=bool) if leaves is None else seen.step > leaves
    return CurveScore(
        name=curve.name,
        fitted=fitted,
        steps=len(curve.path),
        points=len(seen),
        mae=float(error_P.mean()),
        mape=float(100 * (error_P / loss_P).mean()),
        r2=_r2(loss_P, found_P),
        leaves_step=leaves,
        r2_after=_r2(loss_P[after_P], found_P[after_P]) if after_P.sum() >= LEAST_AFTER else None,
        final_step=int(seen.step[-1]),
        final_loss=float(loss_P[-1]),
        final_predicted=float(found_P[-1]),
    )


def _r2(true_P: Floats, found_P: Floats) -> float | None:
    """Return the share of the variance that is explained; None where nothing varies, or beyond what a float holds."""
    with np.errstate(over="ignore", invalid="ignore"):
        spread = float(np.sum((true_P - true_P.mean()) ** 2))
        missed = float(np.sum((true_P - found_P) ** 2))
    return 1 - missed / spread if 0 < spread < math.inf and missed < math.inf else None


def _spearman(found: Sequence[float], true: Sequence[float]) -> float | None:
    """Return the rank correlation; None where all are equal."""
    a, b = rankdata(found), rankdata(true)
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else None


def _rankings(scores: Sequence[CurveScore]) -> tuple[Ranking, ...]:
    """Return a ranking for every length that two curves or more have, the largest group first, then the longest."""
    groups: list[list[CurveScore]] = []
    for score in sorted(scores, key=lambda s: (-s.steps, s.name)):
        if groups and score.steps >= SAME_LENGTH * groups[-1][0].steps:
            groups[-1].append(score)
        else:
            groups.append([score])
    found = []
    for group in groups:
        if len(group) < 2:
            continue
        predicted = sorted(group, key=lambda s: (s.final_predicted, s.name))
        true = sorted(group, key=lambda s: (s.final_loss, s.name))
        rank = _spearman([s.final_predicted for s in group], [s.final_loss for s in group])
        found.append(Ranking(group[0].steps, tuple(s.name for s in predicted), tuple(s.name for s in true), rank))
    return tuple(sorted(found, key=lambda ranking: (-len(ranking.true), -ranking.steps)))
