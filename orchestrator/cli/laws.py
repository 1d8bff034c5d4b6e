"""Commands about the law of a sweep: fit, predict, report, export."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.app import home, json_option, load, print_json, sweep_arguments
from sweeps.errors import ConfigError, ReachError, unknown_name

if TYPE_CHECKING:
    from sweeps.laws.law import Law

PLACES = {
    "box": "inside the range fitted",
    "reach": "beyond the range fitted, within reach: extrapolated, interval widened",
}
LONGEST_NAME = 100  # characters of a sweep's name
LONGEST_SHOWN = 300  # of a path that is not there


@click.command()
@click.argument("law", metavar="[LAW]", required=False)
@click.option("--law", "named", metavar="NAME", default=None, help="A published law: step-law, power-scheduler ...")
@click.option("--tokens", type=float, required=True, help="The horizon, in tokens: 1e9.")
@click.option("--batch-tokens", type=float, default=None, help="The batch, in tokens.")
@click.option("--parameters", type=float, default=None, help="N without embeddings, where the law has it.")
@click.option("--sequence-tokens", type=float, default=None, help="Published: tokens of a sequence.")
@click.option("--compute-flops", type=float, default=None, help="Published: FLOPs of the training; else 6 N T.")
@click.option("--anchor-lr", type=float, default=None, help="Published: an LR known to be best ...")
@click.option("--anchor-tokens", type=float, default=None, help="... at this many tokens ...")
@click.option("--anchor-parameters", type=float, default=None, help="... for a model of this size.")
@json_option
@click.pass_context
def predict(
    ctx: click.Context,
    /,
    law: str | None,
    named: str | None,
    tokens: float,
    batch_tokens: float | None,
    parameters: float | None,
    as_json: bool,
    **published: float | None,
) -> None:
    """Print the best LR for a run: with its interval by a law of yours, without one by a published law.

    LAW is a law.json, the name of a sweep that was fitted, or a published law. Beyond a fitted law's reach the exit
    code is 1; outside what a published law was fitted on, it warns.
    """
    given = {"tokens": tokens, "batch_tokens": batch_tokens, "parameters": parameters, **published}
    for name, value in given.items():
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{_option(name)}: must be above 0 and finite, got {value:g}")
    if batch_tokens is not None and batch_tokens > tokens:
        raise ConfigError(f"--batch-tokens: must be at most --tokens ({tokens:g}), got {batch_tokens:g}")
    if (law is None) == (named is None):
        raise ConfigError("LAW: name one law: a law.json, a fitted sweep, or a published law (--law step-law)")
    if named is not None or _is_published(str(law)):
        _predict_published(str(named or law), given, as_json=as_json)
        return
    for name, value in published.items():
        if value is not None:
            raise ConfigError(f"{_option(name)}: only a published law asks for it")
    if batch_tokens is None:
        raise ConfigError("--batch-tokens: a fitted law needs it")
    _predict_fitted(ctx, str(law), tokens=tokens, batch_tokens=batch_tokens, parameters=parameters, as_json=as_json)


def _predict_fitted(
    ctx: click.Context, law: str, *, tokens: float, batch_tokens: float, parameters: float | None, as_json: bool
) -> None:
    found = _law(law)
    try:
        prediction = found.predict(batch_tokens=batch_tokens, tokens=tokens, parameters=parameters)
    except ReachError as error:
        if as_json:
            print_json({"refused": str(error), "estimate": _plain(error.estimate)})
        else:
            click.echo(f"powersweep: {error}", err=True)
            if error.estimate is not None:
                click.echo(f"The estimate it refuses: {_line(error.estimate)}")
        ctx.exit(error.exit_code)
    if as_json:
        print_json({"prediction": asdict(prediction), "status": found.status, "law": found.one_line()})
        return
    click.echo(_line(prediction))
    click.echo(PLACES.get(prediction.place, prediction.place))
    click.echo(f"law ({found.status}): {found.one_line()}")


def _predict_published(name: str, given: Mapping[str, float | None], *, as_json: bool) -> None:
    from sweeps.laws.published import Anchor, Question, published
    from sweeps.laws.records import size_text

    law = published(name)
    for part, value in given.items():
        if value is not None and ("anchor" if part.startswith("anchor_") else part) not in law.reads:
            raise ConfigError(f"{_option(part)}: {law.name} does not read it; it is {law.formula}")
    anchor = None
    lr, tokens = given["anchor_lr"], given["anchor_tokens"]
    if lr is not None and tokens is not None:
        anchor = Anchor(lr, tokens, given["anchor_parameters"])
    elif any(given[part] is not None for part in ("anchor_lr", "anchor_tokens", "anchor_parameters")):
        raise ConfigError("--anchor-lr: an anchor is an LR and its tokens: give --anchor-lr and --anchor-tokens")
    known = {part: value for part, value in given.items() if not part.startswith("anchor_")}
    answer = law.ask(Question(tokens=float(known.pop("tokens") or 0.0), anchor=anchor, **known))
    if as_json:
        told = {part: getattr(law, part) for part in ("formula", "source", "convention", "trust", "setting")}
        print_json({"law": law.name, **asdict(answer), **told, "fitted": dict(law.fitted)})
        return
    batch = "" if answer.batch_tokens is None else f"  at its best batch of {size_text(answer.batch_tokens)} tokens"
    click.echo(f"lr {answer.lr:.4g}{batch}")
    click.echo(f"{law.formula}  ({law.convention}; {law.setting})")
    click.echo(f"{law.source}; {law.trust}")
    for warning in answer.warnings:
        click.echo(f"powersweep: {warning}", err=True)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _is_published(name: str) -> bool:
    """Return whether a name is that of a published law, and of no file and no sweep that was fitted."""
    from sweeps.laws.published import PUBLISHED

    if name not in PUBLISHED or _is_file(name):
        return False
    from orchestrator.report import law_paths

    return not law_paths(name, home() / "sweeps")


def _line(prediction: object) -> str:
    from sweeps.laws.records import Prediction

    if not isinstance(prediction, Prediction):
        return str(prediction)
    share = f"{100 * prediction.confidence:g} %"
    return f"lr {prediction.lr:.3g}  ({share} interval {prediction.low:.3g} to {prediction.high:.3g})"


def _plain(estimate: object) -> object:
    from sweeps.laws.records import Prediction

    return asdict(estimate) if isinstance(estimate, Prediction) else estimate


def _law(name: str) -> Law:
    """Return the law of a file, or of a sweep that was fitted. Raises ConfigError."""
    from sweeps.laws.law import Law

    return Law.load(_law_file(name))


def _law_file(name: str) -> Path:
    path = Path(name)
    if _is_file(name):
        return path
    if path.suffix == ".json" or "/" in name or len(name) > LONGEST_NAME:
        raise ConfigError(f"LAW: no file {name[:LONGEST_SHOWN]}")
    from orchestrator.report import fitted_sweeps, law_paths

    sweeps = home() / "sweeps"
    laws = law_paths(name, sweeps)
    if len(laws) == 1:
        return laws[0]
    if laws:
        raise ConfigError(f"LAW: {name} has {len(laws)} laws, name one file: {', '.join(map(str, laws))}")
    if (sweeps / name).is_dir():
        raise ConfigError(f"LAW: {name} has no law yet: powersweep run {name}")
    from sweeps.laws.published import PUBLISHED

    raise unknown_name("LAW", name, [*fitted_sweeps(sweeps), *PUBLISHED], "file or fitted sweep")


def _is_file(name: str) -> bool:
    """Return whether there is such a file; a name that no file can have is none."""
    try:
        return Path(name).is_file()
    except OSError:
        return False


@click.command()
@sweep_arguments
@click.option("--from-mlflow", is_flag=True, help="Read the curves from MLflow, whoever logged them.")
@json_option
@click.pass_context
def fit(ctx: click.Context, sweep: str, overrides: Sequence[str], from_mlflow: bool, as_json: bool) -> None:
    """Fit the law of a sweep to the curves there are, and train nothing."""
    loaded = load(sweep, overrides)
    from orchestrator import results

    findings = results.fit(loaded, home=home(), environ=os.environ, from_mlflow=from_mlflow)
    refused = any(law is None for law in findings.laws.values())
    if as_json:
        laws = {label: None if law is None else law.to_json() for label, law in findings.laws.items()}
        print_json({"laws": laws, "refusals": dict(findings.refusals)})
    else:
        for line in findings.lines():
            click.echo(line)
    ctx.exit(1 if refused else 0)


@click.command()
@sweep_arguments
def report(sweep: str, overrides: Sequence[str]) -> None:
    """Write the figures, law.json and report.html of a sweep anew from what has ended."""
    loaded = load(sweep, overrides)
    from orchestrator import report as report_files

    for path in report_files.write_folder(loaded, home=home(), environ=os.environ):
        click.echo(path)


@click.command()
@sweep_arguments
@click.option("--out", type=click.Path(path_type=Path), default=None, help="The folder; NAME-export by default.")
@json_option
def export(sweep: str, overrides: Sequence[str], out: Path | None, as_json: bool) -> None:
    """Write the curves and trials of a sweep as Parquet files: curves.parquet, trials.parquet."""
    loaded = load(sweep, overrides)
    from orchestrator.cli.exporting import export_sweep

    folder = out or Path(f"{loaded.sweep.name}-export")
    written = export_sweep(loaded.sweep, home=home(), folder=folder)
    if as_json:
        print_json({"files": [str(path) for path in written.files], "trials": written.trials, "points": written.points})
        return
    click.echo(f"{written.trials:,} trials, {written.points:,} points")
    for path in written.files:
        click.echo(f"  {path}")
