"""Sweeps from YAML: what is written is what runs, and a record makes the same object again."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config import build, load_sweep, object_of, part_of, resolve_text
from orchestrator.config.coerce import coerce
from orchestrator.config.sources import SHIPPED
from sweeps.errors import ConfigError
from sweeps.plan import brackets_of, trials_of
from sweeps.schedules import SCHEDULES
from sweeps.spec import Range, Seeds, Sweep, canonical_json
from sweeps.stopping import STOPPERS
from workloads import WORKLOADS
from workloads.optim import OPTIMIZERS

GOOD = """
name: tiny
workload: {name: quadratic, dimensions: 8}
optimizer: {name: sgd}
schedule: {name: constant}
axes:
  lr: {log: [0.1, 0.4], points: 3}
  batch_tokens: [16, 8]
  tokens: [128, 256]
"""
NEEDED: dict[str, dict[str, Any]] = {
    "table": {"fractions": [0.0, 1.0], "factors": [1.0, 0.0]},
    "power": {"n0_tokens": 1024},
    "inverse_sqrt": {"timescale_tokens": 64},
    "script": {"path": "train.py"},
}
EVERY = [(table, name) for table in (WORKLOADS, OPTIMIZERS, SCHEDULES, STOPPERS) for name in table]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a working folder with a good sweep in it."""
    (tmp_path / "tiny.yaml").write_text(GOOD)
    return tmp_path


def loaded(folder: Path, *overrides: str, name: str = "tiny.yaml", **environ: str) -> Sweep:
    return load_sweep(name, overrides, cwd=folder, environ=environ).sweep


@pytest.mark.parametrize(("table", "name"), EVERY, ids=[name for _, name in EVERY])
def test_a_record_makes_the_same_object_again(table: Mapping[str, type], name: str) -> None:
    thing = build(table, {"name": name, **NEEDED.get(name, {})}, "here")
    part = part_of(thing, name)
    assert object_of(table, part, "here") == thing
    assert part_of(object_of(table, part, "here"), name) == part
    assert canonical_json(part.identity())
    assert len(part.source) == 12


@pytest.mark.parametrize(("table", "name"), EVERY, ids=[name for _, name in EVERY])
def test_a_field_named_outside_the_identity_exists_and_is_left_out(table: Mapping[str, type], name: str) -> None:
    part = part_of(build(table, {"name": name, **NEEDED.get(name, {})}, "here"), name)
    own = [place for place in part.outside if "." not in place]
    assert set(own) <= part.fields.keys()
    assert not set(own) & part.identity()["fields"].keys()


@pytest.mark.parametrize(
    ("workload", "changes"),
    [
        ("gpt", ["validation_target_value=3.0"]),
        ("image", ["validation_target_value=0.97"]),
        ("script", ["parameters=9", "flops_per_token=54.0", "train_tokens=1000", "unit=sample"]),
    ],
)
def test_what_changes_no_curve_changes_no_key(
    folder: Path, workload: str, changes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "train.py").write_text("")
    here = [f"workload={{name: {workload}{', path: train.py' if workload == 'script' else ''}}}"]
    here += ["axes.batch_tokens=[256,512]", "axes.tokens=[65536,131072]"]
    plain, changed = (loaded(folder, *here, *(f"workload.{c}" for c in some)) for some in ([], changes))
    keys = [
        [t.key for bracket in brackets_of(sweep) for t in trials_of(sweep, bracket, [0.1])]
        for sweep in (plain, changed)
    ]
    assert keys[0] == keys[1]
    assert plain.variants[0].workload.fields != changed.variants[0].workload.fields
    if workload == "script":
        assert (changed.variants[0].size.parameters, changed.variants[0].size.unit) == (9, "sample")


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.yaml")))
def test_a_sweep_that_ships_loads_from_any_folder(name: str, tmp_path: Path) -> None:
    overrides = ["workload.data={name: sotu}"] if name == "corpus" else []
    assert load_sweep(name, overrides, cwd=tmp_path, environ={}).sweep.name == name


