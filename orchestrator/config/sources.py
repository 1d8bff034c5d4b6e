"""Where a sweep is written: files, includes and overrides, merged into one tree."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # omegaconf's own parser: its errors know the line
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator.config.coerce import must
from sweeps.errors import ConfigError, unknown_name
from sweeps.spec import Json

SHIPPED = Path(__file__).parents[2] / "conf"  # installed beside this package
ENVIRONMENT = re.compile(r"\$\{oc\.env:([^,{}]+)(?:,([^{}]*))?\}")
SURROGATE = re.compile(r"[\ud800-\udfff]")  # what Python makes of bytes that are no UTF-8
MAX_DEPTH = 50  # of mappings and lists in each other: far beyond any sweep, far from Python's own limit
OVERRIDE = re.compile(r"(?!\d)[\w-]+(\.[\w-]+)*")
Tree = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A sweep as written: `tree` holds references (`${oc.env:NAME}`), `resolved` their values."""

    path: Path
    tree: Tree
    resolved: Tree

    @property
    def text(self) -> str:
        """The merged sweep as YAML, references kept."""
        return OmegaConf.to_yaml(OmegaConf.create(self.tree))


def read_source(name: str, overrides: Sequence[str], *, cwd: Path, environ: Mapping[str, str]) -> Source:
    """Return the merged tree of a sweep. Raises ConfigError."""
    path = find_sweep(name, cwd=cwd)
    tree = _read_file(path, ())
    for text in overrides:
        tree = _merge(tree, _override(text))
    return Source(path, tree, resolve(tree, environ))


def find_sweep(name: str, *, cwd: Path) -> Path:
    """Return the file of a sweep: a path, then ./conf/NAME.yaml, then one that ships with the package."""
    direct = cwd / name
    if _is_file(direct):
        return direct
    if direct.suffix in (".yaml", ".yml") or "/" in name:
        raise ConfigError(f"sweep: no file {name}")
    folders = [cwd / "conf", SHIPPED]
    for folder in folders:
        path = folder / f"{name}.yaml"
        if _is_file(path):
            return path
    names = {path.stem for folder in folders for path in folder.glob("*.yaml")}
    raise unknown_name("sweep", name, names, "file or sweep")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system takes
        return False


def resolve(tree: Json, environ: Mapping[str, str]) -> Json:
    """Return the tree with all references replaced by their values. Raises ConfigError."""
    try:
        filled = OmegaConf.create(_from_environment(copy.deepcopy(tree), environ, ""))
        return OmegaConf.to_container(filled, resolve=True)
    except OmegaConfBaseException as error:
        place = str(getattr(error, "full_key", "") or "sweep")
        raise ConfigError(f"{place}: {str(error).splitlines()[0]}") from error


def resolve_text(text: str | None, environ: Mapping[str, str]) -> str | None:
    """Return a text with its references (`${oc.env:NAME}`) replaced, at the moment of use. Raises ConfigError."""
    found: str | None = resolve({"value": text}, environ)["value"]
    return found


