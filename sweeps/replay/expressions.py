"""Column expressions and row filters of a recorded table: parsed, never evaluated as code.

An expression is a column, a number, or these with + - * / and brackets; `log(x)` and `exp(x)`. A filter compares two
expressions with < <= > >= == !=, joined by `and`, `or`, `not`. A column whose name is no plain word is quoted.
"""

# R rows

from __future__ import annotations

import ast
import operator
import sys
from collections.abc import Callable, Collection, Mapping, Sequence

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
MOST_PARTS = 500  # of an expression, operators and names both: half of how deep Python calls itself; a choice
SHOWN = 60  # characters of an expression in a message


def values_of(text: str, columns: Mapping[str, Floats], *, where: str, without_numbers: Collection[str] = ()) -> Floats:
    """Return the value of an expression in every row, shape [R]. Raises ConfigError, with the place at fault.

    `without_numbers` names the table's other columns, for the message.
    """
    reader = _Reader(text, columns, where, without_numbers)
    with np.errstate(all="ignore"):
        found = reader.number(reader.tree)
    return np.broadcast_to(found, (_length(columns),)).astype(np.float64)


def rows_where(text: str, columns: Mapping[str, Floats], *, where: str) -> Booleans:
    """Return which rows a filter keeps, shape [R]. Raises ConfigError, with the place at fault."""
    reader = _Reader(text, columns, where)
    with np.errstate(all="ignore"):
        found = reader.truth(reader.tree)
    return np.broadcast_to(found, (_length(columns),)).astype(np.bool_)


def pairs_of(text: str, *, where: str) -> dict[str, str]:
    """Return `name=expression,name=expression` as a mapping; commas in brackets or quotes do not part."""
    pairs: dict[str, str] = {}
    for part in _parted(text, where):
        name, equals, expression = part.partition("=")
        if not equals or not name.strip() or not expression.strip():
            raise ConfigError(f"{where}: must be name=expression, got {shown(part)}")
        if name.strip() in pairs:
            raise ConfigError(f"{where}: {name.strip()} is given twice")
        pairs[name.strip()] = expression.strip()
    return pairs


def _parted(text: str, where: str) -> list[str]:
    """Return what commas part, those in brackets or quotes apart. Raises ConfigError where one is left open."""
    parts: list[str] = []
    depth, quote, start = 0, "", 0
    for i, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "()":
            depth += 1 if letter == "(" else -1
            if depth < 0:
                raise ConfigError(f"{where}: a ) closes no bracket, after {shown(text[start:i])}")
        elif letter == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    if quote or depth:
        raise ConfigError(f"{where}: a {quote or '('} is not closed in {shown(text[start:])}")
    parts.append(text[start:])
    return parts


def shown(text: str) -> str:
    """Return an expression in quotes for a message, cut where it is long."""
    text = text.strip()
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def _length(columns: Mapping[str, Floats]) -> int:
    return len(next(iter(columns.values()), ()))


class _Reader:
    """Walks the syntax tree of one expression."""

    def __init__(
        self, text: str, columns: Mapping[str, Floats], where: str, without_numbers: Collection[str] = ()
    ) -> None:
        self._source, self._text, self._columns, self._where = text.strip(), shown(text), columns, where
        self._without_numbers = without_numbers
        try:
            self.tree = ast.parse(self._source, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two of brackets in brackets
            raise ConfigError(f"{where}: {self._text} is no expression") from None
        parts = sum(isinstance(node, ast.expr) for node in ast.walk(self.tree))
        if parts > MOST_PARTS:
            raise ConfigError(f"{where}: must have at most {MOST_PARTS:,} parts, got {parts:,} in {self._text}")

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
        raise ConfigError(f"{self._where}: must be a comparison such as tokens<=2e10, got {self._text}")

    def _leaf(self, node: ast.expr) -> Floats:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
            if not abs(node.value) <= sys.float_info.max:
                raise ConfigError(f"{self._where}: a number is beyond what a float holds in {self._text}")
            return np.asarray(float(node.value))
        name = node.id if isinstance(node, ast.Name) else node.value if isinstance(node, ast.Constant) else None
        if not isinstance(name, str):
            raise ConfigError(
                f"{self._where}: {self._part(node)} is not understood in {self._text}; "
                f"columns, numbers, + - * / ** ( ) and {', '.join(FUNCTIONS)} are"
            )
        if name in self._without_numbers:
            raise ConfigError(f"{self._where}: column {name!r} holds no numbers")
        if name not in self._columns:
            raise unknown_name(self._where, name, self._columns, "column")
        return self._columns[name]

    def _part(self, node: ast.expr) -> str:
        return shown(ast.get_source_segment(self._source, node) or "")

    def _is_function(self, node: ast.Call) -> bool:
        assert isinstance(node.func, ast.Name)
        if node.func.id not in FUNCTIONS:
            raise unknown_name(self._where, node.func.id, FUNCTIONS, "function")
        if len(node.args) != 1 or node.keywords:
            raise ConfigError(f"{self._where}: {node.func.id}() takes one value, got {self._part(node)}")
        return True
