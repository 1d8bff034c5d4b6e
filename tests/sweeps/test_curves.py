"""What curves and their Parquet file promise."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.curves import Curve, read_about, read_parquet, replacing, write_parquet
from sweeps.errors import StoreError


@dataclass(frozen=True)
class Point:
    tokens: int
    step: int
    timestamp: float
    metrics: Mapping[str, float] = field(default_factory=dict)


def a_curve(points: int = 5, start: float = 3.0) -> Curve:
    tokens = 1000 * np.arange(1, points + 1)
    loss = start / np.sqrt(np.arange(1, points + 1))
    accuracy = np.where(np.arange(points) % 2 == 1, 0.5, np.nan)
    return Curve(tokens, tokens // 100, 1.7e9 + tokens / 3, {"validation/loss": loss, "validation/accuracy": accuracy})


finite_or_not = st.floats(allow_nan=True, allow_infinity=True)
points = st.lists(
    st.tuples(st.integers(1, 10**12), finite_or_not, st.dictionaries(st.sampled_from("abc"), finite_or_not)),
    max_size=8,
    unique_by=lambda p: p[0],
).map(lambda ps: [Point(t, i, s, m) for i, (t, s, m) in enumerate(sorted(ps, key=lambda p: p[0]))])
curves = points.map(lambda ps: Curve().append(ps))


@given(curve=curves)
@settings(max_examples=100, deadline=None)
def test_a_curve_comes_back_from_json_to_the_bit(curve: Curve) -> None:
    text = json.dumps(curve.to_json(), allow_nan=False)
    again = Curve.from_json(json.loads(text))
    assert again == curve
    for name, values in curve.metrics.items():  # -0.0 == 0.0, so the signs are compared too, where there is a value
        there = ~np.isnan(values)
        assert np.array_equal(np.signbit(values[there]), np.signbit(again.metrics[name][there]))


@given(drawn=st.dictionaries(st.text("abcdef0123456789", min_size=1, max_size=8), curves, max_size=4))
@settings(max_examples=40, deadline=None)
def test_curves_come_back_from_parquet(drawn: dict[str, Curve], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("curves") / "curves.parquet"
    write_parquet(path, drawn, about={})
    again = read_parquet(path)
    # a timestamp that is not a number is null in the table, as an absent metric is
    assert again == drawn
    assert list(again) == sorted(drawn)


def test_what_a_run_was_comes_back_with_its_curve(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "curves.parquet"
    about = {
        "b": {"lr": 1e-3, "batch_tokens": 256, "outcome": "finished", "edge": False, "width": None},
        "a": {"lr": 2e-3, "batch_tokens": 512, "outcome": "diverged", "edge": True},
    }
    write_parquet(path, {"b": a_curve(), "a": Curve()}, about=about)
    assert read_about(path) == {
        "a": {"lr": 2e-3, "batch_tokens": 512, "outcome": "diverged", "edge": True},
        "b": {"lr": 1e-3, "batch_tokens": 256, "outcome": "finished", "edge": False},
    }
    frame = pq.read_table(path).to_pandas()
    assert list(frame.columns[:2]) == ["key", "trial.batch_tokens"]
    assert frame[frame["key"] == "b"]["trial.lr"].tolist() == [1e-3] * 5


def test_the_file_does_not_depend_on_the_order_of_the_curves(tmp_path: Path) -> None:
    some = {"a": a_curve(), "b": a_curve(3, 2.0), "c": Curve()}
    about = {"a": {"lr": 1.0, "seed": 0}, "b": {"seed": 1, "lr": 2.0}, "c": {}}
    write_parquet(tmp_path / "one", some, about=about)
    write_parquet(tmp_path / "two", dict(reversed(some.items())), about=dict(reversed(about.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "curves.parquet"
    write_parquet(path, {"a": a_curve()}, about={})
    with pytest.raises(ValueError, match=r"^about: lr must be of one type"):
        write_parquet(path, {"a": Curve(), "b": Curve()}, about={"a": {"lr": "x"}, "b": {"lr": 1.0}})
    with pytest.raises(StoreError, match="midway"), replacing(path) as temporary:  # noqa: PT012 - both are the write
        temporary.write_bytes(b"half")
        raise OSError("midway")
    assert read_parquet(path) == {"a": a_curve()}
    assert [p.name for p in tmp_path.iterdir()] == ["curves.parquet"]


def test_a_place_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        write_parquet(tmp_path / "file" / "curves.parquet", {}, about={})


def test_a_file_that_is_missing_or_something_else_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read as Parquet"):
        read_parquet(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("not a table")
    with pytest.raises(StoreError, match="cannot be read as Parquet"):
        read_parquet(tmp_path / "text.parquet")
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(StoreError, match="lacks the columns tokens, step, timestamp"):
        read_parquet(tmp_path / "other.parquet")


def test_a_value_is_found_only_at_its_own_mark() -> None:
    curve = a_curve()
    assert curve.at(4000, "validation/loss") == 1.5
    assert curve.at(4001, "validation/loss") is None
    assert curve.at(9000, "validation/loss") is None
    assert curve.at(1000, "validation/accuracy") is None
    assert curve.at(1000, "lr") is None


def test_the_last_value_is_the_latest_there_is() -> None:
    assert a_curve().last("validation/accuracy") == 0.5
    assert a_curve().last("validation/loss") == pytest.approx(3 / math.sqrt(5))
    assert a_curve().last("lr") is None
    assert Curve().last("validation/loss") is None


def test_a_metric_is_drawn_only_where_it_is_present() -> None:
    tokens, values = a_curve().present("validation/accuracy")
    assert tokens.tolist() == [2000, 4000]
    assert values.tolist() == [0.5, 0.5]
    assert len(a_curve().present("lr")[0]) == 0


def test_a_curve_cut_at_a_mark_and_joined_again_is_the_same() -> None:
    curve = a_curve()
    rest = curve.since(2000)
    assert rest.tokens.tolist() == [3000, 4000, 5000]
    assert curve.until(2000).tokens.tolist() == [1000, 2000]
    joined = curve.until(2000).append(
        Point(int(t), int(s), float(w), {n: float(v[i]) for n, v in rest.metrics.items()})
        for i, (t, s, w) in enumerate(zip(rest.tokens, rest.step, rest.timestamp, strict=True))
    )
    assert joined == curve


def test_points_must_come_later() -> None:
    with pytest.raises(ValueError, match=r"^tokens: must ascend"):
        a_curve().append([Point(5000, 50, 0.0)])


def test_arrays_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^lr: must have one value for each of 2 points"):
        Curve(np.array([1, 2]), np.array([1, 2]), np.array([0.0, 0.0]), {"lr": np.array([1.0])})


def test_a_curve_cannot_be_changed_in_place_and_pickles() -> None:
    curve = a_curve()
    with pytest.raises(ValueError, match="read-only"):
        curve.tokens[0] = 7
    assert pickle.loads(pickle.dumps(curve)) == curve
