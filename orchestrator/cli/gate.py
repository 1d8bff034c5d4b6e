"""Commands that judge a law or a recipe: validate, compare."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.app import Terminal, home, json_option, load, print_json, print_table, sweep_arguments
from sweeps.errors import ConfigError, FitError

if TYPE_CHECKING:
    from orchestrator.config import Loaded
    from orchestrator.launch import Ended
    from orchestrator.results import Findings
    from sweeps.laws.compare import Comparison, Tuned
    from sweeps.laws.law import Law
    from sweeps.laws.records import Verdict
    from sweeps.spec import Json

LARGER = 2.0  # times the most tokens fitted: the target where none is named
MOST_SEEDS = 1000  # of a held-out check: far beyond what narrows it; a choice


@click.command()
@sweep_arguments
@click.option("--law", "law_file", type=click.Path(path_type=Path), default=None, help="Check the law of this file.")
@click.option("--tokens", type=float, default=None, help="The target's horizon; twice the most fitted by default.")
@click.option("--batch-tokens", type=float, default=None, help="The target's batch; the middle one by default.")
@click.option("--seeds", type=int, default=None, help="Paired seeds, 3 at least for a verdict.")
@json_option
@click.pass_context
def validate(
    ctx: click.Context,
    /,
    sweep: str,
    overrides: Sequence[str],
    law_file: Path | None,
    tokens: float | None,
    batch_tokens: float | None,
    seeds: int | None,
    as_json: bool,
) -> None:
    """Check a law at a larger scale: run its LR and the neighbours there, and mark the law.

    The law is the sweep's own, or that of --law; the runs are the sweep's recipe at the target, which is that of its
    validate section unless it is named. What has run already is not run again. Where the best LR is the lowest or the
    highest tried, up to two more follow beyond it. law.json then says validated, rejected or cannot tell.

    Exit code: 0 validated; 1 rejected, cannot tell, no law, beyond its reach, or trials failed; 2 the input is wrong;
    130 interrupted.
    """
    asked = {"--tokens": tokens, "--batch-tokens": batch_tokens, "--seeds": seeds}
    _check_asked(asked)
    if Path(sweep).suffix == ".json":
        raise ConfigError(f"SWEEP: a law is checked by runs of a recipe: powersweep validate SWEEP --law {sweep}")
    loaded = load(sweep, overrides)
    findings = _findings(loaded, law_file)
    loaded = load(sweep, [*overrides, *_target(loaded, findings, asked)])
    _check_reach(loaded, findings)
    if law_file is not None:
        _warn_of_another_recipe(loaded, findings, law_file)
    ended = _run(loaded, findings, quiet=as_json)
    judged = ended.findings
    if judged is None or not judged.held_out:  # nothing has run: what a law says of an earlier check stays
        for line in ended.lines:
            click.echo(line, err=as_json)
        ctx.exit(ended.exit_code or 1)
    marked = _mark(loaded, judged, law_file)
    if as_json:
        print_json({"laws": {label: _told(v) for label, v in judged.verdicts.items()}, "files": list(map(str, marked))})
    else:
        for line in [*ended.lines, *(_worth(v) for v in judged.verdicts.values()), *(f"  {path}" for path in marked)]:
            click.echo(line)
    passed = all(verdict.status == "validated" for verdict in judged.verdicts.values())
    ctx.exit(ended.exit_code or (0 if passed else 1))


def _check_asked(asked: Mapping[str, float | int | None]) -> None:
    """Raise ConfigError for an option that cannot be, before anything is read."""
    for name, value in asked.items():
        if value is not None and not 1 <= value < math.inf:
            raise ConfigError(f"{name}: must be at least 1 and finite, got {value:g}")
    tokens, batch, seeds = (asked[name] for name in ("--tokens", "--batch-tokens", "--seeds"))
    if tokens is not None and batch is not None and batch > tokens:
        raise ConfigError(f"--batch-tokens: must be at most --tokens ({tokens:g}), got {batch:g}")
    if seeds is not None and seeds > MOST_SEEDS:
        raise ConfigError(f"--seeds: must be at most {MOST_SEEDS:,}, got {seeds}")


def _check_reach(loaded: Loaded, findings: Findings) -> None:
    """Raise ReachError where a law says nothing of the target: a check there would mark it for nothing."""
    target = loaded.sweep.validate
    assert target is not None, "the target is among the overrides"
    for label, law in findings.laws.items():
        if law is not None:
            size = findings.variants[label].size.parameters
            law.predict(batch_tokens=target.batch_tokens, tokens=target.tokens, parameters=size)


def _run(loaded: Loaded, findings: Findings, *, quiet: bool) -> Ended:
    """Run the held-out checks of these laws, beside the sweep's budget: they are asked for by name."""
    from orchestrator import launch
    from sweeps.spec import Budget

    terminal = Terminal()
    unlimited = replace(loaded, sweep=replace(loaded.sweep, budget=Budget()))
    console = _Quiet(terminal) if quiet else terminal
    try:
        return launch.run(unlimited, home=home(), environ=os.environ, console=console, only_check=findings)
    finally:
        terminal.end()


