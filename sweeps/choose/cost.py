"""What trials cost, where nothing better is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def trial_and_flops(places_P4: Floats) -> Floats:
    """Return what one seed at each place (lr, batch_tokens, tokens, parameters) costs, [P]: a trial, and its FLOPs.

    By FLOPs alone the shortest runs would be all that is chosen: they tell next to nothing of how the optimum moves.
    """
    flops_P = places_P4[:, 2] * places_P4[:, 3]
    return np.asarray(1.0 + flops_P / flops_P.mean())
