"""Documents read from files of text, JSON lines, Parquet and ready-made tokens, a piece at a time."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workloads.base import DataError
from workloads.data.stream import TokenArray

PIECE_CHARACTERS = 1 << 20  # text held at once
TOKEN_DOCUMENT = 1 << 16  # tokens: files of tokens do not say where documents end, so they are cut into equal parts
ROWS = 1024  # of a Parquet file held at once
LLMC_MAGIC = 20240520  # llm.c, dev/data/data_common.py: 256 int32 of header, then uint16
DOCUMENTS = ("file", "blank line")
TOKEN_TYPES = ("uint16", "uint32")
TOKEN_RANGE = 1 << 32  # a token is at most a uint32


@dataclass(frozen=True, slots=True)
class Layout:
    """How sources are to be read and shards to be cut.

    Attributes:
        documents: what a text file holds: one document ("file"), or many with blank lines between ("blank line").
        token_type: of the numbers in a .bin file: "uint16" (nanoGPT, llm.c) or "uint32".
        vocab_size: of ready-made tokens; None: one more than the largest.
        shard_tokens: tokens of one shard, which is held in memory while it is written.
    """

    documents: str = "file"
    token_type: str = "uint16"
    vocab_size: int | None = None
    shard_tokens: int = 1 << 24

    def __post_init__(self) -> None:
        if self.documents not in DOCUMENTS:
            raise ValueError(f"documents: must be one of {', '.join(DOCUMENTS)}, got {self.documents!r}")
        if self.token_type not in TOKEN_TYPES:
            raise ValueError(f"token_type: must be one of {', '.join(TOKEN_TYPES)}, got {self.token_type!r}")
        if self.vocab_size is not None and not 1 <= self.vocab_size <= TOKEN_RANGE:
            raise ValueError(f"vocab_size: must be at least 1 and at most 2**32, got {self.vocab_size}")
        if self.shard_tokens < 1:
            raise ValueError(f"shard_tokens: must be at least 1, got {self.shard_tokens}")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a document: text or tokens, the file it is from, and whether the document ends with it."""

    content: str | TokenArray
    path: Path
    last: bool = True


Reader = Callable[[Path, Layout, str], Iterator[Piece]]


def find_files(sources: Sequence[Path]) -> tuple[Path, ...]:
    """Return the files of the sources in their order, those of a folder by name. Raises DataError."""
    files: list[Path] = []
    for source in sources:
        if source.is_dir():
            inside = sorted(path for path in source.rglob("*") if path.is_file() and path.suffix in READERS)
            if not inside:
                raise DataError(f"{source}: must hold files named *{', *'.join(READERS)}, got a folder with none")
            files += inside
        elif not source.exists():
            raise DataError(f"{source}: no such file or folder")
        elif source.suffix not in READERS:
            raise DataError(f"{source}: must be named *{', *'.join(READERS)}, got {source.suffix or 'no suffix'!r}")
        else:
            files.append(source)
    if not files:
        raise DataError("sources: must name at least one file or folder, got none")
    return tuple(files)


def read_pieces(files: Sequence[Path], layout: Layout, column: str) -> Iterator[Piece]:
    """Yield the documents of all files, a piece at a time; empty documents are left out. Raises DataError."""
    for path in files:
        try:
            yield from READERS[path.suffix](path, layout, column)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: must be UTF-8 text, got byte 0x{error.object[error.start]:02x} ({error.reason})"
            ) from error


def holds_tokens(path: Path) -> bool:
    """Return whether a file holds ready-made tokens."""
    return READERS[path.suffix] in (_read_bin, _read_npy)


def _read_text(path: Path, layout: Layout, column: str) -> Iterator[Piece]:
    del column
    with path.open(encoding="utf8", newline="") as file:
        if layout.documents == "blank line":
            yield from _paragraphs(file, path)
            return
        # one piece is held back, so that the last is known to be the last
        previous = ""
        while lines := file.readlines(PIECE_CHARACTERS):
            if previous:
                yield Piece(previous, path, last=False)
            previous = "".join(lines)
        if previous:
            yield Piece(previous, path)


def _paragraphs(lines: Iterable[str], path: Path) -> Iterator[Piece]:
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield Piece("".join(paragraph).rstrip("\r\n"), path)
            paragraph = []
    if paragraph:
        yield Piece("".join(paragraph).rstrip("\r\n"), path)


def _read_json_lines(path: Path, layout: Layout, column: str) -> Iterator[Piece]:
    del layout
    with path.open(encoding="utf8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (
                ValueError,
                RecursionError,
            ) as error:  # not only bad JSON: nested or numbers longer than Python reads
                reason = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise DataError(f"{path}: line {number} must be JSON, got {line.strip()[:40]!r} ({reason})") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}: line {number} must be a JSON object, got {line.strip()[:40]!r}")
            if column not in row:
                raise _no_column(f"{path}: line {number}", column, [str(name) for name in row])
            yield from _document(row[column], path, f"line {number}: {column}")


def _read_parquet(path: Path, layout: Layout, column: str) -> Iterator[Piece]:
    del layout
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise _no_column(str(path), column, names)
            row = 0
            for batch in file.iter_batches(batch_size=ROWS, columns=[column]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield from _document(value, path, f"row {row}: {column}")
    except pa.ArrowException as error:
        raise DataError(f"{path}: must be a Parquet file ({str(error).splitlines()[0]})") from error


def _document(value: Any, path: Path, place: str) -> Iterator[Piece]:
    if value is None or value == "":
        return
    if not isinstance(value, str):
        raise DataError(f"{path}: {place} must be text, got {type(value).__name__}")
    try:
        value.encode("utf8")
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can hold and UTF-8 cannot
        raise DataError(
            f"{path}: {place} must be text, got {value[error.start]!a} at character {error.start}"
        ) from error
    yield Piece(value, path)


def _no_column(place: str, column: str, names: Sequence[str]) -> DataError:
    near = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return DataError(f"{place}: has no column {column!r}{hint}. It has: {', '.join(names) or 'none'}")


def _read_bin(path: Path, layout: Layout, column: str) -> Iterator[Piece]:
    del column
    dtype, size, header = np.dtype(layout.token_type), path.stat().st_size, 0
    if size >= 1024 and int(np.fromfile(path, dtype=np.int32, count=1)[0]) == LLMC_MAGIC:
        dtype, header = np.dtype(np.uint16), 1024
    if (size - header) % dtype.itemsize:
        raise DataError(f"{path}: must be a whole number of {dtype.name} tokens, got {size - header} bytes")
    if size > header:
        yield from _cut(np.memmap(path, dtype=dtype, mode="r", offset=header), path)


def _read_npy(path: Path, layout: Layout, column: str) -> Iterator[Piece]:
    del layout, column
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # no pickle, no zip
    except ValueError as error:
        raise DataError(f"{path}: must be a NumPy array file ({error})") from error
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(f"{path}: must be one-dimensional integers, got {array.ndim} dimensions of {array.dtype}")
    yield from _cut(array, path)


def _cut(tokens: Any, path: Path) -> Iterator[Piece]:
    for start in range(0, len(tokens), TOKEN_DOCUMENT):
        part = np.asarray(tokens[start : start + TOKEN_DOCUMENT])
        worst = int(part.min()) if part.min() < 0 else int(part.max())
        if not 0 <= worst < TOKEN_RANGE:
            raise DataError(f"{path}: tokens must be from 0 to 2**32 - 1, got {worst}")
        yield Piece(part.astype(np.uint32), path)


READERS: dict[str, Reader] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
    ".bin": _read_bin,
    ".npy": _read_npy,
}
