"""Student's t in numpy and the standard library alone, so that a law can be read where scipy is not installed."""

from __future__ import annotations

import math

_TERMS = 300  # of the continued fraction; it converges in a few dozen at the dof of a sweep


MOST_CONFIDENCE = 1.0 - 1e-12  # beyond it rounding eats the tail, and the interval has no ends


def is_confidence(value: float) -> bool:
    """Return whether an interval can have this confidence: above 0, below 1 by what a float can tell apart."""
    return 0.0 < value <= MOST_CONFIDENCE


def t_cdf(t: float, *, dof: float) -> float:
    """Return P(T <= t). DLMF 8.17: half a regularised incomplete beta function."""
    if math.isinf(t):
        return 0.0 if t < 0 else 1.0
    tail = 0.5 * _beta(dof / (dof + t * t), 0.5 * dof, 0.5)
    return 1.0 - tail if t > 0 else tail


def t_quantile(probability: float, *, dof: float) -> float:
    """Return the t whose cdf is `probability`, by bisection to 1e-12.

    Raises:
        ValueError: probability outside (0, 1), or dof not positive.
    """
    if not 0.0 < probability < 1.0:
        raise ValueError(f"probability: must be in (0, 1), got {probability}")
    if not dof > 0.0:
        raise ValueError(f"dof: must be positive, got {dof}")
    if probability < 0.5:
        return -t_quantile(1.0 - probability, dof=dof)
    low, high = 0.0, 1.0
    while t_cdf(high, dof=dof) < probability:
        low, high = high, 2.0 * high
    while high - low > 1e-12 * max(1.0, high):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (middle, high) if t_cdf(middle, dof=dof) < probability else (low, middle)
    return 0.5 * (low + high)


def two_sided(confidence: float, *, dof: float) -> float:
    """Return the half-width, in standard errors, of a two-sided t interval."""
    return t_quantile(0.5 + 0.5 * confidence, dof=dof)


def _beta(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b)."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1.0) / (a + b + 2.0):  # the fraction converges fast on one side only: DLMF 8.17.4
        return 1.0 - _beta(1.0 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    return front * _fraction(x, a, b) / a


def _fraction(x: float, a: float, b: float) -> float:
    """Return the continued fraction of DLMF 8.17.22 by the modified Lentz algorithm."""
    tiny = 1e-300
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0) or tiny)
    value = d
    for m in range(1, _TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d = 1.0 / (1.0 + step * d or tiny)
            c = 1.0 + step / c or tiny
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value
