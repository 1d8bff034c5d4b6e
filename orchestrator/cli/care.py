"""Commands around sweeps: prepare data, collect garbage, open the curves in MLflow's UI."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from orchestrator.cli.app import Terminal, home, load, print_table, sweep_arguments
from sweeps.errors import ConfigError

FASHION = "fashion-mnist"
TRAINING = "workflowType=machine_learning"  # MLflow's UI opens on its pages for language-model applications otherwise
TOKENIZERS = "bytes, a tokenizer.json, or a vocabulary size to train a BPE of"


@click.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="The folder to make.")
@click.option("--tokenizer", default="bytes", help=f"{TOKENIZERS[0].upper()}{TOKENIZERS[1:]}.")
@click.option("--text-column", default="text", help="Of JSON lines and Parquet.")
@click.option("--held-out", type=float, default=0.05, help="Share of the documents held out for validation.")
@click.option("--seed", type=int, default=0, help="Of the held-out draw.")
@click.option("--documents", default="file", help="What a text file holds: one document (file), or many (blank line).")
@click.option("--token-type", default="uint16", help="Of the numbers in .bin files: uint16 or uint32.")
@click.option(
    "--vocab-size", type=int, default=None, help="Of ready-made tokens; one more than the largest by default."
)
def prepare(sources: Sequence[str], out: Path | None, **settings: object) -> None:
    """Make text, JSON lines, Parquet or tokens ready to train on: a folder of token shards.

    SOURCES are files or folders. `powersweep prepare fashion-mnist` fetches that set of images instead.
    """
    from workloads.base import DataError

    try:
        if tuple(sources) == (FASHION,):
            _fetch_fashion_mnist(out)
        else:
            _prepare(sources, out, settings)
    except (DataError, ValueError) as error:
        raise ConfigError(f"prepare: {error}") from error
    except OSError as error:
        raise ConfigError(f"prepare: {error.filename or out}: {error.strerror or error}") from error


def _fetch_fashion_mnist(out: Path | None) -> None:
    from workloads.data.images import fetch_fashion_mnist

    folder = fetch_fashion_mnist(out or home() / "data" / FASHION)
    click.echo(f"Fashion-MNIST is in {folder}")
    where = "" if out is None else f", folder: {folder.absolute()}"
    click.echo(f"Use it: workload: {{name: image, data: {{name: fashion-mnist{where}}}}}")


def _prepare(sources: Sequence[str], out: Path | None, settings: dict[str, object]) -> None:
    from workloads.data import at_home
    from workloads.data.prepare import prepare as prepare_corpus
    from workloads.data.sources import Layout

    if out is None:
        raise ConfigError("prepare: --out is required: the folder to make")
    layout = {name: settings[name] for name in ("documents", "token_type", "vocab_size")}
    terminal = Terminal()
    prepared = prepare_corpus(
        [at_home(source, "sources") for source in sources],
        out,
        tokenizer=_tokenizer(str(settings["tokenizer"])),
        text_column=str(settings["text_column"]),
        held_out=float(str(settings["held_out"])),
        seed=int(str(settings["seed"])),
        layout=Layout(**layout),  # type: ignore[arg-type]  # checked by the class
        progress=lambda documents, tokens: terminal.update(f"{documents:,} documents, {tokens:,} tokens"),
    )
    terminal.end()
    state = "written" if prepared.written else "there already, nothing to do"
    click.echo(f"{prepared.folder}: {prepared.documents:,} documents, {prepared.tokens:,} tokens, {state}")
    click.echo(f"Use it: workload: {{name: gpt, data: {{name: tokens, path: {prepared.folder.absolute()}}}}}")


def _tokenizer(named: str) -> str | int | Path:
    """Return what to make tokens by: bytes, a vocabulary size or a file."""
    try:
        return int(named)
    except ValueError:
        return named if named == "bytes" else Path(named)


@click.command()
@sweep_arguments
@click.option("--delete", is_flag=True, help="Delete; without it, only show what would go.")
def gc(sweep: str, overrides: Sequence[str], delete: bool) -> None:
    """Drop checkpoints nobody needs: of ended trials, and of trials no longer in the plan.

    What a training script of your own kept in its checkpoint folder goes with them. Outcomes and curves always stay.
    Shows what would go, unless --delete is given.
    """
    loaded = load(sweep, overrides)
    from orchestrator.cli.garbage import drop, find_garbage
    from orchestrator.progress import human

    garbage = find_garbage(loaded.sweep, home=home())
    if not garbage:
        click.echo(f"{loaded.sweep.name}: no checkpoints to drop")
        return
    rows = []
    for why in sorted({item.why for item in garbage}):
        items = [item for item in garbage if item.why == why]
        size = human(sum(item.size_bytes for item in items))
        rows.append([why, f"{len(items):,}", f"{sum(item.files for item in items):,}", f"{size}B"])
    print_table(["trials", "count", "checkpoints", "size"], rows)
    total = f"{sum(item.files for item in garbage):,} checkpoints, {human(sum(i.size_bytes for i in garbage))}B"
    if delete:
        drop(garbage, loaded.sweep, home=home())
        click.echo(f"{total} deleted")
    else:
        click.echo(f"{total} would go: add --delete")


@click.command()
@click.argument("sweep", required=False)
@click.argument("overrides", nargs=-1)
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Loopback: forward the port from elsewhere.")
def ui(sweep: str | None, overrides: Sequence[str], port: int, host: str) -> None:
    """Open the curves in MLflow's UI: of the default store, or of the one that SWEEP names."""
    from orchestrator.tracking.client import check, check_form, redact, resolve_uri

    own, experiment = None, None
    if sweep is not None:
        from orchestrator.config import resolve_text

        asked = load(sweep, overrides).sweep
        own, experiment = resolve_text(asked.tracking.uri, os.environ), asked.experiment
    uri = resolve_uri(own, home=home(), environ=os.environ)
    check_form(uri)
    if uri.startswith(("http://", "https://")):
        click.echo(f"The curves are on a server: open {redact(uri)}")
        return
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise ConfigError(f"ui: there are no curves yet in {uri.removeprefix('sqlite:///')}: run a sweep first")
    check(uri, create=False)
    _check_port(host, port)
    page = _page(uri, experiment)
    click.echo(f"The curves: http://{host}:{port}/#/{page}?{TRAINING} (in ten seconds or so; Ctrl-C ends it)")
    sys.stdout.flush()
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--host",
        host,
        "--port",
        str(port),
    ]
    command += ["--artifacts-destination", (home() / "artifacts").as_uri(), "--workers", "1"]
    os.execv(sys.executable, command)


def _page(uri: str, experiment: str | None) -> str:
    """Return the page of a sweep's runs, or of all experiments. Raises StoreError: the store lacks the sweep's."""
    if experiment is None:
        return "experiments"
    from orchestrator.tracking.client import connect

    return f"experiments/{connect(uri, experiment, home=home(), create=False).experiment_id}/runs"


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            if getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES):
                raise ConfigError(f"ui: {host}:{port}: {reason}: name another with --port") from error
            raise ConfigError(
                f"ui: --host: must be a name or address of this machine, got {host!r} ({reason})"
            ) from error
