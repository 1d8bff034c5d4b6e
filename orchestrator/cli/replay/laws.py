"""`powersweep replay laws`: the loss gap of laws and of samplers on a table of recorded trainings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.app import json_option, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sweeps.replay.laws import Score
    from sweeps.replay.table import Table


@click.command()
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--columns", required=True, help="lr=..., batch_tokens=..., tokens=..., loss=..., parameters=...")
@click.option("--train", default=None, help="Rows to fit, e.g. 'tokens<=2.6e10'; all if not given.")
@click.option("--target", default=None, help="Rows whose cells are asked, e.g. 'tokens>=4e10'.")
@click.option("--leave-out", default=None, help="Instead of both: each value of this column in turn is the target.")
@click.option("--law", default="joint", show_default=True, help="joint, recipe, or a published law such as step-law.")
@click.option("--sampler", default=None, help="law, gp, gp+law, tpe, qmc, random: fit only what it picks.")
@click.option("--trials", type=click.IntRange(min=4), default=48, show_default=True, help="Runs a sampler picks.")
@click.option("--seeds", type=click.IntRange(min=1), default=12, show_default=True, help="Repeats of a sampler.")
@click.option("--figure", type=click.Path(path_type=Path), default=None, help="Where to draw it (PNG).")
@json_option
def laws(table: Path, columns: str, as_json: bool, **asked: str | int | Path | None) -> None:
    r"""Fit a law on some rows of TABLE (CSV or Parquet) and score what it recommends at the cells of others.

    The loss gap of a recommended (lr, batch) is how far the loss there is above the cell's best, by a smooth surface of
    the cell's runs, in thousandths of the loss.

    \b
    powersweep replay laws runs.csv --columns 'lr=lr,batch_tokens=bs*2048,tokens=D,parameters=N,loss="smooth loss"' \\
        --train 'tokens<=2.6e10' --target 'tokens>=4e10' --sampler law --trials 48
    """
    from sweeps.replay.laws import to_json
    from sweeps.replay.table import read_table

    runs = read_table(table, columns)
    scores = _scores(runs, asked)
    if asked["figure"] is not None:
        from sweeps.curves import replacing
        from sweeps.replay.laws_figure import draw_gaps
        from sweeps.report.look import png

        drawn = draw_gaps({scores[0].sampler or scores[0].law: scores})
        with replacing(Path(str(asked["figure"]))) as temporary:
            temporary.write_bytes(png(drawn))
    if as_json:
        print_json(to_json(scores))
        return
    _print(scores)
    if asked["figure"] is not None:
        click.echo(f"\n  {asked['figure']}")


def _scores(runs: Table, asked: dict[str, str | int | Path | None]) -> list[Score]:
    from sweeps.errors import ConfigError
    from sweeps.replay.laws import leave_out, score_law, score_sampler

    law = str(asked["law"])
    if asked["leave_out"] is not None:
        if asked["train"] or asked["target"] or asked["sampler"]:
            raise ConfigError("leave-out: stands instead of train and target, and takes no sampler")
        return [leave_out(law, runs, str(asked["leave_out"]))]
    if asked["target"] is None:
        raise ConfigError("target: must say whose cells are asked, such as tokens>=4e10 (or use --leave-out)")
    target = runs.where(str(asked["target"]), name="target")
    train = runs if asked["train"] is None else runs.where(str(asked["train"]), name="train")
    both = set(train.cells()) & set(target.cells())
    if both:
        n, t = sorted(both)[0]
        raise ConfigError(f"target: shares {len(both)} cells with train, such as parameters {n:,.0f}, tokens {t:,.0f}")
    if asked["sampler"] is None:
        return [score_law(law, train, target)]
    from orchestrator.search.recorded import picker_of

    name, picker = str(asked["sampler"]), picker_of(str(asked["sampler"]))
    trials, seeds = int(str(asked["trials"])), int(str(asked["seeds"]))
    steps = [n for n in range(8, trials, 8)]
    return [
        score_sampler(law, picker, train, target, sampler=name, trials=trials, seed=seed, steps=steps)
        for seed in range(seeds)
    ]


def _print(scores: Sequence[Score]) -> None:
    first = scores[0]
    rows = [
        [
            f"{cell.params:,.0f}",
            f"{cell.tokens:,.0f}",
            _with(cell.lr, cell.lr_interval),
            _with(cell.batch_tokens, cell.batch_interval),
            f"{cell.gap_per_mille:.2f}",
        ]
        for cell in first.cells
    ]
    if len(scores) > 1:
        click.echo("of the first seed:")
    print_table(["parameters", "tokens", "lr", "batch, tokens", "gap, per mille"], rows)
    means, worst = [score.mean for score in scores], [score.worst for score in scores]
    chosen = f" chosen by {first.sampler}" if first.sampler else ""
    share = 100.0 * sum(score.flops_share for score in scores) / len(scores)
    click.echo(f"\nlaw {first.law}, {first.trials:,} runs{chosen}, {share:.1f} % of the training FLOPs")
    spread = f" ({min(means):.2f} to {max(means):.2f} over {len(scores)} seeds)" if len(scores) > 1 else ""
    click.echo(f"gap: mean {sum(means) / len(means):.2f} per mille{spread}, largest {sum(worst) / len(worst):.2f}")


def _with(value: float, interval: tuple[float, float] | None) -> str:
    shown = f"{value:.3g}" if value < 1e3 else f"{value:,.0f}"
    if interval is None:
        return shown
    low, high = (f"{x:.3g}" if value < 1e3 else f"{x:,.0f}" for x in interval)
    return f"{shown} ({low} to {high})"
