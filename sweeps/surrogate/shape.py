"""The loss over (lr, B, T, N) as a formula, with its slopes (docs/laws.md, "The joint surrogate").

ln L = ln(E + A N^-alpha + C T^-beta) + h r(u; k) + hB r(v; kB),   r(x; k) = (exp(kx) - 1 - kx) / k^2
v    = ln B - ln B*,       ln B*  = b0 + bT ln T + bN ln N                        the best batch
u    = ln lr - ln lr*(B),  ln lr*(B) = m0 + mT ln T + mN ln N + p v - c v^2 / 2   the best LR at a batch

Both basins are those of `sweeps.optima.basin` (Varian's LINEX, 1975). At the best batch (v = 0) the best LR is a power
law in T and N: the batch free law. At another batch it moves as B^p near the best one and saturates beyond (c > 0): the
exponent of T at a fixed batch then depends on the batch, as it does in the dense runs of Step Law (arXiv:2503.04715).
The level is Chinchilla's (arXiv:2203.15556, eq. 2). T and N are about the middle of the data.
"""

# R rows, U unknowns, G groups of one (tokens, parameters), W = U + 3 G: each group's own level, ln lr* and ln B*

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NAMES = (
    *("ln_e", "ln_a", "alpha", "ln_c", "beta"),  # the level
    *("m0", "mT", "mN", "p", "c"),  # the best LR
    *("b0", "bT", "bN"),  # the best batch
    *("ln_h", "k", "ln_hB", "kB", "hT", "hBT"),  # the basins: curvatures move as T^hT and T^hBT
)
AT = {name: i for i, name in enumerate(NAMES)}
SAME = 1e-6  # ln T or ln N nearer than this are one
STEEP = 8.0  # r is followed up to kx = 8: 3,000 times its curvature; beyond it is a straight line


