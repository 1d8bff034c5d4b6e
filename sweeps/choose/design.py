"""The places to start from, before anything is known: far from each other, none at the rim."""

# P places, C chosen

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

INNER = (0.6, 0.75)  # share of the range of ln lr and of ln B that is used: optima are seldom at the rim; assumed
BLUR = 0.3  # each distance is taken less up to this share, at random: another seed, another design; assumed


def spread_out(places_P4: Floats, count: int, *, rng: np.random.Generator) -> list[int]:
    """Return the indices of this many places, or fewer where there are not so many: each the farthest from the others.

    Distances are in logs, each axis (lr, batch_tokens, tokens, parameters) scaled by its range; on the inner part of
    the first two (Johnson, Moore and Ylvisaker 1990, maximin distance).
    """
    logs_P4 = np.log(places_P4)
    low_4, high_4 = logs_P4.min(axis=0), logs_P4.max(axis=0)
    scaled_P4 = (logs_P4 - low_4) / np.where(high_4 > low_4, high_4 - low_4, 1.0)
    off_centre_P2 = np.abs(2.0 * scaled_P4[:, :2] - 1.0)
    inner = np.flatnonzero((off_centre_P2 <= np.array(INNER)).all(axis=1) | (off_centre_P2.max(axis=1) == 0.0))
    if len(inner) < count:
        inner = np.arange(len(places_P4))
    chosen = [int(rng.choice(inner))]
    while len(chosen) < min(count, len(inner)):
        apart_PC = ((scaled_P4[inner, None] - scaled_P4[None, chosen]) ** 2).sum(axis=2)
        score = apart_PC.min(axis=1) * rng.uniform(1.0 - BLUR, 1.0, len(inner))
        score[np.isin(inner, chosen)] = -1.0
        chosen.append(int(inner[np.argmax(score)]))
    return chosen
