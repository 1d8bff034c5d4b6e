"""Commands that run a sweep or look at one under way: run, plan, status, stop."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from orchestrator.cli.app import (
    INTERRUPTED,
    Terminal,
    home,
    json_option,
    load,
    print_json,
    print_table,
    sweep_arguments,
)

if TYPE_CHECKING:
    from sweeps.spec import Json

WATCH_SECONDS = 2.0
MANY = 5  # horizons no longer listed


@click.command()
@sweep_arguments
@click.pass_context
def run(ctx: click.Context, sweep: str, overrides: Sequence[str]) -> None:
    """Run what is missing of a sweep, then fit, check and report its law.

    The same command again goes on where the last one ended; a finished sweep runs nothing. Ctrl-C saves first.

    Exit code: 0 done; 1 trials failed, a law was refused, or budget.seconds (of each command by itself) was used
    up: the law is then of the cells that are complete; 2 the input or a store cannot be used; 130 interrupted or
    stopped.
    """
    loaded = load(sweep, overrides)
    terminal = Terminal()
    try:
        from orchestrator import launch

        ended = launch.run(loaded, home=home(), environ=os.environ, console=terminal)
    except KeyboardInterrupt:  # outside of training, where it is a clean stop
        terminal.end()
        click.echo(f"Interrupted: what has ended is saved. To go on: powersweep run {loaded.name}", err=True)
        ctx.exit(INTERRUPTED)
    finally:
        terminal.end()
    for line in ended.lines:
        click.echo(line)
    for path in ended.paths:
        click.echo(f"  {path}")
    ctx.exit(ended.exit_code)


@click.command()
@sweep_arguments
@click.option(
    "--time/--no-time", "with_time", default=True, help="Train each batch size for a second to estimate time."
)
@json_option
def plan(sweep: str, overrides: Sequence[str], with_time: bool, as_json: bool) -> None:
    """Show the cells, trials, tokens, FLOPs and time of a sweep, and run nothing."""
    loaded = load(sweep, overrides)
    from orchestrator.cli.planning import plan_of
    from orchestrator.cli.timing import warnings_of

    planned = plan_of(loaded, home=home(), with_time=with_time)
    if as_json:
        print_json(planned)
    else:
        _print_plan(planned)
    for warning in warnings_of(loaded.sweep):
        click.echo(f"warning: {warning}", err=True)


def _print_plan(planned: Mapping[str, Json]) -> None:
    from orchestrator.progress import clock, human

    click.echo(
        f"{planned['name']}: {planned['workload']} of {human(planned['parameters'])} parameters, "
        f"{planned['optimizer']}, {planned['schedule']}; search {planned['search']}"
    )
    rows = [
        [
            cell["variant"] or "all",
            f"{cell['batch_tokens']:,}",
            _horizons(cell["tokens"]),
            str(cell["lrs"]),
            str(cell["seeds"]),
            str(cell["trials"]),
            human(cell["train_tokens"]),
            human(cell["flops"]),
        ]
        for cell in [*planned["cells"], *planned["held_out"]]
    ]
    header = ["cells", "batch", f"horizon ({planned['unit']}s)", "LRs", "seeds", "trials", "tokens", "FLOPs"]
    for column in rows:
        column[0] = "" if column[0] == "all" else column[0]
    print_table(header, rows)
    totals = planned["totals"]
    forked = (
        f" ({human(totals['trained_tokens'])} with shared trunks)"
        if totals["trained_tokens"] < totals["tokens"]
        else ""
    )
    click.echo(
        f"{totals['trials']:,} trials at least, {human(totals['tokens'])} tokens{forked}, "
        f"{human(totals['flops'])} FLOPs; "
        f"{totals['done']:,} done, {totals['trials'] - totals['done']:,} to run"
    )
    if planned["seconds"]:
        at_once = "one row at a time" if planned["rows_at_once"] == 1 else f"{planned['rows_at_once']} rows at once"
        click.echo(
            f"about {clock(planned['seconds'])} with {at_once} "
            f"({human(planned['tokens_per_second'])} tokens/s each, {planned['speed_from']})"
        )
    for line in planned["notes"]:
        click.echo(line)


def _horizons(tokens: Sequence[int]) -> str:
    shown = [f"{count:,}" for count in tokens]
    return ", ".join(shown) if len(shown) < MANY else f"{shown[0]} to {shown[-1]}, {len(shown)} of them"


@click.command()
@sweep_arguments
@click.option("--watch", is_flag=True, help="Show it again every two seconds until the sweep ends.")
@json_option
def status(sweep: str, overrides: Sequence[str], watch: bool, as_json: bool) -> None:
    """Show how far a sweep is: trials, tokens/s, best so far of each cell, time left, who runs it."""
    loaded = load(sweep, overrides)
    from orchestrator.cli.planning import status_of

    while True:
        found = status_of(loaded, home=home())
        if as_json:
            print_json(found)
        else:
            if watch:
                click.clear()
            _print_status(found)
        if not (watch and found["driver"]):
            return
        time.sleep(WATCH_SECONDS)


def _print_status(found: Mapping[str, Json]) -> None:
    from orchestrator.progress import clock, human

    driver = found["driver"]
    by = f"run by {driver['user']}@{driver['host']} (pid {driver['pid']})" if driver else "nobody runs it now"
    click.echo(f"{found['name']}: {found['done']:,} of {found['trials']:,} trials done; {by}")
    if found["outcomes"]:
        click.echo(", ".join(f"{count:,} {outcome}" for outcome, count in sorted(found["outcomes"].items())))
    live = found["live"]
    if live and live["tokens_per_second"]:
        left = f", about {clock(live['eta_seconds'])} left" if live["eta_seconds"] else ""
        click.echo(f"{human(live['tokens_per_second'])} tokens/s{left}")
    if found["cells"]:
        targets = any(cell["target"] is not None for cell in found["cells"])
        rows = [
            [
                cell["label"],
                f"{cell['done']}/{cell['trials']}" + (f", {cell['stopped']} stopped" if cell["stopped"] else ""),
                "" if cell["best_lr"] is None else f"{cell['best_lr']:.3g}",
                "" if cell["best_loss"] is None else f"{cell['best_loss']:.4f}",
                *([_target_text(cell["target"])] if targets else []),
            ]
            for cell in found["cells"]
        ]
        print_table(["cell", "trials", "best LR", "loss", *(["reached target"] if targets else [])], rows)


def _target_text(target: Mapping[str, Json] | None) -> str:
    """Return how many trials of a cell reached the workload's target, and the first after how many tokens."""
    if target is None:
        return ""
    return f"{target['reached']}, first at {target['first_tokens']:,}" if target["reached"] else "0"


@click.command()
@sweep_arguments
def stop(sweep: str, overrides: Sequence[str]) -> None:
    """Ask the driver of a sweep to save its runs and end; `run` goes on from there."""
    loaded = load(sweep, overrides)
    from orchestrator.store import SweepStore
    from orchestrator.store.lease import read_lease

    store = SweepStore(home(), loaded.sweep.experiment)
    claim = read_lease(store.folder)
    if claim is None or not claim.alive(now=time.time()):
        click.echo(f"{loaded.sweep.name}: nobody runs it now, nothing to stop")
        return
    store.request_stop()
    click.echo(
        f"{loaded.sweep.name}: asked {claim.user}@{claim.host} (pid {claim.pid}) to stop. Its rows save their state "
        f"at their next report and end. To go on: powersweep run {loaded.name}"
    )