def test_the_text_of_a_sweep_is_the_same_sweep(folder: Path) -> None:
    first = load_sweep("tiny.yaml", ["axes.dimensions=[4,8]", "search.grow=1"], cwd=folder, environ={})
    (folder / "again.yaml").write_text(first.yaml)
    assert loaded(folder, name="again.yaml") == first.sweep


def test_all_fields_are_resolved_whether_written_or_not(folder: Path) -> None:
    variant = loaded(folder).variants[0]
    assert variant.workload.fields["dimensions"] == 8
    assert set(variant.workload.fields) == {"dimensions", "decades", "noise"}
    assert variant.optimizer.fields["momentum"] == 0.0


def test_an_integer_and_its_float_are_one_trial(folder: Path) -> None:
    written = loaded(folder, "workload.noise=2", "axes.tokens=[128.0,2.56e2]")
    same = loaded(folder, "workload.noise=2.0")
    assert written.variants[0].workload.identity() == same.variants[0].workload.identity()
    assert written.axes.tokens == same.axes.tokens == (128, 256)
    assert canonical_json(written.recipe()) == canonical_json(same.recipe())


def test_axes_are_lists_or_ranges_in_ascending_order(folder: Path) -> None:
    axes = loaded(
        folder, "axes.tokens={log: [128, 512], points: 3}", "axes.seed={values: [3, 1], up_to_tokens: 128}"
    ).axes
    assert axes.lr == Range(0.1, 0.4, "log", 3)
    assert axes.batch_tokens == (8, 16)
    assert axes.tokens == (128, 256, 512)
    assert axes.seeds == Seeds((3, 1), 128)
    assert loaded(folder, "axes.lr=[0.4,0.1]").axes.lr == (0.1, 0.4)
    assert loaded(folder, "axes.tokens=null", "axes.steps={linear: [8, 16], points: 3}").axes.steps == (8, 12, 16)


def test_an_override_reaches_into_a_range(folder: Path) -> None:
    assert loaded(folder, "axes.lr.log=[1e-3,1e-1]").axes.lr == Range(0.001, 0.1, "log", 3)


def test_a_later_override_wins(folder: Path) -> None:
    assert (
        loaded(folder, "workload.dimensions=3", "workload.dimensions=5").variants[0].workload.fields["dimensions"] == 5
    )


def test_another_name_starts_its_section_afresh(folder: Path) -> None:
    variant = loaded(folder, "workload.name=teacher", "optimizer.name=adamw", "optimizer.eps=1e-6").variants[0]
    assert "dimensions" not in variant.workload.fields
    assert variant.optimizer.fields["eps"] == 1e-6


def test_includes_are_merged_in_order_under_the_file_that_names_them(folder: Path) -> None:
    (folder / "parts").mkdir()
    (folder / "parts" / "a.yaml").write_text("workload: {dimensions: 2, noise: 2}\nprecision: bfloat16\n")
    (folder / "parts" / "b.yaml").write_text("include: a\nworkload: {dimensions: 3}\n")
    (folder / "top.yaml").write_text("include: [tiny.yaml, parts/b.yaml]\nworkload: {decades: 1}\n")
    sweep = loaded(folder, name="top.yaml")
    assert sweep.variants[0].workload.fields == {"dimensions": 3, "decades": 1.0, "noise": 2.0}
    assert (sweep.name, sweep.precision) == ("tiny", "bfloat16")


def test_a_name_is_looked_up_in_conf_before_what_ships(folder: Path) -> None:
    (folder / "conf").mkdir()
    (folder / "conf" / "quadratic.yaml").write_text(GOOD)
    assert load_sweep("quadratic", cwd=folder, environ={}).sweep.name == "tiny"


def test_a_sweep_is_named_after_its_file_unless_it_says(folder: Path) -> None:
    (folder / "plain.yaml").write_text(GOOD.replace("name: tiny\n", ""))
    assert loaded(folder, name="plain.yaml").name == "plain"


