"""Any corpus of text or tokens as a folder of memory-mapped shards: the work behind `powersweep prepare`.

The documents are read as a stream and written a shard at a time, into a folder beside the wanted one, which takes
its name at the end: an interrupted run leaves nothing there. The same inputs give the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from workloads.base import DataError, stable_seed
from workloads.data.shards import (
    HELD_OUT,
    MANIFEST,
    TRAIN,
    Manifest,
    Shard,
    Split,
    read_manifest,
    smallest_type,
    write_shard,
)
from workloads.data.sources import Layout, Piece, find_files, read_pieces
from workloads.data.stream import TokenArray
from workloads.data.tokenize import BYTES, Codec, make_codec

Progress = Callable[[int, int], None]  # (documents, tokens) so far
BATCH_LENGTH = 1 << 20  # characters or tokens that are encoded at once
SEED_RANGE = float(1 << 63)  # of stable_seed


@dataclass(frozen=True, slots=True)
class Prepared:
    """A corpus on disk.

    Attributes:
        folder: where it is: `path` of the corpus `tokens`.
        manifest: what it holds.
        written: False where the same corpus was there already.
    """

    folder: Path
    manifest: Manifest
    written: bool

    @property
    def tokens(self) -> int:
        """Tokens of both splits."""
        return sum(split.tokens for split in self.manifest.splits.values())

    @property
    def documents(self) -> int:
        """Documents of both splits."""
        return sum(split.documents for split in self.manifest.splits.values())


def prepare(
    sources: Sequence[Path],
    out: Path,
    *,
    tokenizer: str | Path | int = BYTES,
    text_column: str = "text",
    held_out: float = 0.05,
    seed: int = 0,
    layout: Layout | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Write a corpus as token shards and return what was written.

    Args:
        sources: files, or folders of files, of the kinds in `sources.READERS`.
        out: the folder to make; one that holds the very same corpus is left as it is.
        tokenizer: "bytes"; the path of a tokenizer.json; or a vocabulary size, for a BPE trained on the sources.
        text_column: of JSON lines and Parquet.
        held_out: share of the documents to hold out, by a seeded draw for each. If none is drawn, as in a corpus of one
            document, this share of the tokens at its end is held out.
        seed: of that draw.
        layout: see Layout.
        progress: is called now and then with the documents and tokens written so far.

    Raises:
        DataError: a source is missing, unreadable, malformed or empty, or `out` holds something else.
        ValueError: a setting is out of range.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out: must be between 0 and 1, got {held_out}")
    layout, files = layout or Layout(), find_files(sources)
    request = _request(files, tokenizer, layout) | {"text_column": text_column, "held_out": held_out, "seed": seed}
    there = _what_is_there(out, request)
    codec = make_codec(tokenizer, files, layout, text_column)
    work = out.parent / f".{out.name}.partial"
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        manifest = _write(work, files, codec, request, layout, progress)
        if there is None:
            if out.is_dir():
                out.rmdir()
            work.rename(out)
        elif there.fingerprint != manifest.fingerprint:
            raise DataError(f"out: {out} holds another corpus; name another folder or remove it")
    except OSError as error:
        raise DataError(f"out: cannot write {out} ({error.strerror or error})") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Prepared(out, manifest, written=there is None)


def _request(files: Sequence[Path], tokenizer: str | Path | int, layout: Layout) -> dict[str, Any]:
    """Return what makes a corpus, for its manifest, but for the settings of `prepare` itself."""
    return {
        "sources": [[path.name, path.stat().st_size] for path in files],
        "tokenizer": str(tokenizer) if isinstance(tokenizer, str | int) else tokenizer.name,
        "documents": layout.documents,
        "token_type": layout.token_type,
        "vocab_size": layout.vocab_size,
        "shard_tokens": layout.shard_tokens,
    }


def _what_is_there(out: Path, request: dict[str, Any]) -> Manifest | None:
    """Return the manifest of a corpus already in the folder, None where nothing is. Raises DataError."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / MANIFEST).is_file():
        raise DataError(f"out: must be a new or an empty folder, but {out} is there and holds no corpus")
    there = read_manifest(out)
    if dict(there.request) != request:
        changed = sorted(name for name in request if there.request.get(name) != request[name])
        raise DataError(f"out: {out} holds another corpus (different {', '.join(changed)}); name another folder")
    return there