def loss_at(unknowns_U: Floats, x_R4: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the level [R], the height above it [R], and the slopes [R, U] of their sum in the unknowns.

    Args:
        unknowns_U: in the order of NAMES.
        x_R4: ln lr, ln B, ln T and ln N, the last two about the middle.
    """
    th = dict(zip(NAMES, unknowns_U.tolist(), strict=True))
    lr, batch, t, n = x_R4.T
    parts_3R = np.stack([np.full_like(t, th["ln_e"]), th["ln_a"] - th["alpha"] * n, th["ln_c"] - th["beta"] * t])
    top_R = parts_3R.max(axis=0)
    share_3R = np.exp(parts_3R - top_R)
    level_R = top_R + np.log(share_3R.sum(axis=0))
    share_3R /= share_3R.sum(axis=0)

    v = batch - (th["b0"] + th["bT"] * t + th["bN"] * n)
    u = lr - (th["m0"] + th["mT"] * t + th["mN"] * n + th["p"] * v - 0.5 * th["c"] * v * v)
    h_R, hb_R = np.exp(th["ln_h"] + th["hT"] * t), np.exp(th["ln_hB"] + th["hBT"] * t)
    rise_u, slope_u, bend_u = linex(u, th["k"])
    rise_v, slope_v, bend_v = linex(v, th["kB"])
    by_lr, by_batch = h_R * rise_u, hb_R * rise_v

    slopes = np.empty((len(t), len(NAMES)))
    put = _Put(slopes)
    put(ln_e=share_3R[0], ln_a=share_3R[1], alpha=-n * share_3R[1], ln_c=share_3R[2], beta=-t * share_3R[2])
    down = -h_R * slope_u  # by ln lr*
    put(m0=down, mT=down * t, mN=down * n, p=down * v, c=-0.5 * down * v * v)
    aside = -(down * (th["p"] - th["c"] * v) + hb_R * slope_v)  # by ln B*
    put(b0=aside, bT=aside * t, bN=aside * n)
    put(ln_h=by_lr, k=h_R * bend_u, ln_hB=by_batch, kB=hb_R * bend_v, hT=by_lr * t, hBT=by_batch * t)
    return level_R, by_lr + by_batch, slopes


def model_at(unknowns_W: Floats, x_R4: Floats, group_RG: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the same as `loss_at` where groups have a level, a best LR and a best batch beside those of the formula.

    Args:
        unknowns_W: those of the formula, then G own levels, G own ln lr*, G own ln B*.
        x_R4: as in `loss_at`.
        group_RG: 1 where the row is of the group; a row may be of none.
    """
    level_G, lr_G, batch_G = unknowns_W[len(NAMES) :].reshape(3, -1)
    # an optimum that is higher is the same as an LR or a batch that is lower
    moved_R4 = x_R4 - np.column_stack([group_RG @ lr_G, group_RG @ batch_G, np.zeros((len(x_R4), 2))])
    level_R, height_R, slopes_RU = loss_at(unknowns_W[: len(NAMES)], moved_R4)
    by_lr, by_batch = slopes_RU[:, AT["m0"], None], slopes_RU[:, AT["b0"], None]
    slopes_RW = np.hstack([slopes_RU, group_RG, group_RG * by_lr, group_RG * by_batch])
    return level_R + group_RG @ level_G, height_R, slopes_RW


def membership(places_R4: Floats, groups_G2: Floats) -> Floats:
    """Return [R, G]: 1 where a row is of a group, by ln T and ln N."""
    apart_RG2 = np.abs(places_R4[:, None, 2:] - groups_G2[None, :, :])
    return np.asarray((apart_RG2 < SAME).all(axis=2), dtype=np.float64)


def best_batch(unknowns_U: Floats, t: float, n: float) -> tuple[float, Floats]:
    """Return ln B* at (ln T, ln N), and its slopes [U]."""
    slopes = np.zeros(len(NAMES))
    slopes[[AT["b0"], AT["bT"], AT["bN"]]] = 1.0, t, n
    return float(slopes @ unknowns_U), slopes


def best_lr(unknowns_U: Floats, t: float, n: float, *, batch: float | None) -> tuple[float, Floats]:
    """Return ln lr* at (ln T, ln N) and ln B, and its slopes [U]; batch None: at the best batch."""
    slopes = np.zeros(len(NAMES))
    slopes[[AT["m0"], AT["mT"], AT["mN"]]] = 1.0, t, n
    if batch is None:
        return float(slopes @ unknowns_U), slopes
    best, of_best = best_batch(unknowns_U, t, n)
    v, p, c = batch - best, unknowns_U[AT["p"]], unknowns_U[AT["c"]]
    slopes[[AT["p"], AT["c"]]] = v, -0.5 * v * v
    value = float(slopes @ unknowns_U)
    return value, slopes - (p - c * v) * of_best


def linex(x: Floats, k: float) -> tuple[Floats, Floats, Floats]:
    """Return r(x; k), and its slopes in x and in k."""
    kx = k * x
    near = np.abs(kx) < 1e-3
    safe = np.where(near, 1.0, np.minimum(kx, STEEP))
    x_safe = np.where(near, 1.0, np.where(kx > STEEP, STEEP / k if k else 1.0, x))
    grown = np.expm1(safe)
    k_safe = safe / x_safe
    rise = np.where(near, x * x * (0.5 + kx / 6.0), (grown - safe) / k_safe**2)
    slope = np.where(near, x * (1.0 + 0.5 * kx), grown / k_safe)
    bend = np.where(near, x**3 / 6.0, (x_safe * grown - 2.0 * (grown - safe) / k_safe) / k_safe**2)
    beyond = np.where(kx > STEEP, x - x_safe, 0.0)
    return rise + slope * beyond, slope, bend


class _Put:
    """Writes columns by name."""

    def __init__(self, slopes: Floats) -> None:
        self._slopes = slopes

    def __call__(self, **columns: Floats) -> None:
        for name, column in columns.items():
            self._slopes[:, AT[name]] = column
