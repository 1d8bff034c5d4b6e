"""Real data: text as tokens, and images."""

from __future__ import annotations

from pathlib import Path

from workloads.base import DataError


def at_home(path: str, field: str) -> Path:
    """Return a path, the `~` it may start with filled in. Raises DataError where that home is not known."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{field}: the home folder that {path} starts with is not known") from error