def _write(
    work: Path,
    files: Sequence[Path],
    codec: Codec,
    request: dict[str, Any],
    layout: Layout,
    progress: Progress | None,
) -> Manifest:
    """Write the shards and the manifest into `work`."""
    share, column = float(request["held_out"]), str(request["text_column"])
    vocab_size = codec.vocab_size or _largest_token(read_pieces(files, layout, column), codec) + 1

    pieces = partial(read_pieces, files, layout, column)

    def by_document(index: int, before: int, length: int) -> int:
        del before
        return 0 if stable_seed("held out", request["seed"], index) / SEED_RANGE < share else length

    splits = _write_splits(work, _encoded(pieces(), codec, vocab_size, progress), layout, vocab_size, by_document)
    total = sum(split.tokens for split in splits.values())
    if not sum(split.documents for split in splits.values()):
        raise DataError(f"sources: must hold text, but all {len(files)} files are empty (first: {files[0]})")
    held_out_by = "document"
    if not (splits[TRAIN].tokens and splits[HELD_OUT].tokens):
        held_out_by, boundary = "tail", round(total * (1 - share))
        for file in work.iterdir():
            file.unlink()

        def by_position(index: int, before: int, length: int) -> int:
            del index
            return min(length, max(0, boundary - before))

        splits = _write_splits(work, _encoded(pieces(), codec, vocab_size, None), layout, vocab_size, by_position)
    if codec.file is not None:
        (work / codec.name).write_text(codec.file, "utf8")
    unit = "byte" if codec.name == BYTES else "token"
    manifest = Manifest(codec.name, vocab_size, codec.end_of_document, unit, held_out_by, splits, request)
    (work / MANIFEST).write_text(manifest.text(), "utf8")
    return manifest


def _largest_token(pieces: Iterator[Piece], codec: Codec) -> int:
    largest = 0
    for piece in pieces:
        largest = max(largest, *(int(tokens.max()) for tokens in codec.encode([piece])))
    return largest


def _in_batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Yield the pieces in lists of about BATCH_LENGTH characters or tokens."""
    batch: list[Piece] = []
    length = 0
    for piece in pieces:
        batch.append(piece)
        length += len(piece.content)
        if length >= BATCH_LENGTH:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def _encoded(
    pieces: Iterator[Piece], codec: Codec, vocab_size: int, progress: Progress | None
) -> Iterator[tuple[int, TokenArray]]:
    """Yield (number of the document, its next tokens), each document closed by its end token. Raises DataError."""
    document, written = 0, 0
    for batch in _in_batches(pieces):
        for piece, tokens in zip(batch, codec.encode(batch), strict=True):
            if len(tokens) and int(tokens.max()) >= vocab_size:
                raise DataError(
                    f"{piece.path}: tokens must be below the vocabulary size {vocab_size}, got {int(tokens.max())}"
                )
            if piece.last and codec.end_of_document is not None:
                tokens = np.append(tokens, np.array([codec.end_of_document], dtype=tokens.dtype))
            yield document, tokens
            document, written = document + piece.last, written + len(tokens)
        if progress is not None:
            progress(document, written)


class _Writer:
    """The shards of one split, written as they fill."""

    def __init__(self, folder: Path, name: str, layout: Layout, dtype: np.dtype[Any]) -> None:
        self._folder, self._name = folder, name
        self._buffer = np.empty(layout.shard_tokens, dtype=dtype)
        self._used = 0
        self._shards: list[Shard] = []
        self._documents = 0
        self._newest: int | None = None

    def add(self, document: int, tokens: TokenArray) -> None:
        """Append the tokens of a document, or of its next piece."""
        if len(tokens) and document != self._newest:
            self._documents, self._newest = self._documents + 1, document
        while len(tokens):
            part = tokens[: len(self._buffer) - self._used]
            self._buffer[self._used : self._used + len(part)] = part
            self._used += len(part)
            tokens = tokens[len(part) :]
            if self._used == len(self._buffer):
                self._flush()

    def close(self) -> Split:
        """Write what is left and return what was written."""
        if self._used:
            self._flush()
        return Split(sum(shard.tokens for shard in self._shards), self._documents, tuple(self._shards))

    def _flush(self) -> None:
        path = self._folder / f"{self._name}-{len(self._shards):05d}.arrow"
        self._shards.append(write_shard(path, self._buffer[: self._used]))
        self._used = 0


def _write_splits(
    folder: Path,
    encoded: Iterator[tuple[int, TokenArray]],
    layout: Layout,
    vocab_size: int,
    train_share: Callable[[int, int, int], int],
) -> dict[str, Split]:
    """Write both splits; `train_share(document, tokens before, tokens)` says how many of these tokens to train on."""
    writers = {name: _Writer(folder, name, layout, smallest_type(vocab_size)) for name in (TRAIN, HELD_OUT)}
    before = 0
    for document, tokens in encoded:
        share = train_share(document, before, len(tokens))
        writers[TRAIN].add(document, tokens[:share])
        writers[HELD_OUT].add(document, tokens[share:])
        before += len(tokens)
    return {name: writer.close() for name, writer in writers.items()}
