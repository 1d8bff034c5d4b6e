"""Text to token ids: bytes, a tokenizer of the `tokenizers` library, or one trained on the corpus itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from workloads.base import DataError
from workloads.data.sources import Layout, Piece, holds_tokens, read_pieces
from workloads.data.stream import TokenArray

BYTES = "bytes"
BYTE_DOCUMENT_END = 0  # NUL, which text does not use
END_OF_TEXT = "<|endoftext|>"
END_NAMES = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>", "[SEP]")
SMALLEST_BPE = 257  # every byte and the end of a document
LARGEST_BPE = 1_000_000  # four times the largest in use; the trainer sets memory aside for all of it; a choice


@dataclass(frozen=True, slots=True)
class Codec:
    """How text becomes tokens.

    Attributes:
        name: as the manifest has it: "bytes", "tokenizer.json" or "none".
        vocab_size: how many different tokens there can be; None: as many as turn up (ready-made tokens only).
        end_of_document: the token after each document, or None.
        encode: pieces of documents, several at once for speed.
        file: the text of tokenizer.json, or None.
    """

    name: str
    vocab_size: int | None
    end_of_document: int | None
    encode: Callable[[Sequence[Piece]], list[TokenArray]]
    file: str | None = None


def make_codec(tokenizer: str | Path | int, files: Sequence[Path], layout: Layout, column: str) -> Codec:
    """Return the codec for files: ready-made tokens keep theirs. Raises DataError."""
    ready_made = [path for path in files if holds_tokens(path)]
    if ready_made and len(ready_made) < len(files):
        text = next(path for path in files if path not in ready_made)
        raise DataError(f"{text}: text and ready-made tokens ({ready_made[0].name}) cannot be one corpus")
    if ready_made:
        vocab_size = layout.vocab_size
        if isinstance(tokenizer, Path):
            vocab_size = _load(tokenizer).get_vocab_size()
        return Codec("none", vocab_size, None, _ready_made)
    if tokenizer == BYTES:
        return Codec(BYTES, 256, BYTE_DOCUMENT_END, _bytes)
    if isinstance(tokenizer, int):
        return _codec_of(_train(tokenizer, files, layout, column))
    return _codec_of(_load(Path(tokenizer)))


def _text(piece: Piece) -> str:
    assert isinstance(piece.content, str), "make_codec keeps text and tokens apart"
    return piece.content


def _ready_made(pieces: Sequence[Piece]) -> list[TokenArray]:
    return [piece.content for piece in pieces if not isinstance(piece.content, str)]


def _bytes(pieces: Sequence[Piece]) -> list[TokenArray]:
    return [np.frombuffer(_text(piece).encode("utf8"), dtype=np.uint8) for piece in pieces]


def _codec_of(tokenizer: Tokenizer) -> Codec:
    end = next((tokenizer.token_to_id(name) for name in END_NAMES if tokenizer.token_to_id(name) is not None), None)

    def encode(pieces: Sequence[Piece]) -> list[TokenArray]:
        encoded = tokenizer.encode_batch_fast([_text(piece) for piece in pieces], add_special_tokens=False)
        return [np.array(each.ids, dtype=np.uint32) for each in encoded]

    return Codec("tokenizer.json", tokenizer.get_vocab_size(), end, encode, tokenizer.to_str(pretty=True))


def _load(path: Path) -> Tokenizer:
    if not path.is_file():
        raise DataError(
            f"tokenizer: must be 'bytes', a vocabulary size, or the path of a tokenizer.json; there is no file {path}"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"tokenizer: {path} is no tokenizer.json ({error})") from error


def _train(vocab_size: int, files: Sequence[Path], layout: Layout, column: str) -> Tokenizer:
    """Return a byte-level BPE tokenizer trained on the files (Sennrich et al. 2016, arXiv:1508.07909; as in GPT-2)."""
    if not SMALLEST_BPE <= vocab_size <= LARGEST_BPE:
        raise DataError(
            f"tokenizer: a vocabulary must have at least {SMALLEST_BPE} tokens and at most {LARGEST_BPE:,}, "
            f"got {vocab_size}"
        )

    def texts() -> Iterator[str]:
        for piece in read_pieces(files, layout, column):
            yield _text(piece)

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer
