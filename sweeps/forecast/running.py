"""What a run that is still going will end with: a curve law plus the run's own offset from it."""

from __future__ import annotations

import math

import numpy as np

from sweeps.errors import ConfigError, FitError
from sweeps.forecast.fitting import FittedCurveLaw
from sweeps.forecast.records import Floats, Forecast, LossCurve
from sweeps.forecast.spread import Spread, falls_gain, slopes_of, spread_of
from sweeps.optima.student import two_sided

# W parameters

LAST_POINTS = 10  # whose mean residual is the run's offset; science of the public curves (measured)
LEAST_SEEN = 5  # points after warm-up; assumed
PEAK_RANGE = 1.25  # a law is its peak LR's; up to this factor from those it was fitted on; assumed


def forecast_final(
    law: FittedCurveLaw, seen: LossCurve, *, confidence: float = 0.95, spread: Spread | None = None
) -> Forecast:
    """Return the loss at the last step of a run's path, from the points there are.

    ln final = ln law there + mean of (ln loss - ln law) over the last 10 points. The interval is t, on what the law's
    own curves say of its errors (`spread_of`; hand it in where one law forecasts many runs). Errors of the offset are
    in it as noise; that the run is of another recipe than the law's is not.

    Raises:
        FitError: under 5 points after warm-up, or a peak LR that is not the law's; its `estimate` is the forecast
            all the same, from the law alone where no point is past the warm-up.
        ConfigError: a confidence that is no share.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence: must be between 0 and 1, got {confidence:g}")
    settled = seen.settled
    answer = _forecast(law, settled, spread_of(law) if spread is None else spread, confidence=confidence)
    if len(settled) < LEAST_SEEN:
        raise FitError(
            f"{seen.name}: {len(settled)} points after the warm-up of {seen.path.warmup_steps} steps, "
            f"a forecast needs {LEAST_SEEN}",
            estimate=answer,
        )
    peak, peaks = float(seen.path.lr.max()), [float(curve.path.lr.max()) for curve in law.curves]
    if peaks and not min(peaks) / PEAK_RANGE <= peak <= max(peaks) * PEAK_RANGE:
        raise FitError(
            f"{seen.name}: its peak LR is {peak:.3g}, the law was fitted at {min(peaks):.3g} to {max(peaks):.3g}: "
            "its parameters are of that LR",
            estimate=answer,
        )
    return answer


def _forecast(law: FittedCurveLaw, settled: LossCurve, spread: Spread, *, confidence: float) -> Forecast:
    last = settled.where(np.arange(len(settled)) >= len(settled) - LAST_POINTS)
    end = np.array([len(settled.path)])
    slope_W: Floats = slopes_of(law, settled.path, end)[0]
    gain = float(falls_gain(law, settled.path, end)[0])
    log_final = math.log(float(law.predict(settled.path)[0]))
    offset = 0.0
    if len(last):
        offset = float(np.mean(law.residuals(last)))
        slope_W = slope_W - slopes_of(law, last.path, last.step).mean(axis=0)
        gain -= float(np.mean(falls_gain(law, last.path, last.step)))
    sd = spread.sd(slope_W=slope_W, gain=gain, offset=len(last) > 0)
    half = two_sided(confidence, dof=spread.dof) * sd
    middle = log_final + offset
    return Forecast(
        final=math.exp(middle),
        low=math.exp(middle - half),
        high=math.exp(middle + half),
        confidence=confidence,
        seen_points=len(settled),
        offset=offset,
    )
