"""`powersweep replay curves`: a curve law fitted on some recorded curves, scored on the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.app import json_option, print_json, print_table
from orchestrator.cli.replay.options import LAW, curve_options, paths_of

if TYPE_CHECKING:
    from sweeps.replay.curves import CurvesReplay

MEANS = (("mae", ".4f"), ("mape", ".3f"), ("r2", ".4f"), ("r2_after", ".3f"))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options of the command."""

    fit: tuple[str, ...]
    law: str | None
    warmup: str | None
    prior: str | None
    schedules: Path | None
    warmup_steps: int | None
    figure: Path | None
    as_json: bool


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--fit", "fit", multiple=True, required=True, metavar="NAME", help="A curve to fit on; give several.")
@click.argument("more", nargs=-1, metavar="[NAME]...")
@curve_options
@click.option("--figure", type=click.Path(path_type=Path), default=None, help="Write a PNG of all curves.")
@json_option
def curves(folder: Path, more: tuple[str, ...], **given: Any) -> None:
    """Fit a curve law on some recorded curves and score it on the others.

    FOLDER holds CSV or Parquet files with the columns step, lr, loss, one a run; names are those of the files:
    replay curves FOLDER --fit constant stepped
    """
    asked = Asked(**given)
    from sweeps.forecast.forms import curve_form
    from sweeps.replay.curve_files import read_curves
    from sweeps.replay.curves import replay_curves

    law = asked.law or LAW
    form = curve_form(law, warmup=asked.warmup, prior=asked.prior)
    paths = paths_of(folder, asked.schedules)
    recorded = read_curves(folder, paths=paths, warmup_steps=asked.warmup_steps)
    result = replay_curves(recorded.curves, [*asked.fit, *more], form=form, law_name=law)
    if asked.figure is not None:
        from sweeps.curves import replacing
        from sweeps.replay.curves_figure import draw_replay
        from sweeps.report.look import png

        with replacing(asked.figure) as temporary:
            temporary.write_bytes(png(draw_replay(result, recorded.curves)))
    if asked.as_json:
        print_json({**result.to_json(), "notes": list(recorded.notes)})
        return
    for note in recorded.notes:
        click.echo(f"note: {note}")
    _print(result)
    if asked.figure is not None:
        click.echo(asked.figure)


def _print(result: CurvesReplay) -> None:
    values = ", ".join(f"{name} {value:.4g}" for name, value in result.law.parameters.items())
    click.echo(f"{result.law_name} (warm-up: {result.law.form.warmup}) on {', '.join(result.law.fitted_on)}: {values}")
    header = ["curve", "MAE", "MAPE %", "R2", "R2 after", "after step", "final loss", "predicted", "error"]
    ordered = sorted(result.scores, key=lambda score: (score.fitted, score.name))
    rows = [
        [
            score.name + (" (fitted)" if score.fitted else ""),
            f"{score.mae:.4f}",
            f"{score.mape:.3f}",
            _number(score.r2, ".4f"),
            _number(score.r2_after, ".3f"),
            "-" if score.leaves_step is None else f"{score.leaves_step:,}",
            f"{score.final_loss:.4f}",
            f"{score.final_predicted:.4f}",
            f"{score.final_predicted - score.final_loss:+.4f}",
        ]
        for score in ordered
    ]
    means = [_number(result.mean(name), form) for name, form in MEANS]
    worst = max(score.final_error for score in result.held_out)
    mean_error = _number(result.mean("final_error"), ".4f")
    rows.append([f"mean of {len(result.held_out)} held out", *means, "", "", "", mean_error])
    print_table(header, rows)
    click.echo(f"final loss: off by {mean_error} on average, {worst:.4f} at most")
    for ranking in result.rankings:
        rank = _number(ranking.spearman, ".2f")
        click.echo(f"{len(ranking.true)} curves of {ranking.steps:,} steps, best first: Spearman {rank}")
        click.echo(f"  predicted  {', '.join(ranking.predicted)}")
        click.echo(f"  true       {', '.join(ranking.true)}")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
