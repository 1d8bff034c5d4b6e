"""Plain JSON, and the content hash that is an identity."""

from __future__ import annotations

import hashlib
import json
from typing import Any

Json = Any  # None, bool, int, float, str, or lists and dicts of them: the edge where records meet files


def canonical_json(value: Json) -> str:
    """Return the one JSON text of a value: sorted names, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_key(value: Json) -> str:
    """Return the SHA-256 of the canonical JSON, 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def six_digits(value: float) -> float:
    """Return the value at six significant digits: grids then hash the same on every machine."""
    return float(f"{value:.6g}")
