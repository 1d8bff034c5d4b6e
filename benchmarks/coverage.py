"""How often the law's interval holds the best LR at a target four times outside the tokens fitted, over drawn laws.

    python benchmarks/coverage.py [--laws 2000] [--estimator NAME ...] [--seed 0] [--symmetric]

One generator draws a true law and a sweep of it: the design (3 to 5 batches, 3 to 5 token counts), the step of the LR
grid and how far it reaches beyond the optima (a cell whose best LR is on an edge grows as in a sweep), seeds, their
noise, the basin's curvature, asymmetry and walls, LRs that diverge, and how much cells scatter about the law. The sweep
goes through the product's own fit, and the 95 % interval of lr* is asked. Beside it, on the same optima, stand the
plain percentiles of a bootstrap over cells. A law that is refused, or whose reach ends before the target as its largest
cells were left out, is counted as refused. Prints a table and a JSON line.

What is reported is seed 0. Anything that is chosen is chosen on other seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sweeps.errors import FitError
from sweeps.laws.law import Law, fit_law
from sweeps.optima.basin import rise
from sweeps.optima.optimum import ESTIMATORS
from sweeps.optima.records import CellOptimum, Optimum
from sweeps.plan import grown_lrs
from sweeps.spec import LawSpec, Result

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
OUTSIDE = 4.0  # times the most tokens fitted
GROW = 2  # points a cell may add beyond each edge of the grid, as in a sweep
LEVEL = 2.3  # nats, the loss at every optimum
DRAWS = 400  # of the plain bootstrap over cells
NOT_FOUND = Optimum(None, None, None, None, None, "too few points")  # the fit finds them


@dataclass(frozen=True)
class Drawn:
    """A true law and what a sweep of it is like; logs are natural.

    Attributes:
        batches, tokens: of the grid of cells.
        exponents: of batch and tokens.
        scatter: sd of ln lr* between cells about the law.
        ratio: step of the LR grid.
        margin: how far (ln) the grid goes beyond the lowest and the highest optimum of the law; below 0: not so far.
        seeds: of each LR.
        noise: sd of a loss between seeds (nats), at the typical cell.
        curvature: second derivative of the loss in ln lr at the optimum (nats), at the typical cell.
        asymmetry: third over second derivative there, of the sweep, and its sd between cells.
        wall: nats times (ln lr - ln lr* - 1)^3 above one unit.
        diverges: ln lr above the optimum at which runs diverge; None: never.
        beyond: ln lr* at the target less that of the law: the target is a cell too, and scatters as they do.
    """

    batches: tuple[int, ...]
    tokens: tuple[int, ...]
    exponents: tuple[float, float]
    scatter: float
    ratio: float
    margin: tuple[float, float]
    seeds: int
    noise: float
    curvature: float
    asymmetry: tuple[float, float]
    wall: float
    diverges: float | None
    beyond: float

    def log_lr(self, batch_tokens: float, tokens: float) -> float:
        """Return ln lr* of the law."""
        p, q = self.exponents
        return -6.0 + p * math.log(batch_tokens / 1024) + q * math.log(tokens / 262144)

    @property
    def target(self) -> tuple[int, int]:
        """(batch, tokens) where the law is asked: the middle batch, and OUTSIDE times the most tokens."""
        return self.batches[len(self.batches) // 2], round(OUTSIDE * self.tokens[-1])


def draw(rng: np.random.Generator) -> Drawn:
    """Return one law and its sweep."""
    spacing = int(rng.choice([2, 4]))
    scatter = float(rng.choice([0.0, rng.uniform(0.0, 0.1)]))
    return Drawn(
        batches=tuple(256 * spacing**i for i in range(int(rng.integers(3, 6)))),
        tokens=tuple(131072 * 2**i for i in range(int(rng.integers(3, 6)))),
        exponents=(float(rng.normal(0.4, 0.2)), float(rng.normal(-0.2, 0.15))),
        scatter=scatter,
        ratio=float(rng.choice([math.sqrt(2.0), 2.0, 2.0 * math.sqrt(2.0)])),
        margin=(float(rng.uniform(-0.7, 1.4)), float(rng.uniform(-0.7, 1.4))),
        seeds=int(rng.integers(1, 4)),
        noise=math.exp(rng.uniform(math.log(0.002), math.log(0.03))),
        curvature=math.exp(rng.uniform(math.log(0.06), math.log(0.4))),
        asymmetry=(float(rng.normal(0.7, 0.4)), 0.2),
        wall=float(rng.choice([0.0, 0.5, 2.0])),
        diverges=float(rng.uniform(0.8, 2.5)) if rng.random() < 0.5 else None,
        beyond=float(scatter * rng.normal()),
    )


def cells_of(drawn: Drawn, rng: np.random.Generator) -> list[CellOptimum]:
    """Return the cells of the sweep with their results, growth included."""
    places = list(itertools.product(drawn.batches, drawn.tokens))
    centres = [drawn.log_lr(*place) for place in places]
    low, high = min(centres) - drawn.margin[0], max(centres) + drawn.margin[1]
    points = max(5, 1 + math.ceil((high - low) / math.log(drawn.ratio)))
    start = 0.5 * (low + high) - 0.5 * (points - 1) * math.log(drawn.ratio)
    grid = [math.exp(start + i * math.log(drawn.ratio)) for i in range(points)]
    return [_cell(drawn, *place, grid=grid, rng=rng) for place in places]


def _cell(
    drawn: Drawn, batch_tokens: int, tokens: int, *, grid: Sequence[float], rng: np.random.Generator
) -> CellOptimum:
    """Return one cell: its own optimum, asymmetry and noise, and what a growing grid finds."""
    best = drawn.log_lr(batch_tokens, tokens) + drawn.scatter * rng.normal()
    asymmetry = rng.normal(*drawn.asymmetry)
    curvature, noise = drawn.curvature * math.exp(rng.normal(0.0, 0.3)), drawn.noise * math.exp(rng.normal(0.0, 0.4))
    offsets = 0.05 * rng.normal(size=drawn.seeds)
    limits = best + (math.inf if drawn.diverges is None else drawn.diverges) + 0.1 * rng.normal(size=drawn.seeds)

    def run(lr: float) -> list[Result]:
        x = math.log(lr) - best
        loss = LEVEL + curvature * float(rise(np.array(x), asymmetry)) + drawn.wall * max(0.0, x - 1.0) ** 3
        losses = loss + offsets + noise * rng.normal(size=drawn.seeds)
        ends = [y > 2.0 * LEVEL or x + best > limits[s] for s, y in enumerate(losses)]
        return [
            Result(f"{batch_tokens}-{tokens}-{lr:.6g}-{s}", lr, s, None, "diverged")
            if ends[s]
            else Result(f"{batch_tokens}-{tokens}-{lr:.6g}-{s}", lr, s, float(y), "finished")
            for s, y in enumerate(losses)
        ]

    results = [result for lr in grid for result in run(lr)]
    while True:
        low, high = (sum(1 for x in {r.lr for r in results} if out(x)) for out in (grid[0].__gt__, grid[-1].__lt__))
        more = grown_lrs({"cell": results}, grow=GROW, added_low=low, added_high=high)
        if not more:
            break
        results += [result for lr in more for result in run(lr)]
    name = f"batch {batch_tokens}, tokens {tokens}"
    return CellOptimum(name, name, batch_tokens, tokens, 1, NOT_FOUND, tuple(results))


def laws(count: int, *, seed: int, symmetric: bool = False) -> Iterator[tuple[Drawn, list[CellOptimum]]]:
    """Return drawn laws, each with its sweep; the n-th is the same whatever their count.

    `symmetric`: every basin is a parabola, which is what the estimator `quadratic` takes for granted.
    """
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        drawn = draw(rng)
        if symmetric:
            drawn = replace(drawn, asymmetry=(0.0, 0.0), wall=0.0)
        yield drawn, cells_of(drawn, rng)


@dataclass(frozen=True)
class Told:
    """What one interval said at the target: whether it held the truth, its width (ln) and its centre's error."""

    hit: bool
    width: float
    error: float


