"""The `powersweep` command. Nothing heavy is imported before a command needs it."""

from orchestrator.cli.app import main
from orchestrator.cli.care import gc, prepare, ui
from orchestrator.cli.gate import compare, validate
from orchestrator.cli.laws import export, fit, predict, report
from orchestrator.cli.replay import replay
from orchestrator.cli.runs import plan, run, status, stop

for command in (run, plan, status, stop, fit, predict, validate, compare, report, export, replay, prepare, gc, ui):
    main.add_command(command)

__all__ = ["main"]
