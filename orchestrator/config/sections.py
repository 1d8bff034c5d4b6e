"""The sections of a sweep that are plain records: search, law, validate, budget, resources, tracking, reports."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import TypeVar

from orchestrator.address import check_form
from orchestrator.config.build import fill
from orchestrator.config.coerce import must, show
from sweeps.agenda import LAW
from sweeps.choose import starting_laws
from sweeps.errors import ConfigError, unknown_name
from sweeps.laws.law import CONVENTIONS
from sweeps.optima.optimum import ESTIMATORS
from sweeps.spec import JOINT, Budget, Json, LawSpec, Range, Reports, Resources, Search, Tracking, Validation

Record = TypeVar("Record")
SEARCHES = ("grid", "random", "qmc", "tpe", "gp", LAW)
LEAST_FOR_LAW = 8  # trials of a search for the law: its starting design; a choice
PRECISIONS = ("float32", "bfloat16")
MAX_SEEDS = 1000  # of a held-out check
MAX_FACTOR = 1000  # between neighbouring LRs of a held-out check
LEAST_SHARE = 0.01  # of a CPU or GPU, for a row: a hundred rows each
VARIABLES = ("batch_tokens", "tokens", "parameters")
NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
SERVERS = ("http", "https")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


NOT_OF = {  # of a search by its name
    "grid": ("trials", "wave", "seed", "until", "from_law"),
    LAW: ("grow",),
    "": ("grow", "until", "from_law"),
}


def record(cls: type[Record], node: Json, where: str) -> Record:
    """Return the record of a section; its defaults where the section is absent. Raises ConfigError."""
    if node is None:
        return cls()
    if not isinstance(node, Mapping):
        raise must(where, "a mapping", node)
    made = fill(cls, node, where)
    assert isinstance(made, cls)
    return made


def positive(place: str, value: float | None) -> None:
    """Raise ConfigError unless the value is above 0, or null."""
    if value is not None and value <= 0:
        raise must(place, "above 0", value)


def at_least(place: str, value: float, low: float) -> None:
    """Raise ConfigError unless the value is at least `low`."""
    if value < low:
        raise must(place, f"at least {low}", value)


def one_of(place: str, value: str, valid: tuple[str, ...], what: str) -> None:
    """Raise ConfigError, with the nearest name, unless the value is one of the valid ones."""
    if value not in valid:
        raise unknown_name(place, value, valid, what)


def read_name(node: Json) -> str:
    """Return the name of a sweep: it names a folder and an MLflow experiment."""
    if not (isinstance(node, str) and NAME.fullmatch(node)):
        raise must("name", "letters, digits, - and _ (at most 100)", node)
    return node


def read_search(node: Json, lr: tuple[float, ...] | Range) -> Search:
    """Return the search, checked against the LR axis it works on."""
    search = record(Search, node, "search")
    given = set(node or {})
    one_of("search.name", search.name, SEARCHES, "search")
    grid = search.name == "grid"
    for field in NOT_OF[search.name if search.name in NOT_OF else ""]:
        if field in given:
            raise ConfigError(f"search.{field}: has no meaning for {search.name}: leave it out")
    at_least("search.grow", search.grow, 0)
    at_least("search.trials", search.trials, LEAST_FOR_LAW if search.name == LAW else 1)
    if search.until is not None and not search.until > 1:
        raise must("search.until", "a factor above 1", search.until)
    if search.from_law is not None:
        one_of(
            "search.from_law", search.from_law, starting_laws(), "published law that needs no more than a sweep knows"
        )
    at_least("search.wave", search.wave, 1)
    at_least("search.seed", search.seed, 0)
    if search.wave > search.trials:
        raise must("search.wave", f"at most search.trials ({search.trials})", search.wave)
    if grid and isinstance(lr, Range) and lr.points is None:
        raise ConfigError("axes.lr.points: is required for a grid: how many values of the range")
    if grid and not isinstance(lr, Range) and len(lr) < 2:
        raise ConfigError(f"axes.lr: a grid needs at least 2 values to find a minimum between, got {show(list(lr))}")
    if not grid and search.name != LAW and not isinstance(lr, Range):
        raise ConfigError(
            f"axes.lr: {search.name} searches a range: write {{log: [{lr[0]:g}, {lr[-1]:g}]}}, or use grid"
        )
    return search


def read_validation(node: Json) -> Validation | None:
    """Return the held-out check, or None if there is none."""
    if node is None:
        return None
    check = record(Validation, node, "validate")
    positive("validate.tokens", check.tokens)
    positive("validate.batch_tokens", check.batch_tokens)
    if not 1 <= check.seeds <= MAX_SEEDS:
        raise must("validate.seeds", f"at least 1 and at most {MAX_SEEDS:,}", check.seeds)
    if not 1 < check.factor <= MAX_FACTOR:
        raise must("validate.factor", f"above 1 and at most {MAX_FACTOR:,}", check.factor)
    return check


def read_budget(node: Json) -> Budget:
    """Return the ceilings."""
    budget = record(Budget, node, "budget")
    positive("budget.trials", budget.trials)
    positive("budget.tokens", budget.tokens)
    positive("budget.seconds", budget.seconds)
    return budget


def read_resources(node: Json, batches: tuple[int, ...]) -> Resources:
    """Return what a row takes, its micro-batch checked against every batch."""
    resources = record(Resources, node, "resources")
    positive("resources.cpus", resources.cpus)
    at_least("resources.cpus", resources.cpus, LEAST_SHARE)
    at_least("resources.gpus", resources.gpus, LEAST_SHARE if resources.gpus > 0 else 0)
    if resources.gpus > 1 and not float(resources.gpus).is_integer():
        raise must("resources.gpus", "a share of one GPU, or whole GPUs", resources.gpus)
    if resources.cuda_graph and not resources.gpus:
        raise must("resources.cuda_graph", "false where resources.gpus is 0: a CUDA graph needs a GPU", True)
    positive("resources.concurrent", resources.concurrent)
    positive("resources.lockstep", resources.lockstep)
    positive("resources.checkpoint_seconds", resources.checkpoint_seconds)
    positive("resources.report_seconds", resources.report_seconds)
    at_least("resources.retries", resources.retries, 0)
    if resources.address is not None:
        check_form(resources.address)
    micro = resources.micro_batch_tokens
    positive("resources.micro_batch_tokens", micro)
    for batch in batches:
        if micro is not None and micro < batch and batch % micro:
            raise ConfigError(f"resources.micro_batch_tokens: must divide every batch ({batch}), got {micro}")
    return resources


def read_reports(node: Json) -> Reports:
    """Return when runs report."""
    reports = record(Reports, node, "reports")
    if not 1 <= reports.per_octave <= 64:
        raise must("reports.per_octave", "between 1 and 64", reports.per_octave)
    if not 0 < reports.first_fraction <= 1:
        raise must("reports.first_fraction", "above 0 and at most 1", reports.first_fraction)
    return reports


def read_tracking(node: Json, written: Json) -> Tracking:
    """Return where curves go; its URI as written, so that a secret stays a reference.

    Args:
        node: with all references resolved.
        written: the same section, references kept.
    """
    tracking = record(Tracking, node, "tracking")
    if tracking.uri is not None:
        _check_uri(tracking.uri)
    if tracking.experiment is not None and not NAME.fullmatch(tracking.experiment):
        raise must("tracking.experiment", "letters, digits, - and _ (at most 100)", tracking.experiment)
    uri = written["uri"] if tracking.uri is not None else None
    return Tracking(uri=uri, experiment=tracking.experiment)


def _check_uri(uri: str) -> None:
    """Raise ConfigError unless MLflow can open the URI; it may hold a password, so it is never shown."""
    scheme, separator, rest = uri.partition("://")
    kind = scheme.partition("+")[0]
    forms = "http(s)://host:port, sqlite:///file.db or postgresql://user@host/database"
    if not separator:
        raise ConfigError(f"tracking.uri: must be {forms}; it has no ://")
    if kind == "file":
        raise ConfigError(f"tracking.uri: MLflow 3 has no file store; it must be {forms}")
    if kind not in (*SERVERS, *DATABASES):
        raise unknown_name("tracking.uri", scheme, (*SERVERS, *DATABASES), "kind of store")
    if not rest.strip("/"):
        raise ConfigError(f"tracking.uri: must be {forms}; nothing comes after {scheme}://")


def read_law(node: Json, varying: tuple[str, ...], extra: Mapping[str, object], *, search: str) -> LawSpec:
    """Return the law to fit.

    Args:
        node: the section.
        varying: which of VARIABLES take two or more values.
        extra: further axes, by dotted name.
        search: its name; one for the law leaves cells few LRs, so that only all of them together have optima.
    """
    law = record(LawSpec, node, "law")
    given = node or {}
    law = _with_estimator(law, given, search)
    variables = law.variables
    if "variables" not in given:
        variables = tuple(name for name in variables if name in varying)
    for name in variables:
        one_of("law.variables", name, VARIABLES, "variable")
        if name not in varying:
            raise ConfigError(f"law.variables: {name} must take at least 2 values in axes, it has one")
    if len(set(variables)) < len(variables):
        raise ConfigError(f"law.variables: must name each variable once, got {show(list(variables))}")
    if not 0 < law.confidence < 1:
        raise must("law.confidence", "between 0 and 1", law.confidence)
    for name, factor in law.reach.items():
        one_of(f"law.reach.{name}", name, VARIABLES, "variable")
        at_least(f"law.reach.{name}", factor, 1)
    if law.convention == "batch free":
        if "batch_tokens" in given.get("variables", ()):
            raise ConfigError("law.variables: a batch free law is at the best batch: leave batch_tokens out")
        variables = tuple(name for name in variables if name != "batch_tokens")
    profile = tuple(_axis_name(name, extra) for name in law.profile_over)
    return dataclasses.replace(law, variables=variables, profile_over=profile)


def _with_estimator(law: LawSpec, given: Json, search: str) -> LawSpec:
    """Return the law with the estimator its search needs. Raises ConfigError."""
    one_of("law.estimator", law.estimator, (*ESTIMATORS, JOINT), "estimator")
    one_of("law.convention", law.convention, CONVENTIONS, "convention")
    if search == LAW:
        if given.get("estimator", JOINT) != JOINT:
            raise ConfigError(f"law.estimator: must be {JOINT} with search {LAW}, got {law.estimator}")
        law = dataclasses.replace(law, estimator=JOINT)
    if law.estimator == JOINT and law.convention != CONVENTIONS[0]:
        raise ConfigError(f"law.convention: must be {CONVENTIONS[0]!r} with estimator {JOINT}, got {law.convention!r}")
    return law


def _axis_name(name: str, extra: Mapping[str, object]) -> str:
    """Return the dotted name of a further axis that may be written bare."""
    matches = [axis for axis in extra if name in (axis, axis.rpartition(".")[2])]
    if len(matches) != 1:
        if not extra:
            raise ConfigError(f"law.profile_over: no axis {name!r}: the sweep has no further axes")
        raise unknown_name("law.profile_over", name, extra, "further axis")
    return matches[0]