class _Quiet:
    """Shows progress only: what stays is printed as JSON at the end."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def say(self, text: str) -> None:
        """Say nothing."""

    def update(self, text: str) -> None:
        """Show progress."""
        self._terminal.update(text)


def _findings(loaded: Loaded, law_file: Path | None) -> Findings:
    """Return the laws to check: the sweep's own, or that of a file. Raises FitError, ConfigError."""
    from orchestrator import results

    if law_file is not None:
        return _foreign(loaded, law_file)
    found = results.fit(loaded, home=home(), environ=os.environ)
    laws = {label: law for label, law in found.laws.items() if law is not None}
    if not laws:
        raise FitError(f"{loaded.sweep.name}: there is no law to check. {'; '.join(found.refusals.values())}")
    return replace(found, laws=laws, verdicts={}, held_out={})


def _foreign(loaded: Loaded, law_file: Path) -> Findings:
    """Return a file's law as one of the sweep's recipe. Raises ConfigError."""
    from orchestrator.results import Findings
    from sweeps.laws.law import Law
    from sweeps.plan import group_label

    sweep = loaded.sweep
    labels = {group_label(sweep, variant) for variant in sweep.variants}
    if len(labels) > 1:
        raise ConfigError(f"--law: {sweep.name} has {len(labels)} recipes, name one by overrides: {', '.join(labels)}")
    variant = max(sweep.variants, key=lambda v: v.size.parameters)
    return Findings(cells={"": ()}, laws={"": Law.load(law_file)}, variants={"": variant})


def _warn_of_another_recipe(loaded: Loaded, findings: Findings, law_file: Path) -> None:
    law, variant = findings.laws[""], findings.variants[""]
    assert law is not None
    own = {"workload": variant.workload.identity(), "optimizer": variant.optimizer.identity()}
    own["schedule"] = loaded.sweep.schedule.identity()
    other = sorted(name for name, value in own.items() if law.recipe.get(name) != value)
    if other:
        click.echo(f"warning: {law_file} is the law of another {' and '.join(other)}", err=True)