def by_law(drawn: Drawn, cells: Sequence[CellOptimum], *, estimator: str, key: str) -> tuple[Told, Law] | None:
    """Return what the product's law says at the target, and the law; None: refused."""
    try:
        law = fit_law(
            cells, spec=LawSpec(estimator=estimator, confidence=CONFIDENCE), recipe={}, sweep_key=key, version="0"
        )
        return told(law, drawn), law
    except FitError:
        return None


def told(law: Law, drawn: Drawn) -> Told:
    """Return what a law says at the target. Raises ReachError."""
    batch_tokens, tokens = drawn.target
    found = law.predict(batch_tokens=batch_tokens, tokens=tokens)
    return _told(math.log(found.low), math.log(found.high), math.log(found.lr), drawn)


def _told(low: float, high: float, centre: float, drawn: Drawn) -> Told:
    truth = drawn.log_lr(*drawn.target) + drawn.beyond
    return Told(low <= truth <= high, high - low, centre - truth)


def by_percentiles(law: Law, drawn: Drawn, *, rng: np.random.Generator) -> Told:
    """Return what percentiles of a bootstrap over the law's cells say: plain least squares on cells drawn anew."""
    rows = np.array([[1.0, math.log(c["batch_tokens"]), math.log(c["tokens"])] for c in law.cells])
    centre_U = rows.mean(axis=0) * [0, 1, 1]
    design = rows - centre_U
    log_lr = np.array([math.log(c["optimum"]["lr"]) for c in law.cells])
    batch_tokens, tokens = drawn.target
    row = np.array([1.0, math.log(batch_tokens), math.log(tokens)]) - centre_U
    drawn_RC = rng.integers(0, len(design), size=(DRAWS, len(design)))
    fits = np.linalg.pinv(design[drawn_RC]) @ log_lr[drawn_RC][:, :, None]
    whole = np.linalg.matrix_rank(design[drawn_RC]) == len(row)
    said = fits[whole, :, 0] @ row
    tail = 50.0 * (1.0 - CONFIDENCE)
    low, high = np.percentile(said, [tail, 100.0 - tail])
    centre = float(row @ np.linalg.lstsq(design, log_lr, rcond=None)[0])
    return _told(float(low), float(high), centre, drawn)


