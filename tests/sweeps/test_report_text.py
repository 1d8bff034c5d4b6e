"""How a report writes numbers and arranges panels."""

from __future__ import annotations

from sweeps.optima.records import CellOptimum, Optimum
from sweeps.report.look import arrange
from sweeps.report.text import count_text, exact_text, interval_text, lr_text, seconds_text


def test_numbers_read_well() -> None:
    assert [lr_text(x) for x in (1.93e-3, 2e-3, 0.016, 1.0, 9.999e-4)] == ["1.93e-3", "2e-3", "1.6e-2", "1e0", "1e-3"]
    assert [count_text(x) for x in (0, 5, 999, 1000, 4096, 524_288, 999_999, 1_048_576, 2.5e12)] == (
        ["0", "5", "999", "1k", "4.1k", "524k", "1M", "1.05M", "2.5T"]
    )
    assert [exact_text(x) for x in (1024.0, 99_999, 131_072)] == ["1,024", "99,999", "131k"]
    assert interval_text(1e-3, 2e-3) == "[1e-3, 2e-3]"
    assert interval_text(None, None) == "-"
    assert [seconds_text(x) for x in (0.5, 59.0, 192, 7_260)] == ["0.5 s", "59 s", "3 min 12 s", "2 h 1 min"]


def a_cell(batch_tokens: int, tokens: int) -> CellOptimum:
    nothing = Optimum(lr=None, low=None, high=None, log_sd=None, dof=None, censored="too few points")
    return CellOptimum(f"{batch_tokens}-{tokens}", "", batch_tokens, tokens, 1000, nothing)


def test_cells_of_a_full_grid_stand_in_rows_of_equal_batch_and_a_sparse_one_is_wrapped() -> None:
    full = [a_cell(b, t) for t in (1024, 2048) for b in (16, 32, 64)]
    rows = arrange(full)
    assert [[c.batch_tokens for c in row if c] for row in rows] == [[16, 16], [32, 32], [64, 64]]
    sparse = [a_cell(2**k, 2**k * 100) for k in range(4, 10)]
    assert [len(row) for row in arrange(sparse)] == [4, 4]
    assert arrange([]) == []