def _from_environment(value: Json, environ: Mapping[str, str], where: str) -> Json:
    """Return the value with `${oc.env:NAME}` and `${oc.env:NAME,default}` filled in from `environ`."""
    if isinstance(value, Mapping):
        return {k: _from_environment(v, environ, f"{where}.{k}".lstrip(".")) for k, v in value.items()}
    if isinstance(value, list):
        return [_from_environment(item, environ, f"{where}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def found(match: re.Match[str]) -> str:
        name, default = match.group(1).strip(), match.group(2)
        text = environ.get(name, default)
        if text is None:
            raise ConfigError(f"{where}: the environment variable {name} is not set")
        return text.replace("${", r"\${")

    return ENVIRONMENT.sub(found, value)


def _read_file(path: Path, above: tuple[Path, ...]) -> Tree:
    """Return the tree of a file over the trees it includes."""
    path = path.resolve()
    if path in above:
        chain = " -> ".join(p.name for p in [*above[above.index(path) :], path])
        raise ConfigError(f"include: {path.name} includes itself: {chain}")
    tree = _parse(path)
    merged: Tree = {}
    for included in _includes(tree.pop("include", []), path):
        merged = _merge(merged, _read_file(included, (*above, path)))
    return _merge(merged, tree)


def _includes(node: Json, path: Path) -> list[Path]:
    names = [node] if isinstance(node, str) else node
    if not (isinstance(names, list) and all(isinstance(name, str) and name for name in names)):
        raise must("include", "a file or a list of files", node)
    found = []
    for name in names:
        file_name = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
        choices = [path.parent / file_name, SHIPPED / file_name]
        first = next((choice for choice in choices if _is_file(choice)), None)
        if first is None:
            raise ConfigError(f"include: no file {choices[0]} (included by {path.name})")
        found.append(first)
    return found


def _parse(path: Path) -> Tree:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except RecursionError as error:
        raise _too_deep(str(path)) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_line_of(error)}: not YAML: {_problem(error)}") from error
    except OSError as error:  # of OmegaConf, for a lone number
        raise must(str(path), "a mapping of sections", text.strip()) from error
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{path}: not a sweep: {str(error).splitlines()[0]}") from error
    came = "a list" if isinstance(loaded, list) else "text"
    if not isinstance(loaded, dict) or (loaded and all(v is None for v in loaded.values()) and ":" not in text):
        raise ConfigError(f"{path}: must be a mapping of sections, got {came}")
    return _tidy(loaded, str(path))


def _line_of(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""


def _problem(error: Exception) -> str:
    context, problem = getattr(error, "context", None), getattr(error, "problem", None)
    said = ", ".join(text for text in (context, problem) if text)
    return said or next(iter(str(error).splitlines()), type(error).__name__)


def _override(text: str) -> Tree:
    """Return the tree that `a.b=value` sets; the value is YAML."""
    key, equals, _ = text.partition("=")
    if not equals or not OVERRIDE.fullmatch(key):
        raise ConfigError(f"override {text!r}: must be section.field=value, such as workload.width=128")
    if SURROGATE.search(text):
        raise ConfigError(f"override {text!r}: must be UTF-8 text")
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([text]), resolve=False)
    except RecursionError as error:
        raise _too_deep(f"override {text!r}") from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"override {text!r}: the value is not YAML: {_problem(error)}") from error
    assert isinstance(value, dict)
    return _tidy(value, f"override {text!r}")


def _tidy(tree: dict[Any, Any], where: str) -> Tree:
    """Return the tree with text keys, and the dotted names of its axes (`workload.width`) as nested ones."""
    _check_tree(tree, where)
    axes = tree.get("axes")
    if isinstance(axes, dict):
        nested: Tree = {}
        for key, value in axes.items():
            branch: Tree = {}
            leaf = branch
            *parents, last = key.split(".")
            for parent in parents:
                leaf = leaf.setdefault(parent, {})
            leaf[last] = value
            nested = _merge(nested, branch)
        tree["axes"] = nested
    return tree


def _too_deep(where: str) -> ConfigError:
    return ConfigError(f"{where}: must be nested at most {MAX_DEPTH} deep")


def _check_tree(value: Json, where: str, depth: int = 0) -> None:
    """Raise ConfigError unless the names of fields are text, nested at most MAX_DEPTH deep."""
    if depth > MAX_DEPTH:
        raise _too_deep(where)
    if isinstance(value, list):
        for item in value:
            _check_tree(item, where, depth + 1)
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or not key:
                raise ConfigError(f"{where}: names of fields must be text, got {key!r}")
            _check_tree(item, where, depth + 1)


def _merge(base: Tree, over: Tree, *, top: bool = True) -> Tree:
    """Return base with over on top: mappings merge, all else replaces.

    A section that `over` gives another `name` starts afresh: the fields of an AdamW are not those of an SGD.
    """
    if not top and "name" in over and over["name"] != base.get("name"):
        return dict(over)
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            merged[key] = _merge(below, value, top=False)
        else:
            merged[key] = value
    return merged
