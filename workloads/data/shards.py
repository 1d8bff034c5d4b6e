"""Folders of token shards: memory-mapped Arrow files and the manifest that says what is in them.

manifest.json          what the tokens are, and the SHA-256 of each shard
tokenizer.json         of the `tokenizers` library, where there is one
train-00000.arrow      one column "tokens", uint8, uint16 or uint32
held_out-00000.arrow
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from workloads.base import DataError
from workloads.data.stream import Corpus, TokenArray, TokenStream, fingerprint_of

MANIFEST = "manifest.json"
FORMAT = 1  # of the folder
COLUMN = "tokens"
TRAIN, HELD_OUT = "train", "held_out"
TYPES = ("uint8", "uint16", "uint32")
CHECKED_BYTES = 64 << 20  # a corpus up to this size is read and compared with its SHA-256 when it is loaded: 50 ms
END_TOKENS = 1 << 16  # looked at on both ends of each shard of a larger one


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of tokens."""

    file: str
    tokens: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Split:
    """The shards of one part of a corpus; `documents` counts the documents that begin in it."""

    tokens: int
    documents: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder of shards holds.

    Attributes:
        tokenizer: "bytes", "tokenizer.json" (in the folder), or "none" where the tokens came ready-made.
        vocab_size: how many different tokens there can be.
        end_of_document: the token after each document, or None.
        unit: what one token is, for display.
        held_out_by: "document" (no document is in both splits), or "tail" (the end of the corpus, where it has too few
            documents to part).
        request: what was asked for: the names and sizes of the sources, and every setting that shapes the shards.
        format: of the folder.
    """

    tokenizer: str
    vocab_size: int
    end_of_document: int | None
    unit: str
    held_out_by: str
    splits: Mapping[str, Split]
    request: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def fingerprint(self) -> str:
        """The hash of everything in the folder."""
        return fingerprint_of(json.dumps(asdict(self), sort_keys=True).encode())

    def text(self) -> str:
        """Return the manifest as the file holds it."""
        return json.dumps({**asdict(self), "fingerprint": self.fingerprint}, indent=1) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder. Raises DataError."""
    path = folder / MANIFEST
    if not path.is_file():
        what = "does not exist"
        if folder.exists():
            what = "holds no manifest.json" if folder.is_dir() else "is a file"
        raise DataError(f"data.path: must be a folder that `powersweep prepare` wrote, but {folder} {what}")
    try:
        found = json.loads(path.read_text("utf8"))
        splits = {
            name: Split(split["tokens"], split["documents"], tuple(Shard(**shard) for shard in split["shards"]))
            for name, split in found.pop("splits").items()
        }
        fingerprint = found.pop("fingerprint")
        manifest = Manifest(splits=splits, **found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"data.path: {path} is no manifest of a corpus ({error})") from error
    if manifest.format != FORMAT or manifest.fingerprint != fingerprint:
        raise DataError(f"data.path: {path} was changed by hand or by another version; prepare the corpus again")
    _check_manifest(manifest, path)
    return manifest


def _check_manifest(manifest: Manifest, path: Path) -> None:
    """Raise DataError for a manifest that says what cannot be."""
    if sorted(manifest.splits) != sorted((TRAIN, HELD_OUT)):
        raise DataError(f"data.path: {path}: splits must be {TRAIN} and {HELD_OUT}, got {', '.join(manifest.splits)}")
    if not (_is_whole(manifest.vocab_size) and 1 <= manifest.vocab_size <= 1 << 32):
        raise DataError(f"data.path: {path}: vocab_size must be from 1 to 2**32, got {manifest.vocab_size!r}")
    if not isinstance(manifest.unit, str):
        raise DataError(f"data.path: {path}: unit must be a text, got {manifest.unit!r}")
    for name, split in manifest.splits.items():
        for shard in split.shards:
            if not (Path(str(shard.file)).name == shard.file):
                raise DataError(f"data.path: {path}: {name}: file must be a name in the folder, got {shard.file!r}")
            if not (_is_whole(shard.tokens) and shard.tokens >= 0):
                raise DataError(f"data.path: {path}: {name}: tokens must be a whole number, got {shard.tokens!r}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def write_shard(path: Path, tokens: TokenArray) -> Shard:
    """Write tokens as one Arrow file and return its entry in the manifest."""
    array = pa.array(tokens)
    with pa.OSFile(str(path), "wb") as sink:
        schema = pa.schema([pa.field(COLUMN, array.type, nullable=False)])
        with pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.record_batch([array], schema=schema))
    with path.open("rb") as file:
        return Shard(path.name, len(tokens), hashlib.file_digest(file, "sha256").hexdigest())


def read_shard(path: Path, tokens: int) -> TokenArray:
    """Return the tokens of a shard, mapped from its file and not copied. Raises DataError."""
    try:
        column = pa.ipc.open_file(pa.memory_map(str(path), "r")).read_all().column(COLUMN)
        array: TokenArray = column.chunk(0).to_numpy(zero_copy_only=True)
    except (OSError, pa.ArrowException, KeyError, IndexError) as error:
        raise DataError(f"data.path: cannot read the shard {path} ({error})") from error
    if array.dtype.name not in TYPES:
        raise DataError(f"data.path: {path}: tokens must be {', '.join(TYPES)}, got {array.dtype}")
    if len(array) != tokens:
        raise DataError(f"data.path: {path} must hold {tokens} tokens, got {len(array)}; prepare the corpus again")
    return array


@lru_cache(maxsize=8)
def read_corpus(folder: Path) -> Corpus:
    """Return the corpus in a folder, its shards memory-mapped. Raises DataError."""
    manifest = read_manifest(folder)
    shards = {name: [(folder / s.file, s) for s in split.shards] for name, split in manifest.splits.items()}
    streams = {
        name: TokenStream(tuple(read_shard(path, shard.tokens) for path, shard in entries))
        for name, entries in shards.items()
    }
    whole = sum(array.nbytes for stream in streams.values() for array in stream.arrays) <= CHECKED_BYTES
    for name, entries in shards.items():
        for (path, shard), array in zip(entries, streams[name].arrays, strict=True):
            _check_shard(path, shard, array, vocab_size=manifest.vocab_size, whole=whole)
    return Corpus(
        train=streams[TRAIN],
        held_out=streams[HELD_OUT],
        vocabulary=manifest.vocab_size,
        unit=manifest.unit,
        fingerprint=manifest.fingerprint,
    )


def _check_shard(path: Path, shard: Shard, array: TokenArray, *, vocab_size: int, whole: bool) -> None:
    """Raise DataError for tokens beyond the vocabulary, or a shard that was changed: of a large corpus, by its ends."""
    looked_at = (array,) if whole else (array[:END_TOKENS], array[-END_TOKENS:])
    largest = max((int(part.max()) for part in looked_at if len(part)), default=0)
    if largest >= vocab_size:
        raise DataError(f"data.path: {path}: tokens must be below the vocabulary size {vocab_size:,}, got {largest:,}")
    if not whole:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != shard.sha256:
        raise DataError(
            f"data.path: {path} was changed: its SHA-256 is not that of {MANIFEST}; prepare the corpus again"
        )


def smallest_type(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest unsigned type that holds every token below `vocab_size`."""
    return np.min_scalar_type(vocab_size - 1)
