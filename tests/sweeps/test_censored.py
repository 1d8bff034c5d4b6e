from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest

from sweeps.laws import powerlaw
from sweeps.optima.records import CellOptimum, Optimum
from sweeps.spec import Result

BATCHES, TOKENS = (256, 1024, 4096), (131072, 262144, 524288)


def true(batch: float, tokens: float) -> float:
    return 0.01 * (batch / 1024) ** 0.4 * (tokens / 262144) ** -0.2


def drawn(*, scatter=0.03) -> list[CellOptimum]:
    rng = np.random.default_rng(0)
    cells = []
    for b, t in itertools.product(BATCHES, TOKENS):
        lr = true(b, t) * math.exp(scatter * rng.normal())
        cells.append(CellOptimum(f"{b}-{t}", f"{b}-{t}", b, t, 1, Optimum(lr, lr / 1.1, lr * 1.1, scatter, 8.0, None)))
    return cells


def on_edge(cell: CellOptimum, reason: str, lrs: tuple[float, ...]) -> CellOptimum:
    best = lrs[0] if reason == "edge low" else lrs[-1]
    results = tuple(Result(f"{cell.key} {lr:g}", lr, 0, 2.0, "finished") for lr in lrs)
    return dataclasses.replace(cell, optimum=Optimum(best, None, None, None, None, reason), results=results)


def reasons(cells) -> list[str]:
    return [why for _, _, why in powerlaw.fit(cells, ("batch_tokens", "tokens"), seed="s").left_out]


@pytest.mark.parametrize(
    ("reason", "lrs", "said"),
    [
        ("edge high", (0.01, 0.02, 0.04), "edge high: the law says 0.01, the best tried 0.04"),
        ("edge low", (0.0025, 0.005, 0.01), "edge low: the law says 0.01, the best tried 0.0025"),
        ("edge high", (0.001, 0.002, 0.004), "edge high"),  # the optimum is above 0.004, as the law says
        ("edge low", (0.04, 0.08, 0.16), "edge low"),
        ("edge high", (0.005, 0.0095, 0.019), "edge high"),  # it may lie between the last two
        ("no minimum", (0.01, 0.02, 0.04), "no minimum"),
    ],
)
def test_a_law_that_an_edge_denies_is_told_so(reason, lrs, said):
    cells = drawn()
    cells[4] = on_edge(cells[4], reason, lrs)
    told = reasons(cells)
    assert len(told) == 1
    assert told[0].split(":")[0] == said.split(":")[0]
    assert (":" in told[0]) == (":" in said)
    if ":" in said:
        assert told[0].startswith(said[: said.index(" says")])
        assert told[0].endswith(said[said.index("the best") :])


def test_an_edge_that_denies_the_law_never_moves_it():
    cells = drawn()
    told = [on_edge(c, "edge high", (0.02, 0.2)) if c.key == cells[4].key else c for c in cells]
    line = powerlaw.fit(told, ("batch_tokens", "tokens"), seed="s")
    without = powerlaw.fit([c for c in cells if c.key != cells[4].key], ("batch_tokens", "tokens"), seed="s")
    assert line.coefficients == without.coefficients
    assert line.covariance == without.covariance


def test_cells_that_scatter_as_much_as_an_edge_denies_are_no_contradiction():
    cells = drawn(scatter=0.8)
    cells[4] = on_edge(cells[4], "edge high", (0.005, 0.014, 0.02))
    assert reasons(cells) == ["edge high"]