def test_the_command_line_of_a_sweep_can_be_typed_again(folder: Path) -> None:
    name = load_sweep("tiny.yaml", ["axes.lr=[0.1, 0.2]"], cwd=folder, environ={}).name
    assert name == "tiny.yaml 'axes.lr=[0.1, 0.2]'"


def test_a_secret_stays_a_reference_until_it_is_used(folder: Path) -> None:
    uri = "https://user:${oc.env:SECRET}@host"
    found = load_sweep("tiny.yaml", [f"tracking.uri='{uri}'"], cwd=folder, environ={"SECRET": "s3cr3t$"})
    assert found.sweep.tracking.uri == uri
    assert "s3cr3t" not in found.yaml
    assert "${oc.env:SECRET}" in found.yaml
    assert resolve_text(uri, {"SECRET": "s3cr3t${x}"}) == "https://user:s3cr3t${x}@host"


def test_references_reach_across_sections_and_have_defaults(folder: Path) -> None:
    sweep = loaded(folder, "workload.dimensions=${axes.batch_tokens[0]}", "precision=${oc.env:P,bfloat16}")
    assert (sweep.variants[0].workload.fields["dimensions"], sweep.precision) == (16, "bfloat16")


def test_further_axes_make_variants_with_their_own_sizes(folder: Path) -> None:
    sweep = loaded(folder, "axes.dimensions=[4,16]", "axes.optimizer.momentum={linear: [0, 0.5], points: 2}")
    assert sweep.axes.extra == {"workload.dimensions": (4, 16), "optimizer.momentum": (0.0, 0.5)}
    assert [dict(v.values) for v in sweep.variants][1] == {"workload.dimensions": 4, "optimizer.momentum": 0.5}
    assert [v.size.parameters for v in sweep.variants] == [4, 4, 16, 16]
    assert len({canonical_json([v.workload.identity(), v.optimizer.identity()]) for v in sweep.variants}) == 4


def test_a_bare_axis_is_its_dotted_one(folder: Path) -> None:
    assert loaded(folder, "axes.dimensions=[4,16]") == loaded(folder, "axes.workload.dimensions=[4,16]")
    assert loaded(folder, "axes.dimensions=[4,16]", "law.profile_over=[dimensions]").law.profile_over == (
        "workload.dimensions",
    )


def test_an_axis_reaches_into_a_choice(folder: Path) -> None:
    overrides = ["workload={name: image, data: {name: mnist5k}}", "axes.workload.data.split_seed=[0,1]"]
    sweep = loaded(folder, *overrides)
    assert [v.values["workload.data.split_seed"] for v in sweep.variants] == [0, 1]
    assert len({v.size.data_fingerprint for v in sweep.variants}) == 2


def test_a_law_is_of_what_varies_unless_it_says(folder: Path) -> None:
    assert loaded(folder).law.variables == ("batch_tokens", "tokens")
    assert loaded(folder, "axes.batch_tokens=[8]").law.variables == ("tokens",)
    assert loaded(folder, "law.convention=batch free").law.variables == ("tokens",)


USER_CODE = """
from dataclasses import dataclass
from workloads.quadratic import Quadratic

@dataclass(frozen=True)
class Mine(Quadratic):
    extra: float = 1
"""


