"""One model of the loss over learning rate, batch, tokens and model size, whose optimum is the law."""

from sweeps.surrogate.fit import fit_surface
from sweeps.surrogate.posterior import Recommendation, Surface
from sweeps.surrogate.rows import Rows, rows_of

__all__ = ["Recommendation", "Rows", "Surface", "fit_surface", "rows_of"]
