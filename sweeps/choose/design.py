"""The places to start from, before anything is known: far from each other, none at the rim; or where a law says."""

# P places, C chosen, G groups of one (tokens, parameters)

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sweeps.laws.published import PUBLISHED, Question, published

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


def start_of(places_P4: Floats, count: int, *, rng: np.random.Generator, law: str | None = None) -> list[int]:
    """Return the indices of the places to start from: spread out, and of a published law its answers among them.

    A law gets at most half of them, one for each (tokens, parameters), the dearest first.

    Raises:
        ConfigError: no such law, or it needs to know more than tokens, parameters and a batch.
        FitError: the law has no answer there.
    """
    said = said_by(law, places_P4)[: max(1, count // 2)] if law is not None else []
    others = [i for i in spread_out(places_P4, count, rng=rng) if i not in said]
    return [*said, *others][:count]


def starting_laws() -> tuple[str, ...]:
    """Return the published laws that answer from tokens, parameters and a batch alone."""
    known = {"tokens", "parameters", "batch_tokens", "compute_flops", "tokens_per_parameter"}
    return tuple(name for name, law in PUBLISHED.items() if known.issuperset(law.lr.needs))


def said_by(law: str, places_P4: Floats) -> list[int]:
    """Return the index of the place nearest to a published law's LR and batch in each (tokens, parameters).

    Where the law has no batch, or is asked at one, the middle batch of the places is taken. Raises as `start_of`.
    """
    groups_G2 = np.unique(places_P4[:, 2:], axis=0)
    batches = np.unique(places_P4[:, 1])
    middle = float(batches[len(batches) // 2])
    found = []
    for tokens, parameters in sorted(groups_G2.tolist(), key=lambda group: -group[0] * group[1]):
        size = parameters if parameters > 1.0 else None  # 1 stands for a size that is not known
        answer = published(law).ask(Question(tokens=tokens, parameters=size, batch_tokens=middle))
        there = np.flatnonzero((places_P4[:, 2] == tokens) & (places_P4[:, 3] == parameters))
        apart_P2 = np.log(places_P4[there, :2] / np.array([answer.lr, answer.batch_tokens or middle]))
        found.append(int(there[np.argmin((apart_P2**2).sum(axis=1))]))
    return found
