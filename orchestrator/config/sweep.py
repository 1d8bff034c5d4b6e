"""A sweep from its YAML: every name, type and range checked before anything runs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from orchestrator.config import checks, sections
from orchestrator.config.axes import Combination, combinations, further_axes, read_axes
from orchestrator.config.build import build, class_of, code_of, one_line
from orchestrator.config.coerce import coerce, must
from orchestrator.config.parts import fields_of, part_of
from orchestrator.config.sources import Tree, read_source
from orchestrator.store.folders import home
from sweeps.errors import ConfigError, unknown_name
from sweeps.schedules import SCHEDULES
from sweeps.spec import Axes, Json, Part, Size, Sweep, Variant
from sweeps.stopping import STOPPERS
from workloads import WORKLOADS
from workloads.base import DataError, Facts, Workload
from workloads.optim import OPTIMIZERS

LEAST = {  # of the numbers among Facts
    **dict.fromkeys(("parameters", "non_embedding_parameters", "flops_per_token"), 0),
    **dict.fromkeys(("tokens_per_example", "train_tokens"), 1),
}
REQUIRED = ("workload", "optimizer", "schedule", "axes")
PREPARED = ("fashion-mnist",)  # data sets that `powersweep prepare NAME` fetches
SECTIONS = (
    *("name", *REQUIRED, "search", "stopping", "law", "validate"),
    *("budget", "resources", "tracking", "reports", "precision"),
)


@dataclass(frozen=True)
class Loaded:
    """A sweep, ready to run.

    Attributes:
        sweep: fully resolved, but for `tracking.uri`, which stays a reference until the moment of use (`resolve_uri`).
        yaml: the merged sweep as text, secrets kept as references (`${oc.env:NAME}`): what travels and is logged.
        source: the file it was read from.
        name: what names it on a command line: the sweep as typed, then its overrides.
    """

    sweep: Sweep
    yaml: str
    source: Path
    name: str


def load_sweep(name: str, overrides: Sequence[str] = (), *, cwd: Path, environ: Mapping[str, str]) -> Loaded:
    """Return the sweep of a YAML path or name, with dotted overrides.

    Args:
        name: a path; or a name in ./conf; or one that ships with the package.
        overrides: `section.field=value`, the value as YAML.
        cwd: where paths start, and where classes by path are found.
        environ: fills in `${oc.env:NAME}`.

    Raises:
        ConfigError: one line with the place, what must be, and what came.
    """
    source = read_source(name, overrides, cwd=cwd, environ=environ)
    tree = source.resolved
    for key in tree:
        if key not in SECTIONS:
            raise unknown_name(key, key, SECTIONS, "section")
    for key in REQUIRED:
        if tree.get(key) is None:
            raise ConfigError(f"{key}: is required")
    tree = _with_prepared_data(tree, home(environ))
    sweep = _sweep(tree, source.tree, default_name=source.path.stem, cwd=cwd)
    return Loaded(sweep, source.text, source.path, shlex.join([name, *overrides]))


def _sweep(tree: Tree, written: Tree, *, default_name: str, cwd: Path) -> Sweep:
    axes = read_axes(tree["axes"])
    schedule = build(SCHEDULES, tree["schedule"], "schedule", what="schedule")
    stopping = _stopping(tree.get("stopping"))
    search = sections.read_search(tree.get("search"), axes.lr)
    check = sections.read_validation(tree.get("validate"))
    variants, axes = _variants(tree, axes, cwd=cwd)
    checks.check_batches(axes, check, variants)
    checks.check_size(axes, search, check, variants)
    checks.check_schedule(schedule, axes, check, grow=search.grow if search.name == "grid" else 0)
    law = sections.read_law(tree.get("law"), checks.varying(axes, variants), axes.extra, search=search.name)
    checks.check_law(law, axes, variants)
    precision = tree.get("precision", Sweep.precision)
    sections.one_of("precision", precision, sections.PRECISIONS, "precision")
    sweep = Sweep(
        name=sections.read_name(tree.get("name", default_name)),
        variants=variants,
        schedule=part_of(schedule, tree["schedule"]["name"]),
        axes=axes,
        search=search,
        stopping=stopping,
        law=law,
        validate=check,
        budget=sections.read_budget(tree.get("budget")),
        resources=sections.read_resources(tree.get("resources"), axes.batch_tokens),
        tracking=sections.read_tracking(tree.get("tracking"), written.get("tracking")),
        reports=sections.read_reports(tree.get("reports")),
        precision=precision,
    )
    checks.check_budget(sweep)
    return sweep


def _with_prepared_data(tree: Tree, folder: Path) -> Tree:
    """Return the tree with the folder of data that `powersweep prepare NAME` put into POWERSWEEP_HOME.

    It is no part of a trial's identity (OUTSIDE), nor of the YAML that is logged.
    """
    workload = tree["workload"]
    data = workload.get("data") if isinstance(workload, dict) else None
    if not isinstance(data, dict) or data.get("name") not in PREPARED or data.get("folder") is not None:
        return tree
    prepared = folder / "data" / str(data["name"])
    if not prepared.is_dir():
        return tree
    return {**tree, "workload": {**workload, "data": {**data, "folder": str(prepared)}}}


def _stopping(node: Json) -> tuple[Part, ...]:
    if node is None:
        return ()
    if not isinstance(node, list):
        raise must("stopping", "a list, such as [{name: diverged}]", node)
    parts: list[Part] = []
    for i, item in enumerate(node):
        stopper = build(STOPPERS, item, f"stopping[{i}]", what="stopper")
        if any(part.name == item["name"] for part in parts):
            raise ConfigError(f"stopping[{i}]: {item['name']} is there twice")
        parts.append(part_of(stopper, item["name"]))
    return tuple(parts)


def _variants(tree: Tree, axes: Axes, *, cwd: Path) -> tuple[tuple[Variant, ...], Axes]:
    """Return every combination of the further axes with its size, and the axes with their values."""
    of_workload = partial(class_of, WORKLOADS, what="workload", protocol=Workload, cwd=cwd)
    to_workload = partial(build, WORKLOADS, what="workload", protocol=Workload, cwd=cwd)
    nodes = {"workload": tree["workload"], "optimizer": tree["optimizer"]}
    classes = {
        "workload": of_workload(nodes["workload"], "workload"),
        "optimizer": class_of(OPTIMIZERS, nodes["optimizer"], "optimizer", what="optimizer"),
    }
    extra = further_axes(tree["axes"], classes)
    to_optimizer = partial(build, OPTIMIZERS, what="optimizer")
    made = combinations(nodes, extra, {"workload": to_workload, "optimizer": to_optimizer})
    names = {part: node["name"] for part, node in nodes.items()}
    sizes: dict[str, Size] = {}
    variants = tuple(_variant(item, names, sizes) for item in made)
    values = {name: tuple({repr(v.values[name]): _frozen(v.values[name]) for v in variants}.values()) for name in extra}
    return variants, Axes(axes.lr, axes.batch_tokens, axes.tokens, axes.steps, axes.seeds, values)


def _frozen(value: Json) -> Json:
    return tuple(value) if isinstance(value, list) else value


def _variant(item: Combination, names: Mapping[str, str], sizes: dict[str, Size]) -> Variant:
    workload = part_of(item.workload, names["workload"])
    key = repr(workload.to_json())
    if key not in sizes:
        sizes[key] = _size(item.workload, workload.name)
    return Variant(workload, part_of(item.optimizer, names["optimizer"]), sizes[key], item.values)


def _place(workload: Any, message: str) -> str:
    """Return what goes before a message that opens with a field of the workload, or of a choice inside it."""
    field = message.partition(":")[0].split(".")[0]
    if field in fields_of(workload):
        return "workload."
    tables: Mapping[str, object] = getattr(type(workload), "TABLES", {})
    inside = [name for name in tables if field in (fields_of(workload)[name] or {})]
    return f"workload.{inside[0]}." if inside else "workload: "


def _size(workload: Any, name: str) -> Size:
    """Return the facts of a workload as a record of numbers."""
    with code_of(name, "workload: facts() of"):
        try:
            facts = workload.facts()
        except DataError as error:
            raise ConfigError(f"{_place(workload, one_line(error))}{one_line(error)}") from error
        except OSError as error:
            raise ConfigError(f"workload: its data cannot be read: {one_line(error)}") from error
    if not isinstance(facts, Facts):
        raise ConfigError(f"workload: facts() of {name} must return workloads.base.Facts, got {type(facts).__name__}")
    checked = {
        field: coerce(getattr(facts, field), kind, f"workload: {field} in facts() of {name}")
        for field, kind in get_type_hints(Facts).items()
    }
    for field, least in LEAST.items():
        if checked[field] is not None:
            sections.at_least(f"workload: {field} in facts() of {name}", checked[field], least)
    total = checked.pop("parameters")
    return Size(parameters=checked.pop("non_embedding_parameters"), total_parameters=total, **checked)
