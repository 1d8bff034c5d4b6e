"""Column expressions and row filters of a recorded table: parsed, never evaluated as code.

An expression is a column, a number, or these with + - * / and brackets; `log(x)` and `exp(x)`. A filter compares two
expressions with < <= > >= == !=, joined by `and`, `or`, `not`. A column whose name is no plain word is quoted.
"""

# R rows

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sweeps.errors import ConfigError, unknown_name

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

ARITHMETIC: Mapping[type[ast.operator], Callable[[Floats, Floats], Floats]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
COMPARISONS: Mapping[type[ast.cmpop], Callable[[Floats, Floats], Booleans]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
FUNCTIONS: Mapping[str, Callable[[Floats], Floats]] = {"log": np.log, "exp": np.exp}
JOINERS: Mapping[type[ast.boolop], Callable[[Booleans, Booleans], Booleans]] = {
    ast.And: operator.and_,
    ast.Or: operator.or_,
}


def values_of(text: str, columns: Mapping[str, Floats], *, where: str) -> Floats:
    """Return the value of an expression in every row, shape [R]. Raises ConfigError, with the place at fault."""
    reader = _Reader(text, columns, where)
    with np.errstate(all="ignore"):
        found = reader.number(reader.tree)
    return np.broadcast_to(found, (_length(columns),)).astype(np.float64)


def rows_where(text: str, columns: Mapping[str, Floats], *, where: str) -> Booleans:
    """Return which rows a filter keeps, shape [R]. Raises ConfigError, with the place at fault."""
    reader = _Reader(text, columns, where)
    return np.broadcast_to(reader.truth(reader.tree), (_length(columns),)).astype(np.bool_)


def pairs_of(text: str, *, where: str) -> dict[str, str]:
    """Return `name=expression,name=expression` as a mapping; commas in brackets or quotes do not part."""
    parts, depth, quote, start = [], 0, "", 0
    for i, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "()":
            depth += 1 if letter == "(" else -1
        elif letter == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    pairs: dict[str, str] = {}
    for part in parts:
        name, equals, expression = part.partition("=")
        if not equals or not name.strip() or not expression.strip():
            raise ConfigError(f"{where}: must be name=expression, got {part.strip()!r}")
        if name.strip() in pairs:
            raise ConfigError(f"{where}: {name.strip()} is given twice")
        pairs[name.strip()] = expression.strip()
    return pairs


def _length(columns: Mapping[str, Floats]) -> int:
    return len(next(iter(columns.values()), ()))


class _Reader:
    """Walks the syntax tree of one expression."""

    def __init__(self, text: str, columns: Mapping[str, Floats], where: str) -> None:
        self._text, self._columns, self._where = text, columns, where
        try:
            self.tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError):
            raise ConfigError(f"{where}: {text!r} is no expression") from None

    def number(self, node: ast.expr) -> Floats:
        """Return the value of a numeric node, shape [R] or []."""
        if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            return ARITHMETIC[type(node.op)](self.number(node.left), self.number(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return np.asarray(-self.number(node.operand))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and self._is_function(node):
            return FUNCTIONS[node.func.id](self.number(node.args[0]))
        return self._leaf(node)

    def truth(self, node: ast.expr) -> Booleans:
        """Return the value of a filter node, shape [R] or []."""
        if isinstance(node, ast.BoolOp):
            join, found = JOINERS[type(node.op)], [self.truth(value) for value in node.values]
            for other in found[1:]:
                found[0] = join(found[0], other)
            return found[0]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return np.asarray(~self.truth(node.operand))
        if isinstance(node, ast.Compare) and all(type(op) in COMPARISONS for op in node.ops):
            sides: Sequence[Floats] = [self.number(side) for side in (node.left, *node.comparators)]
            found = [COMPARISONS[type(op)](sides[i], sides[i + 1]) for i, op in enumerate(node.ops)]
            return np.asarray(np.logical_and.reduce(found))
        raise ConfigError(f"{self._where}: must be a comparison such as tokens<=2e10, got {self._text!r}")

    def _leaf(self, node: ast.expr) -> Floats:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
            return np.asarray(float(node.value))
        name = node.id if isinstance(node, ast.Name) else node.value if isinstance(node, ast.Constant) else None
        if not isinstance(name, str):
            raise ConfigError(
                f"{self._where}: {ast.unparse(node)!r} is not understood in {self._text!r}; "
                f"columns, numbers, + - * / ** ( ) and {', '.join(FUNCTIONS)} are"
            )
        if name not in self._columns:
            raise unknown_name(self._where, name, self._columns, "column")
        return self._columns[name]

    def _is_function(self, node: ast.Call) -> bool:
        assert isinstance(node.func, ast.Name)
        if node.func.id not in FUNCTIONS or len(node.args) != 1 or node.keywords:
            raise unknown_name(self._where, node.func.id, FUNCTIONS, "function of one value")
        return True
