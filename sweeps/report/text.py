"""Numbers as people read them."""

from __future__ import annotations

import math

from sweeps.optima.records import Optimum

SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def lr_text(lr: float, digits: int = 3) -> str:
    """Return an LR in short scientific form: 0.00193 -> "1.93e-3"."""
    mantissa, exponent = f"{lr:.{digits - 1}e}".split("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"


def interval_text(low: float | None, high: float | None) -> str:
    """Return "[low, high]", or a dash where there is none."""
    if low is None or high is None:
        return "-"
    return f"[{lr_text(low)}, {lr_text(high)}]"


def count_text(count: float, digits: int = 3) -> str:
    """Return a count with a suffix: 524288 -> "524k", 1048576 -> "1.05M"."""
    for scale, suffix in SUFFIXES:
        if count >= scale * (1 - 0.5 * 10.0**-digits):
            return f"{_plain(count / scale, digits)}{suffix}"
    return _plain(count, digits)


def optimum_text(optimum: Optimum) -> str:
    """Return an optimum with its interval, or that there is none, why, and the best LR tried."""
    if optimum.lr is None:
        return f"no optimum ({optimum.censored or 'no trial ended'})"
    if optimum.censored is not None:
        return f"no optimum ({optimum.censored}; best tried {lr_text(optimum.lr)})"
    return f"{lr_text(optimum.lr)} {interval_text(optimum.low, optimum.high)}"


def exact_text(count: float) -> str:
    """Return a count in full up to five digits, with a suffix beyond: 1024 -> "1,024", 524288 -> "524k"."""
    return f"{count:,.0f}" if count < 1e5 else count_text(count)


def _plain(value: float, digits: int) -> str:
    places = max(digits - 1 - math.floor(math.log10(value)), 0) if value >= 1 else digits - 1
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def seconds_text(seconds: float) -> str:
    """Return a duration in its two largest units: 192 -> "3 min 12 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.3g} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
