"""The command group: how input comes in, how errors and tables go out."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

from sweeps import __version__
from sweeps.errors import SweepError

if TYPE_CHECKING:
    from orchestrator.config import Loaded
    from sweeps.spec import Json

INTERRUPTED = 130
LONGEST = 480  # characters of a message
LONGEST_END = 130  # of them the last ones, where there are more
QUIET_SECONDS = 30.0  # between two lines of progress where the terminal cannot overwrite one


class App(click.Group):
    """A group whose errors are one line each, `powersweep: what is wrong`, with the exit code they carry.

    2 the input is wrong, 1 a law was refused, trials failed or time was used up, 130 interrupted or stopped.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which they are used."""
        return list(self.commands)

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run a command and exit."""
        extra["standalone_mode"] = False
        extra.setdefault("prog_name", "powersweep")
        try:
            code = super().main(*args, **extra)
        except SweepError as error:
            _complain(str(error))
            code = error.exit_code
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.ctx.get_help(), err=True)
            code = 2
        except click.UsageError as error:
            name = error.ctx.command.name if error.ctx is not None and error.ctx.parent is not None else None
            _complain(f"{name}: {error.format_message()}" if name else error.format_message())
            code = error.exit_code
        except click.ClickException as error:
            _complain(error.format_message())
            code = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            _complain("interrupted")
            code = INTERRUPTED
        except BrokenPipeError:  # whoever read the output has enough: `powersweep plan x | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str) -> None:
    """Print what is wrong in one line a terminal can show; of a long one its beginning and its end."""
    plain = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))
    shown = plain if len(plain) <= LONGEST else f"{plain[: LONGEST - LONGEST_END]} ... {plain[-LONGEST_END:]}"
    click.echo(f"powersweep: {shown}", err=True)


@click.group(cls=App, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="powersweep")
def main() -> None:
    """Find the learning-rate law of a training recipe, with an interval, checked one scale up.

    SWEEP is a YAML file, or the name of one in ./conf or of one that ships with powersweep. OVERRIDES change its
    fields: axes.lr.log=[1e-3,1e-1] workload.width=128
    """


Command = Callable[..., Any]


def sweep_arguments(command: Command) -> Command:
    """Return the command with its SWEEP and OVERRIDES."""
    overrides = click.argument("overrides", nargs=-1)
    return click.argument("sweep")(overrides(command))


def json_option(command: Command) -> Command:
    """Return the command with --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def load(sweep: str, overrides: Sequence[str]) -> Loaded:
    """Return the sweep, checked. Raises ConfigError."""
    from orchestrator.config import load_sweep

    return load_sweep(sweep, overrides, cwd=Path.cwd(), environ=os.environ)


def home() -> Path:
    """Return where everything is kept."""
    from orchestrator import store

    return store.home(os.environ)


def print_json(value: Json) -> None:
    """Print JSON to standard output."""
    click.echo(json.dumps(value, indent=2, sort_keys=True, allow_nan=False, default=str))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a header: the first column to the left, the others to the right."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for number, line in enumerate(lines):
        cells = [line[0].ljust(widths[0]), *[cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True)]]
        click.echo("  ".join(cells).rstrip())
        if number == 0:
            click.echo("  ".join("-" * width for width in widths))


class Terminal:
    """Speaks to a person: lines that stay to standard output, progress to standard error."""

    def __init__(self, progress: TextIO | None = None) -> None:
        self._progress = progress or sys.stderr
        self._width = 0
        self._last = 0.0

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._clear()
        click.echo(text)

    def update(self, text: str) -> None:
        """Print a line that the next one replaces; where that cannot be, one line now and then."""
        if self._progress.isatty():
            columns = os.get_terminal_size(self._progress.fileno()).columns
            shown = text if len(text) < columns else text[: max(columns - 2, 0)] + "…"
            self._progress.write("\r" + shown.ljust(self._width))
            self._progress.flush()
            self._width = len(shown)
        elif time.monotonic() - self._last > QUIET_SECONDS:
            self._last = time.monotonic()
            self._progress.write(text + "\n")
            self._progress.flush()

    def end(self) -> None:
        """Leave the terminal clean."""
        self._clear()

    def _clear(self) -> None:
        if self._width:
            self._progress.write("\r" + " " * self._width + "\r")
            self._progress.flush()
            self._width = 0


def mapping_line(values: Mapping[str, object]) -> str:
    """Return a mapping for people: `batch_tokens 256, tokens 1,024`."""
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in values.items()
    )