def measure(
    count: int, *, seed: int, estimators: Sequence[str], symmetric: bool = False
) -> dict[str, list[Told | None]]:
    """Return, for each estimator by the law and by percentiles, what was told of each drawn law."""
    found: dict[str, list[Told | None]] = {}
    for number, (drawn, cells) in enumerate(laws(count, seed=seed, symmetric=symmetric)):
        for name in estimators:
            said = by_law(drawn, cells, estimator=name, key=str(number))
            plain = None if said is None else by_percentiles(said[1], drawn, rng=np.random.default_rng(number))
            found.setdefault(name, []).append(None if said is None else said[0])
            found.setdefault(f"{name}, percentiles", []).append(plain)
    return found


def summary(answers: Sequence[Told | None]) -> dict[str, float]:
    """Return coverage with its binomial error, mean and median width (ln), rms error and the share refused."""
    given = [a for a in answers if a is not None]
    hits = sum(a.hit for a in given) / max(1, len(given))
    widths = [a.width for a in given] or [math.nan]
    return {
        "coverage": hits,
        "coverage_sd": math.sqrt(hits * (1.0 - hits) / max(1, len(given))),
        "mean_width": float(np.mean(widths)),
        "median_width": float(np.median(widths)),
        "rms_error": float(np.sqrt(np.mean([a.error**2 for a in given] or [math.nan]))),
        "refused": 1.0 - len(given) / len(answers),
    }


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--laws", type=int, default=2000)
    parser.add_argument("--estimator", nargs="+", choices=list(ESTIMATORS), default=list(ESTIMATORS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--symmetric", action="store_true", help="every basin is a parabola")
    options = parser.parse_args()
    started = time.monotonic()
    told_of = measure(options.laws, seed=options.seed, estimators=options.estimator, symmetric=options.symmetric)
    found = {name: summary(answers) for name, answers in told_of.items()}
    print(f"{'interval':<28}{'coverage':>16}{'mean width':>12}{'median':>9}{'rms error':>11}{'refused':>9}")
    for name, said in found.items():
        covered = f"{100 * said['coverage']:.1f} ± {100 * said['coverage_sd']:.1f} %"
        print(
            f"{name:<28}{covered:>16}{said['mean_width']:>12.3f}{said['median_width']:>9.3f}"
            f"{said['rms_error']:>11.3f}{100 * said['refused']:>7.1f} %"
        )
    seconds = round(time.monotonic() - started)
    print(json.dumps({"laws": options.laws, "seed": options.seed, "seconds": seconds, "intervals": found}))


if __name__ == "__main__":
    main()
