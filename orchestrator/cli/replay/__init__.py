"""`powersweep replay`: what laws and rules say of recorded results, scored, with no training."""

from __future__ import annotations

import click

from orchestrator.cli.replay.curves import curves
from orchestrator.cli.replay.laws import laws
from orchestrator.cli.replay.stopping import stopping


@click.group()
def replay() -> None:
    """Score laws and rules on recorded results, with no training."""


for command in (laws, curves, stopping):
    replay.add_command(command)

__all__ = ["replay"]
