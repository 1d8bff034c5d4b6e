"""The house keeps its shape: sizes of files and folders, imports that stay light, the tree of errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("sweeps", "workloads", "orchestrator")
MOST_LINES = 300
MOST_FILES = 12
LONGER: set[str] = set()  # files over the limit, each a decision


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_longer_than_its_limit(package: str) -> None:
    long = {
        str(path.relative_to(ROOT))
        for path in (ROOT / package).rglob("*.py")
        if len(path.read_text().splitlines()) > MOST_LINES
    }
    assert long == LONGER & long


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_holds_more_files_than_a_glance(package: str) -> None:
    folders = [ROOT / package, *(p for p in (ROOT / package).rglob("*") if p.is_dir() and p.name != "__pycache__")]
    crowded = {str(f.relative_to(ROOT)): n for f in folders if (n := len(list(f.glob("*.py")))) > MOST_FILES}
    assert crowded == {}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("sweeps", {"torch", "ray", "mlflow", "optuna", "omegaconf", "matplotlib"}),
        ("sweeps.laws.law", {"torch", "ray", "mlflow", "optuna", "omegaconf", "matplotlib", "pyarrow"}),
        ("workloads.script", {"torch", "ray", "mlflow", "optuna", "omegaconf"}),
        ("orchestrator.cli", {"torch", "ray", "mlflow", "optuna", "omegaconf", "matplotlib"}),
    ],
)
def test_importing_a_door_does_not_bring_in_the_heavy_furniture(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
