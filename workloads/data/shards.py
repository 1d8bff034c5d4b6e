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
        what = "holds no manifest.json" if folder.is_dir() else "does not exist"
        raise DataError(f"data.path: must be a folder that `powersweep prepare` wrote, but {folder} {what}")
    try:
        found = json.loads(path.read_text("utf8"))
        splits = {
            name: Split(split["tokens"], split["documents"], tuple(Shard(**shard) for shard in split["shards"]))
            for name, split in found.pop("splits").items()
        }
        fingerprint = found.pop("fingerprint")
        manifest = Manifest(splits=splits, **found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"data.path: {path} is no manifest of a corpus ({error})") from error
    if manifest.format != FORMAT or manifest.fingerprint != fingerprint:
        raise DataError(f"data.path: {path} was changed by hand or by another version; prepare the corpus again")
    return manifest


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
    if len(array) != tokens:
        raise DataError(f"data.path: {path} must hold {tokens} tokens, got {len(array)}; prepare the corpus again")
    return array


@lru_cache(maxsize=8)
def read_corpus(folder: Path) -> Corpus:
    """Return the corpus in a folder, its shards memory-mapped. Raises DataError."""
    manifest = read_manifest(folder)
    streams = {
        name: TokenStream(tuple(read_shard(folder / shard.file, shard.tokens) for shard in split.shards))
        for name, split in manifest.splits.items()
    }
    return Corpus(
        train=streams[TRAIN],
        held_out=streams[HELD_OUT],
        vocabulary=manifest.vocab_size,
        unit=manifest.unit,
        fingerprint=manifest.fingerprint,
    )


def smallest_type(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest unsigned type that holds every token below `vocab_size`."""
    return np.min_scalar_type(vocab_size - 1)
