"""What MLflow shows of a trial: a name for people, flat parameters, tags."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sweeps.agenda import Outcome
from sweeps.spec import canonical_json

PARTS = ("workload", "optimizer", "schedule")
PLAIN = ("lr", "batch_tokens", "tokens", "seed", "parameters", "precision")
LONGEST_VALUE = 6000  # characters of a parameter: MLflow's limit
LONGEST_TAG = 5000
LONGEST_NAME = 250
UNFIT = re.compile(r"[^\w/. :-]")  # what MLflow 3 takes in no name of a metric, parameter or tag


@dataclass(frozen=True, slots=True)
class Card:
    """The constant part of a run: `params` and `tags` are text, as in MLflow."""

    name: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def fit_name(name: str) -> str:
    """Return a name of a metric, parameter or tag as MLflow takes it: `acc@1` -> `acc_1`, no `..`, 250 characters.

    Two names that differ in such characters alone become one, and the first of them counts.
    """
    steps = [step for step in UNFIT.sub("_", name).split("/") if step not in ("", ".")]
    return "/".join(f"__{step[2:]}" if step.startswith("..") else step for step in steps)[:LONGEST_NAME] or "_"


def fit_names(values: Mapping[str, str]) -> dict[str, str]:
    """Return the values under names that MLflow takes."""
    fitting: dict[str, str] = {}
    for name, value in values.items():
        fitting.setdefault(fit_name(name), value)
    return fitting


def card_of(trial: Mapping[str, Any]) -> Card:
    """Return the card of a trial's record (`Trial.to_json`); fields it lacks are left out."""
    params = {name: _text(trial[name]) for name in PLAIN if trial.get(name) is not None}
    tags = {}
    for place in PARTS:
        part = trial.get(place)
        if not part:
            continue
        params[f"{place}.name"] = str(part["name"])
        params.update(_flat(place, part.get("fields", {})))
        if part.get("source"):
            tags[f"source.{place}"] = str(part["source"])
    if trial.get("trunk"):
        tags["trunk"] = "true"
    return Card(_name(trial), fit_names(params), tags)


def outcome_tags(outcome: Outcome) -> dict[str, str]:
    """Return what MLflow shows of how a trial ended, beside the outcome itself."""
    tags = {"reason": outcome.reason} if outcome.reason else {}
    target = outcome.target
    if target is not None and target.reached_tokens is not None:
        tags["target_reached_tokens"] = str(target.reached_tokens)
    if len(outcome.curve) and outcome.tokens > outcome.curve.tokens[-1]:  # diverged between two reports
        tags["ended_at_tokens"] = str(outcome.tokens)
    if outcome.forked_from is not None:
        tags["trunk_key"], tags["forked_at_tokens"] = outcome.forked_from[0], str(outcome.forked_from[1])
    if outcome.exceeded is not None:
        tags["exceeded"] = repr(outcome.exceeded)
    stop = outcome.stop
    if stop is not None:
        tags["stopped_by"], tags["stopped_on_report_tokens"] = canonical_json(stop.by), str(stop.report_tokens)
        if stop.forecast is not None:
            tags |= {f"forecast_{name}": repr(value) for name, value in asdict(stop.forecast).items()}
    return tags


def human(count: float) -> str:
    """Return a count at three digits, below ten thousand all of them: 262144 -> 262k, 1024 -> 1024."""
    if 1000 <= count < 10_000:
        return f"{count:.0f}"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"


def short_float(value: float) -> str:
    """Return a number with an exponent, at three digits: 0.002 -> 2e-3."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def _name(trial: Mapping[str, Any]) -> str:
    """Return what tells trials apart, short: MLflow shows some twenty characters beside a chart."""
    words = []
    if trial.get("lr") is not None:
        words.append(f"lr{short_float(trial['lr'])}")
    words += [
        f"{letter}{human(trial[name])}"
        for letter, name in (("B", "batch_tokens"), ("T", "tokens"))
        if trial.get(name) is not None
    ]
    if trial.get("seed") is not None:
        words.append(f"s{trial['seed']}")
    if trial.get("trunk"):
        words.append("trunk")
    if trial.get("label"):
        words.append(str(trial["label"]))
    return " ".join(words) or "trial"


def _flat(prefix: str, value: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(f"{prefix}.{name}", inner)
        else:
            yield f"{prefix}.{name}", _text(inner)


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
