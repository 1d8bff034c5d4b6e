"""`powersweep replay stopping`: what a stopper would have saved and lost on recorded curves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.app import json_option, print_json, print_table
from orchestrator.cli.replay.options import LAW, curve_options, paths_of
from sweeps.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from sweeps.forecast.fitting import FittedCurveLaw
    from sweeps.replay.stopping.scores import CellScore, StoppingReplay
    from sweeps.spec import Json
    from sweeps.stopping import CellSoFar, Stopper

MOST_ROWS = 40  # cells in the table for people, the largest of more


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options of the command."""

    rule: str
    settings: tuple[str, ...]
    fit: tuple[str, ...]
    law: str | None
    warmup: str | None
    prior: str | None
    columns: str | None
    schedules: Path | None
    warmup_steps: int | None
    figure: Path | None
    as_json: bool


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What was read: cells, a curve law if one was asked for, and what had to be assumed."""

    cells: tuple[CellSoFar, ...]
    law: FittedCurveLaw | None = None
    notes: tuple[str, ...] = ()


@click.command()
@click.argument("recorded", metavar="FOLDER_OR_TABLE", type=click.Path(path_type=Path))
@click.argument("more", nargs=-1, metavar="[NAME]...")
@click.option("--rule", required=True, metavar="NAME", help="dominated, diverged, patience, median, asha or none.")
@click.option("--with", "settings", multiple=True, metavar="FIELD=VALUE", help="A field of the rule, as eta=3.")
@click.option("--fit", multiple=True, metavar="NAME", help="Curves known in full that `dominated` fits a law on.")
@click.option(
    "--columns", default=None, help="Of a table: run=..., tokens=..., loss=..., cell=a/b, lr=..., horizon=..."
)
@curve_options
@click.option("--figure", type=click.Path(path_type=Path), default=None, help="Write a PNG of the cells.")
@json_option
def stopping(recorded: Path, more: tuple[str, ...], **given: Any) -> None:
    r"""Replay a stopper on recorded curves: compute saved, winners lost, bias of the best LR.

    A FOLDER holds CSV or Parquet files with the columns step, lr, loss, one a run; those of one length compete. A
    TABLE (CSV or Parquet) has a row for each report: as `powersweep export` writes it, or as --columns says; run,
    cell, recipe and outcome name columns (several joined by /), the others are expressions.

    \b
    powersweep replay stopping curves.parquet --rule dominated
    powersweep replay stopping FOLDER --rule dominated --fit constant stepped
    powersweep replay stopping evals.csv --rule asha --columns 'run=trial,cell=task/study,tokens=step,loss=-accuracy'
    """
    asked = Asked(**given)
    from sweeps.replay.stopping.lockstep import replay_stopping

    rule = _rule(asked)
    fit = tuple(dict.fromkeys([*asked.fit, *more]))
    _check(asked, fit, is_folder=recorded.is_dir())
    found = _from_folder(recorded, asked, fit) if recorded.is_dir() else _from_table(recorded, asked)
    result = replay_stopping(found.cells, rule, rule=asked.rule, law=found.law, given=fit)
    if asked.figure is not None:
        from sweeps.curves import replacing
        from sweeps.replay.stopping.figure import draw_stopping
        from sweeps.report.look import png

        with replacing(asked.figure) as temporary:
            temporary.write_bytes(png(draw_stopping(result, found.cells)))
    if asked.as_json:
        print_json({**result.to_json(), "notes": list(found.notes)})
        return
    for note in found.notes:
        click.echo(f"note: {note}")
    _print(result)
    if asked.figure is not None:
        click.echo(asked.figure)


def _rule(asked: Asked) -> Stopper:
    """Return the stopper with its fields. Raises ConfigError."""
    from orchestrator.config.build import fill
    from sweeps.replay.expressions import shown
    from sweeps.stopping import RULES

    if asked.rule not in RULES:
        raise unknown_name("--rule", asked.rule, RULES, "stopper")
    fields: dict[str, Json] = {}
    for setting in asked.settings:
        name, equals, value = setting.partition("=")
        try:
            fields[name.strip()] = int(value) if value.strip().lstrip("+-").isdigit() else float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise ConfigError(f"--with: must be FIELD=NUMBER, such as confidence=0.99, got {shown(setting)}")
    found: Stopper = fill(RULES[asked.rule], fields, f"--rule {asked.rule}")
    return found


def _check(asked: Asked, fit: tuple[str, ...], *, is_folder: bool) -> None:
    """Raise ConfigError for options that say nothing here."""
    if fit and asked.rule != "dominated":
        raise ConfigError(f"--fit: only the rule dominated reads a curve law, got --rule {asked.rule}")
    if fit and not is_folder:
        raise ConfigError("--fit: needs a folder of curves with the LR of every step; a table has no such LRs")
    if asked.columns is not None and is_folder:
        raise ConfigError("--columns: is of a table; the files of a folder have the columns step, lr, loss")
    schedules = {"--schedules": asked.schedules is not None, "--warmup-steps": asked.warmup_steps is not None}
    for name, given in schedules.items():
        if given and not is_folder:
            raise ConfigError(f"{name}: is of a folder of curves; a table has no schedules")
    for name, value in {"--law": asked.law, "--warmup": asked.warmup, "--prior": asked.prior}.items():
        if value is not None and not fit:
            raise ConfigError(f"{name}: is of the curve law that --fit asks for on a folder of curves")


def _from_table(table: Path, asked: Asked) -> Recorded:
    from sweeps.replay.stopping.recorded import read_cells

    cells = read_cells(table, asked.columns)
    failed = sum(run.outcome == "failed" for cell in cells for run in cell.runs)
    notes = [f"{failed} runs ended before their horizon and count as failed: none of them can win"] if failed else []
    alone = sum(len(cell.runs) == 1 for cell in cells)
    if alone:
        notes.append(f"{alone} of {len(cells)} cells have one run and are left out")
    return Recorded(cells=cells, notes=tuple(notes))


def _from_folder(folder: Path, asked: Asked, fit: tuple[str, ...]) -> Recorded:
    from sweeps.replay.curve_files import read_curves
    from sweeps.replay.stopping.recorded import cells_of_curves

    read = read_curves(folder, paths=paths_of(folder, asked.schedules), warmup_steps=asked.warmup_steps)
    for name in fit:
        if name not in read.curves:
            raise unknown_name("--fit", name, read.curves, "curve")
    law = None
    if fit:
        from sweeps.forecast.fitting import fit_curves
        from sweeps.forecast.forms import curve_form

        form = curve_form(asked.law or LAW, warmup=asked.warmup, prior=asked.prior)
        law = fit_curves([read.curves[name] for name in fit], form)
    return Recorded(cells=cells_of_curves(read.curves), law=law, notes=read.notes)


def _print(result: StoppingReplay) -> None:
    header = ["cell", "runs", "stopped", "saved", "best run", "best kept", "lr", "lr kept", ""]
    shown = result.scores[-MOST_ROWS:]
    print_table(header, [_row(score) for score in shown])
    if len(shown) < len(result.scores):
        click.echo(f"({len(result.scores) - len(shown)} smaller cells not shown)")
    kind = " (biased: it ranks raw losses in mid-schedule)" if result.biased else ""
    found = result.to_json()
    click.echo(f"\n{result.rule}{kind}: {result.saved:.1%} of the compute saved")
    click.echo(f"winners lost: {result.winners_lost} of {len(result.scores)} cells")
    if found["lr_bias"] is not None:
        click.echo(f"best LR: off by {found['lr_bias']:+.1f} % (geometric mean; {found['lr_error']:.1f} % either way)")
    if found["basins"]:
        fitted = "none can be fitted" if found["lr_bias_basin"] is None else f"off by {found['lr_bias_basin']:+.1f} %"
        click.echo(f"fitted optimum: {fitted}; {found['basins_lost']} of {found['basins']} can no longer be fitted")


def _row(score: CellScore) -> list[str]:
    return [
        f"{score.recipe}: {score.cell}" if score.recipe and score.recipe not in score.cell else score.cell,
        str(score.runs),
        str(len(score.stopped)),
        f"{1 - score.trained / score.total:.1%}",
        _number(score.winner_loss, ".5g"),
        _number(score.kept_loss, ".5g"),
        _number(score.winner_lr, ".3g"),
        _number(score.kept_lr, ".3g"),
        "winner lost" if score.lost else "",
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
