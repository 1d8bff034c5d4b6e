"""The loss gap: how far a recommended (lr, batch) is above the best of a cell, by a smooth surface of its runs."""

# R runs

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from sweeps.errors import ConfigError
from sweeps.replay.table import Table

Floats = NDArray[np.float64]

CEILING = 1.10  # runs above this many times the cell's best are left out of its surface; a choice
SMOOTHING = 0.005  # of the thin plate spline; a choice
GRID = 61  # points a side on which its minimum is sought; a choice
LEAST = 10  # runs of a cell


@dataclass(frozen=True)
class GapSurface:
    """A thin plate spline of loss / minimum - 1 over (log2 lr, log2 batch in tokens)."""

    spline: RBFInterpolator
    low: Floats
    high: Floats
    least: float

    @classmethod
    def of(cls, cell: Table) -> GapSurface:
        """Return the surface of one cell's runs. Raises ConfigError where too few ended well."""
        ended = np.isfinite(cell.loss)
        kept = cell.of(ended & (cell.loss < CEILING * np.min(cell.loss[ended], initial=np.inf)))
        points_R2 = np.log2(np.column_stack([kept.lr, kept.batch_tokens]))
        if len(kept) < LEAST or np.any(np.ptp(points_R2, axis=0) == 0.0):
            raise ConfigError(
                f"target: tokens {cell.tokens[0]:,.0f}, parameters {cell.parameters[0]:,.0f} has {len(kept)} runs near "
                f"its best; a loss gap needs {LEAST} at several learning rates and batches"
            )
        spline = RBFInterpolator(
            points_R2, kept.loss / kept.loss.min() - 1.0, kernel="thin_plate_spline", smoothing=SMOOTHING
        )
        low, high = points_R2.min(axis=0), points_R2.max(axis=0)
        sides = [np.linspace(low[i], high[i], GRID) for i in range(2)]
        grid = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 2)
        return cls(spline, low, high, float(spline(grid).min()))

    def gap_per_mille(self, lr: float, batch_tokens: float) -> float:
        """Return the loss there above the cell's minimum, in thousandths; outside the runs it is that at their rim."""
        at = np.clip(np.log2([lr, batch_tokens]), self.low, self.high)
        return 1000.0 * (float(self.spline(at[None])[0]) - self.least)
