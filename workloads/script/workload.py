"""The script workload: what a sweep says of a training function or script."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from workloads.base import Facts

FLOPS_PER_PARAMETER = 6.0  # a token's training FLOPs; Kaplan et al. 2020, arXiv:2001.08361, section 2.1; published
TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")  # module:function


@dataclass(frozen=True)
class Script:
    """A training function or script of the user's own.

    Exactly one of `target` and `path` is given. The code is no part of a trial's identity: `revision` is.

    Attributes:
        target: "module:function", called as function(trial, report, checkpoint_folder).
        path: a Python file, run as `python FILE` would.
        settings: handed to the code as `trial.settings`; plain JSON.
        tokens_per_example: batch sizes are multiples of it.
        parameters: trainable numbers without embeddings, the N of a law; None: not known.
        flops_per_token: training FLOPs of a token; None: 6 a parameter.
        train_tokens: tokens of one pass over the data; None: it never repeats.
        unit: what a token is, for display.
        revision: change it when the code or its data change, and trials run anew.
    """

    target: str | None = None
    path: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    tokens_per_example: int = 1
    parameters: int | None = None
    flops_per_token: float | None = None
    train_tokens: int | None = None
    unit: str = "token"
    revision: str = "1"

    version: ClassVar[int] = 1
    target_metric_name: ClassVar[str] = "loss"
    metric_mode: ClassVar[str] = "min"
    OUTSIDE: ClassVar[tuple[str, ...]] = (  # not part of a trial's identity: the script sees none of them
        "tokens_per_example",
        "parameters",
        "flops_per_token",
        "train_tokens",
        "unit",
    )

    def __post_init__(self) -> None:
        if (self.target is None) == (self.path is None):
            raise ValueError(f"target: must be given, or path, not both, got {self.target!r} and {self.path!r}")
        if self.target is not None and not TARGET.fullmatch(self.target):
            raise ValueError(f"target: must be 'module:function', got {self.target!r}")
        if self.tokens_per_example < 1:
            raise ValueError(f"tokens_per_example: must be at least 1, got {self.tokens_per_example}")
        for name in ("parameters", "flops_per_token", "train_tokens"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}: must be above 0, got {value}")

    @property
    def label(self) -> str:
        """What to call it in messages."""
        return self.path or self.target or ""

    def facts(self) -> Facts:
        """Return the facts as declared. Raises DataError where there is no such file, module or function."""
        from workloads.base import Facts  # torch: a script's own process does without

        self._check_exists()
        parameters = self.parameters or 0
        return Facts(
            parameters=parameters,
            non_embedding_parameters=parameters,
            flops_per_token=self.flops_per_token or FLOPS_PER_PARAMETER * parameters,
            tokens_per_example=self.tokens_per_example,
            unit=self.unit,
            train_tokens=self.train_tokens,
            data_fingerprint=hashlib.sha256(f"script {self.revision}".encode()).hexdigest(),
        )

    def _check_exists(self) -> None:
        """Find the code and parse it, without running it. Raises DataError."""
        from workloads.base import DataError

        if self.path is not None:
            try:
                found = Path(self.path).is_file()
            except OSError:  # a name longer than the file system takes
                found = False
            if not found:
                raise DataError(f"path: no such file: {self.path}")
            _names("path", Path(self.path))
            return
        module, _, function = str(self.target).partition(":")
        here = str(Path.cwd())  # where its process looks first
        sys.path.insert(0, here)
        try:
            spec = importlib.util.find_spec(module)
        except (Exception, SystemExit) as error:  # the packages above it are imported: code of the user's
            why = f"{type(error).__name__}: {error}"
            raise DataError(f"target: cannot find the module {module!r}: {why}") from error
        finally:
            sys.path.remove(here)
        if spec is None:
            raise DataError(f"target: no module {module!r} in {here} or on the Python path")
        if spec.origin is not None and spec.origin.endswith(".py"):
            names = _names("target", Path(spec.origin))
            if names is not None and function not in names:
                raise DataError(f"target: {spec.origin} has no {function!r}. It has: {', '.join(sorted(names))}")


def _names(where: str, path: Path) -> set[str] | None:
    """Return the names at the top of a Python file; None where they cannot be told by reading. Raises DataError."""
    from workloads.base import DataError

    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{where}: cannot read {path}: {error}") from error
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            return None
    return None if "*" in names else names