def test_a_class_of_the_users_own_is_named_by_its_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "users_workload.py").write_text(USER_CODE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sweep = loaded(folder, "workload={name: 'users_workload:Mine', extra: 3}", "axes.extra=[1,2]")
    part = sweep.variants[1].workload
    assert (part.name, part.fields["extra"]) == ("users_workload:Mine", 2.0)
    thing = object_of(WORKLOADS, part, "workload", cwd=folder)
    assert type(thing).__name__ == "Mine"
    assert part_of(thing, part.name) == part


@dataclass(frozen=True)
class Leaf:
    version: ClassVar[int] = 1
    size: int = 1


@dataclass(frozen=True)
class Newer:
    version: ClassVar[int] = 2
    size: int = 1


@dataclass(frozen=True)
class Tree:
    version: ClassVar[int] = 1
    TABLES: ClassVar[Mapping[str, Mapping[str, type]]] = {
        "leaf": {"leaf": Leaf, "newer": Newer},
        "leaves": {"leaf": Leaf, "newer": Newer},
    }
    leaf: Leaf | Newer | None = None
    leaves: tuple[Leaf | Newer, ...] = ()
    words: Mapping[str, Any] = field(default_factory=dict)


TREES = {"tree": Tree}


def test_choices_inside_choices_are_records_too() -> None:
    node = {"name": "tree", "leaf": {"name": "newer", "size": 2}, "leaves": [{"name": "leaf"}, {"name": "newer"}]}
    tree = build(TREES, {**node, "words": {"name": "newer", "version": 7}}, "here")
    part = part_of(tree, "tree")
    assert part.fields["leaf"] == {"name": "newer", "version": 2, "size": 2}
    assert part.fields["leaves"][0] == {"name": "leaf", "size": 1}
    assert object_of(TREES, part, "here") == tree


def test_the_version_of_a_choice_is_part_of_the_identity() -> None:
    part = part_of(Tree(Newer()), "tree")
    assert part.identity() != replace(part, fields={**part.fields, "leaf": {"name": "newer", "size": 1}}).identity()


numbers = st.integers(-(10**9), 10**9)


@given(numbers)
@settings(deadline=None, max_examples=30)
def test_an_integer_passes_as_a_float_and_an_integral_float_as_an_integer(value: int) -> None:
    assert type(coerce(value, float, "x")) is float
    assert type(coerce(float(value), int, "x")) is int
    assert coerce(float(value), int, "x") == coerce(value, float, "x") == value


@pytest.mark.parametrize(
    ("value", "annotation", "result"),
    [
        (None, int | None, None),
        (3, int | None, 3),
        (3, float | None, 3.0),
        ("a", int | str, "a"),
        (3, int | str, 3),
        ([1, 2], tuple[float, float], (1.0, 2.0)),
        ([1, 2, 3], tuple[int, ...], (1, 2, 3)),
        ("b", Literal["a", "b"], "b"),
        ({"a": 1}, Mapping[str, float], {"a": 1.0}),
        ([1, {"b": None}], Any, [1, {"b": None}]),
    ],
)
def test_a_value_becomes_what_its_field_declares(value: object, annotation: object, result: object) -> None:
    found = coerce(value, annotation, "x")
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (True, int),
        (True, float),
        (1, bool),
        ("1", int),
        (1.5, int),
        (float("nan"), float),
        (float("inf"), float | None),
        (None, int),
        ("c", Literal["a", "b"]),
        ([1], tuple[int, int]),
        ("ab", tuple[str, ...]),
        ([1], Mapping[str, int]),
        ({"a": float("nan")}, Any),
        (10**400, float),
    ],
)
def test_a_value_of_another_type_is_refused(value: object, annotation: object) -> None:
    with pytest.raises(ConfigError, match=r"^x(\.a|\[\d\])?: must be "):
        coerce(value, annotation, "x")


def test_fashion_mnist_is_found_where_prepare_puts_it_whatever_the_home(folder: Path) -> None:
    put = folder / "elsewhere" / "data" / "fashion-mnist"
    put.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 10)):
        labels, images = bytes(i % 2 for i in range(count)), bytes(count * 64)
        sizes = count.to_bytes(4, "big"), (8).to_bytes(4, "big") * 2
        (put / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes[0] + sizes[1] + images)
        (put / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + sizes[0] + labels)
    data = "workload={name: image, data: {name: fashion-mnist}}"
    sweep = load_sweep("tiny.yaml", [data], cwd=folder, environ={"POWERSWEEP_HOME": str(folder / "elsewhere")})
    part = sweep.sweep.variants[0].workload
    assert part.fields["data"]["folder"] == str(put)
    named = load_sweep("tiny.yaml", [f"{data[:-2]}, folder: {put}}}}}"], cwd=folder, environ={}).sweep
    assert named.variants[0].workload.identity() == part.identity()
    assert str(put) not in sweep.yaml
