"""Options and schedules that replays of recorded curves share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sweeps.errors import ConfigError

if TYPE_CHECKING:
    from sweeps.forecast.records import LrPath

SIDECAR = "schedules.yaml"
LAW = "momentum"  # the curve law where none is named


def curve_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command with the options of a curve law and of the schedules of the curves."""
    options = (
        click.option(
            "--law",
            default=None,
            help="momentum, multi-power, fsl, no-annealing or linear-drop; by default momentum.",
        ),
        click.option(
            "--warmup", default=None, help="What a warm-up counts as: area, constant or ramp; by default the law's."
        ),
        click.option("--prior", default=None, help="Of multi-power and fsl: what it is centred on, or none."),
        click.option(
            "--schedules",
            type=click.Path(path_type=Path),
            default=None,
            help=f"YAML with the schedule of each curve; FOLDER/{SIDECAR} where there is one.",
        ),
        click.option(
            "--warmup-steps",
            type=click.IntRange(min=0),
            default=None,
            help="Of curves without a schedule; by default read off their rows.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def paths_of(folder: Path, schedules: Path | None) -> Mapping[str, LrPath] | None:
    """Return the schedules of the curves that have one, or None without a file of schedules."""
    beside = folder / SIDECAR
    file = schedules or (beside if beside.is_file() else None)
    if file is None:
        return None
    if not file.is_file():
        raise ConfigError(f"--schedules: no file {file}")
    from orchestrator.config.sources import read_source
    from sweeps.replay.schedules import scheduled_paths

    tree = read_source(str(file.resolve()), (), cwd=Path.cwd(), environ=os.environ).resolved
    return scheduled_paths(tree, place=file.name)