def _target(loaded: Loaded, findings: Findings, asked: Mapping[str, float | int | None]) -> list[str]:
    """Return the target as overrides of the sweep, so that it is checked as if the sweep had it."""
    law = next(law for law in findings.laws.values() if law is not None)
    section = loaded.sweep.validate
    batches = sorted({cell["batch_tokens"] for cell in law.cells}) or [_middle(law, "batch_tokens")]
    default = {
        "tokens": LARGER * law.box["tokens"][1] if section is None else section.tokens,
        "batch_tokens": batches[len(batches) // 2] if section is None else section.batch_tokens,
    }
    given = {name[2:].replace("-", "_"): value for name, value in asked.items()}
    wanted = {name: default.get(name) if value is None else value for name, value in given.items()}
    return [f"validate.{name}={round(value)}" for name, value in wanted.items() if value is not None]


def _middle(law: Law, axis: str) -> float:
    return math.sqrt(math.prod(law.box[axis]))


def _mark(loaded: Loaded, judged: Findings, law_file: Path | None) -> list[Path]:
    """Write the verdicts into the law: of the file, or of the sweep, whose report then shows the check."""
    if law_file is not None:
        law = judged.laws[""]
        assert law is not None
        law.save(law_file)
        return [law_file]
    from orchestrator.report import write_folder

    paths = write_folder(loaded, home=home(), environ=os.environ)
    return [path for path in paths if path.suffix in (".json", ".html")]


def _told(verdict: Verdict) -> Json:
    from sweeps.laws.lawfile import plain

    return plain(asdict(verdict))


def _worth(verdict: Verdict) -> str:
    """Return in words what the law's LR gives up at the target."""
    if verdict.regret is None:
        return "regret: not known"
    worth = ""
    if verdict.regret_tokens is not None:
        share = 100.0 * verdict.regret_tokens / verdict.target["tokens"]
        worth = f", worth {verdict.regret_tokens:,.0f} tokens more ({share:.2g} % of the run)"
    return f"regret: {verdict.regret:.4g} of loss at the law's LR{worth}"


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--confidence", type=float, default=0.95, show_default=True, help="Of the intervals.")
@json_option
@click.pass_context
def compare(ctx: click.Context, a: str, b: str, confidence: float, as_json: bool) -> None:
    """Say which of two recipes is better, each at its own tuned LR, in loss and in tokens, with an interval.

    A and B are sweeps that have run, or the law.json of such: cells of the same batch, tokens and model size are set
    against each other. Sweeps say more: their seeds are paired.

    Exit code: 0 compared, also where it cannot tell; 1 no cell matches; 2 the input is wrong.
    """
    sides = [_side(name) for name in (a, b)]
    for field in ("unit", "data"):
        if sides[0].recipe.get(field) != sides[1].recipe.get(field):
            click.echo(f"warning: the two differ in {field}: their losses may not be comparable", err=True)
    from sweeps.laws.compare import compare as compared

    found = compared(sides[0].cells, sides[1].cells, confidence=confidence)
    if as_json:
        print_json({"a": a, "b": b, **asdict(found)})
    else:
        _print_comparison(found, a, b, unit=str(sides[0].recipe.get("unit", "token")))


@dataclass(frozen=True)
class _Side:
    """One of the two compared: its cells, and its recipe as a law has it."""

    cells: tuple[Tuned, ...]
    recipe: Mapping[str, Json]


def _side(name: str) -> _Side:
    """Return the cells of a law file or of a sweep that has run. Raises ConfigError."""
    from sweeps.laws.compare import of_cells, of_law
    from sweeps.laws.law import Law

    if Path(name).suffix == ".json":
        law = Law.load(name)
        return _Side(of_law(law), law.recipe)
    from orchestrator import results
    from orchestrator.report import law_paths

    loaded = load(name, ())
    found = results.fit(loaded, home=home(), environ=os.environ)
    if len(found.cells) > 1:
        files = ", ".join(map(str, law_paths(loaded.sweep.name, home() / "sweeps")))
        raise ConfigError(
            f"{name}: has {len(found.cells)} laws, name the file of one: {files or 'none is written yet'}"
        )
    label, cells = next(iter(found.cells.items()))
    if not any(cell.results for cell in cells):
        raise ConfigError(f"{name}: no trial has ended yet: powersweep run {name}")
    return _Side(of_cells(cells), results.recipe_of(loaded.sweep, found.variants[label]))


def _print_comparison(found: Comparison, a: str, b: str, *, unit: str) -> None:
    rows = [
        [
            cell.label,
            *(f"{lr:.3g}" for lr in cell.lr),
            *(f"{loss:.4f}" for loss in cell.loss),
            f"{cell.difference:+.4f}",
            "" if cell.sd is None else f"{cell.sd:.4f}",
        ]
        for cell in found.cells
    ]
    print_table(["cell", "lr* A", "lr* B", "loss A", "loss B", "A - B", "sd"], rows)
    for cell in found.left_out:
        click.echo(f"left out: {cell['recipe']}, {cell['label']}: {cell['reason']}")
    click.echo(f"A is {a}, B is {b}. {found.reason}")
    if found.tokens is None:
        click.echo(f"in {unit}s: not known, as B's loss does not fall with {unit}s over these cells")
    else:
        t = found.tokens
        click.echo(f"in {unit}s: for A's loss B needs x{t.value:.3g} (x{t.low:.3g} to x{t.high:.3g})")
    words = {"A": f"A ({a}) is better", "B": f"B ({b}) is better"}
    click.echo(words.get(found.better, "cannot tell which is better"))
