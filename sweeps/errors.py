"""The errors of powersweep, as a tree.

SweepError
├── ConfigError    the input is wrong: one line with the place, what came, what must be (exit 2)
├── FitError       the data do not support the fit; carries the estimate there is (exit 1)
├── ReachError     a law asked beyond its reach; carries the estimate there is (exit 1)
├── StoreError     a store is unreachable, read-only, full or corrupt (exit 2)
└── LeaseError     another driver holds the sweep; names it (exit 1)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SweepError(Exception):
    """The root of all errors a user may see."""

    exit_code = 1


class ConfigError(SweepError):
    """A sweep, a name or a value that cannot be used."""

    exit_code = 2


class FitError(SweepError):
    """A fit that its data do not support; `estimate` holds what could be said, or None."""

    def __init__(self, message: str, *, estimate: object | None = None) -> None:
        super().__init__(message)
        self.estimate = estimate


class ReachError(FitError):
    """A prediction beyond the reach of its law; `estimate` holds the refused number."""


class StoreError(SweepError):
    """A checkpoint store or tracking server that cannot be used."""

    exit_code = 2


class LeaseError(SweepError):
    """A sweep that another driver is running."""


def unknown_name(where: str, name: object, valid: Iterable[str], what: str = "name") -> ConfigError:
    """Return the error for a name that is not in a table, with the nearest one and all valid ones."""
    names = sorted(valid)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return ConfigError(f"{where}: no {what} {name!r}{hint}. It has: {', '.join(names)}")
