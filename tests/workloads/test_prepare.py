from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from workloads.base import DataError
from workloads.data.prepare import Prepared, prepare
from workloads.data.shards import HELD_OUT, TRAIN
from workloads.data.sources import Layout
from workloads.data.stream import Corpus, TokenStream
from workloads.data.text import Tokens

DOCUMENTS = [f"Document {i} says: {'the quick brown fox ' * (i % 7 + 1)}naïve — end." for i in range(120)]


def whole(stream: TokenStream) -> list[int]:
    return [int(token) for array in stream.arrays for token in array]


def corpus_of(prepared: Prepared) -> Corpus:
    return Tokens(path=str(prepared.folder)).load()


def texts_of(corpus: Corpus) -> list[str]:
    joined = b"".join(bytes(array) for stream in (corpus.train, corpus.held_out) for array in stream.arrays)
    return [document.decode() for document in joined.split(b"\0")[:-1]]


def write_jsonl(path: Path, documents: list[str], column: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(documents)), "utf8")
    return path


def write_parquet(path: Path, documents: list[str], column: str = "text") -> Path:
    pq.write_table(pa.table({column: documents, "score": [0.5] * len(documents)}), path, row_group_size=50)
    return path


def write_files(folder: Path, documents: list[str]) -> Path:
    folder.mkdir()
    for i, text in enumerate(documents):
        (folder / f"{i:03d}.txt").write_text(text, "utf8")
    return folder


def write_paragraphs(path: Path, documents: list[str]) -> Path:
    path.write_text("\n\n \n".join(documents) + "\n", "utf8")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder", "paragraphs"])
def test_every_document_comes_through_once_from_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    source = {
        "jsonl": lambda: write_jsonl(tmp_path / "a.jsonl", DOCUMENTS),
        "parquet": lambda: write_parquet(tmp_path / "a.parquet", DOCUMENTS),
        "folder": lambda: write_files(tmp_path / "texts", DOCUMENTS),
        "paragraphs": lambda: write_paragraphs(tmp_path / "a.txt", DOCUMENTS),
    }[kind]()
    layout = Layout(documents="blank line" if kind == "paragraphs" else "file", shard_tokens=1000)
    prepared = prepare([source], tmp_path / "out", held_out=0.2, layout=layout)
    corpus = corpus_of(prepared)
    assert sorted(texts_of(corpus)) == sorted(DOCUMENTS)
    assert prepared.documents == 120
    assert prepared.tokens == sum(len(text.encode()) + 1 for text in DOCUMENTS)
    assert prepared.manifest.held_out_by == "document"
    assert 10 <= prepared.manifest.splits[HELD_OUT].documents <= 40  # 24 expected, sd 4.4, three and a half of them
    assert len(prepared.manifest.splits[TRAIN].shards) > 3
    assert (corpus.vocabulary, corpus.unit) == (256, "byte")


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    folders = [prepare([source], tmp_path / name, tokenizer=300).folder for name in ("one", "two")]
    contents = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders]
    assert contents[0] == contents[1]
    assert corpus_of(prepare([source], tmp_path / "one", tokenizer=300)).fingerprint != "", "unchanged and readable"


def test_preparing_again_leaves_the_corpus_and_another_one_is_refused(tmp_path: Path) -> None:
    source, out = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS), tmp_path / "out"
    assert prepare([source], out).written
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    assert not prepare([source], out).written
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == before
    with pytest.raises(DataError, match=r"^out: .* holds another corpus .different held_out"):
        prepare([source], out, held_out=0.1)
    same_size = source.read_text("utf8").replace("quick", "quack")
    source.write_text(same_size, "utf8")
    with pytest.raises(DataError, match=r"^out: .* holds another corpus"):
        prepare([source], out)
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    source, out = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS), tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match=r"^out: must be a new or an empty folder"):
        prepare([source], out)
    assert [file.name for file in out.iterdir()] == ["thesis.txt"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    source, out = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS), tmp_path / "out"

    def interrupt(documents: int, tokens: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([source], out, progress=interrupt)
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
    assert prepare([source], out).written


def test_progress_ends_at_all_documents_and_tokens(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    prepared = prepare(
        [write_parquet(tmp_path / "a.parquet", DOCUMENTS)], tmp_path / "out", progress=lambda *done: seen.append(done)
    )
    assert seen[-1] == (prepared.documents, prepared.tokens)


def test_one_long_document_is_split_at_its_end(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("\n".join(DOCUMENTS), "utf8")
    prepared = prepare([book], tmp_path / "out", held_out=0.1)
    corpus = corpus_of(prepared)
    assert prepared.manifest.held_out_by == "tail"
    assert bytes(whole(corpus.train) + whole(corpus.held_out)) == book.read_bytes() + b"\0"
    assert len(corpus.held_out) == pytest.approx(0.1 * prepared.tokens, abs=1)


def test_a_text_larger_than_a_piece_stays_one_document(tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text("a line of text, and then the next\n" * 50_000, "utf8")  # 1.7 MB: two pieces
    prepared = prepare([long], tmp_path / "out")
    assert prepared.manifest.splits[TRAIN].documents == 1
    assert prepared.tokens == long.stat().st_size + 1


def test_a_tokenizer_of_its_own_shortens_the_text_and_reads_back(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    prepared = prepare([source], tmp_path / "own", tokenizer=400)
    tokenizer = Tokenizer.from_file(str(tmp_path / "own" / "tokenizer.json"))
    corpus = corpus_of(prepared)
    text = tokenizer.decode(whole(corpus.train) + whole(corpus.held_out), skip_special_tokens=False)
    assert sorted(text.split("<|endoftext|>")[:-1]) == sorted(DOCUMENTS)
    assert prepared.tokens < sum(map(len, DOCUMENTS)) / 3
    assert (corpus.vocabulary, corpus.unit) == (prepared.manifest.vocab_size, "token")
    again = prepare([source], tmp_path / "given", tokenizer=tmp_path / "own" / "tokenizer.json")
    assert whole(corpus_of(again).train) == whole(corpus.train)


@pytest.mark.parametrize("kind", ["uint16", "uint32", "llm.c", "npy"])
def test_ready_made_tokens_pass_through(tmp_path: Path, kind: str) -> None:
    tokens = np.random.default_rng(0).integers(0, 50_000, 70_000)
    path = tmp_path / ("tokens.npy" if kind == "npy" else "tokens.bin")
    if kind == "npy":
        np.save(path, tokens)
    else:
        header = np.array([20240520, 1] + [0] * 254, dtype=np.int32).tobytes() if kind == "llm.c" else b""
        path.write_bytes(header + tokens.astype("uint32" if kind == "uint32" else "uint16").tobytes())
    layout = Layout(token_type="uint32" if kind == "uint32" else "uint16", vocab_size=50_257)
    prepared = prepare([path], tmp_path / "out", held_out=0.5, seed=1, layout=layout)
    corpus = corpus_of(prepared)
    assert sorted(whole(corpus.train) + whole(corpus.held_out)) == sorted(tokens.tolist())
    assert (corpus.vocabulary, prepared.manifest.tokenizer) == (50_257, "none")
    assert prepare(
        [path], tmp_path / "found", layout=Layout(layout.documents, layout.token_type)
    ).manifest.vocab_size == (int(tokens.max()) + 1)


def test_shards_are_mapped_not_read(tmp_path: Path) -> None:
    corpus = corpus_of(prepare([write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)], tmp_path / "out"))
    assert all(not array.flags.owndata and not array.flags.writeable for array in corpus.train.arrays)


BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "not JSON": ("a.jsonl", b'{"text": "ok"}\n{oops\n', r"a\.jsonl: line 2 must be JSON, got '{oops'"),
    "no object": ("a.jsonl", b"[1]\n", r"a\.jsonl: line 1 must be a JSON object, got"),
    "no such field": (
        "a.jsonl",
        b'{"txt": "a"}\n',
        r"line 1: has no column 'text' \(did you mean 'txt'\?\)\. It has: txt",
    ),
    "a number": ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl: line 1: text must be text, got int"),
    "half a pair": ("a.jsonl", rb'{"text": "a\ud800"}', r"line 1: text must be text, got '\\ud800' at character 1"),
    "not UTF-8": ("a.txt", b"caf\xe9 ole", r"a\.txt: must be UTF-8 text, got byte 0xe9"),
    "empty": ("a.txt", b"", r"^sources: must hold text, but all 1 files are empty"),
    "no Parquet": ("a.parquet", b"hello there", r"a\.parquet: must be a Parquet file"),
    "half a token": ("a.bin", b"abc", r"a\.bin: must be a whole number of uint16 tokens, got 3 bytes"),
    "no array": ("a.npy", b"abc", r"a\.npy: must be a NumPy array file"),
    "nothing at all": ("a.npy", b"", r"a\.npy: must be a NumPy array file"),
    "a broken zip": ("a.npy", b"PK\x03\x04 no zip", r"a\.npy: must be a NumPy array file"),
    "nested too deep": ("a.jsonl", b"[" * 100_000, r"a\.jsonl: line 1 must be JSON, got '\[\[\["),
    "thousands of digits": ("a.jsonl", b'{"text": ' + b"1" * 6000 + b"}", r"a\.jsonl: line 1 must be JSON, got "),
    "unknown kind": ("a.docx", b"abc", r"a\.docx: must be named \*\.txt, .*, got '\.docx'"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_with_what_came_and_what_must_be(tmp_path: Path, name: str) -> None:
    file, content, message = BAD_FILES[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare([tmp_path / file], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_a_parquet_column_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "a.parquet", DOCUMENTS, column="texts")
    with pytest.raises(DataError, match=r"has no column 'text' \(did you mean 'texts'\?\)\. It has: texts, score"):
        prepare([source], tmp_path / "out")


def test_tokens_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    np.array([1, 2, 900], dtype=np.uint16).tofile(tmp_path / "a.bin")
    with pytest.raises(DataError, match=r"a\.bin: tokens must be below the vocabulary size 500, got 900"):
        prepare([tmp_path / "a.bin"], tmp_path / "out", layout=Layout(vocab_size=500))
    np.save(tmp_path / "b.npy", np.array([1, -2]))
    with pytest.raises(DataError, match=r"b\.npy: tokens must be from 0 to 2\*\*32 - 1, got -2"):
        prepare([tmp_path / "b.npy"], tmp_path / "out")
    np.save(tmp_path / "c.npy", np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"c\.npy: must be one-dimensional integers, got 2 dimensions of float64"):
        prepare([tmp_path / "c.npy"], tmp_path / "out")


def test_sources_and_tokenizers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    text = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    np.array([1], dtype=np.uint16).tofile(tmp_path / "a.bin")
    out = tmp_path / "out"
    (tmp_path / "none").mkdir()
    (tmp_path / "bad.json").write_text("{}")
    for sources, tokenizer, message in [
        ([text, tmp_path / "a.bin"], "bytes", r"a\.jsonl: text and ready-made tokens \(a\.bin\) cannot be one corpus"),
        ([tmp_path / "missing.txt"], "bytes", r"missing\.txt: no such file or folder"),
        ([tmp_path / "none"], "bytes", "none: must hold files named"),
        ([], "bytes", "^sources: must name at least one"),
        ([text], 100, "^tokenizer: a vocabulary must have at least 257 tokens and at most 1,000,000, got 100"),
        ([text], 10**12, "^tokenizer: a vocabulary must have .* at most 1,000,000, got 1000000000000"),
        ([text], "gpt2", "^tokenizer: must be 'bytes', a vocabulary size, or the path .* no file gpt2"),
        ([text], tmp_path / "bad.json", "^tokenizer: .* is no tokenizer.json"),
    ]:
        with pytest.raises(DataError, match=message):
            prepare(sources, out, tokenizer=tokenizer)
    assert not out.exists()


def test_a_damaged_corpus_is_refused(tmp_path: Path) -> None:
    out = prepare([write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)], tmp_path / "out").folder

    def refuses(message: str, folder: Path = out) -> None:
        with pytest.raises(DataError, match=rf"^data\.path: .*{message}"):
            Tokens(path=str(folder)).load()

    refuses("does not exist", tmp_path / "nowhere")
    refuses("holds no manifest.json", tmp_path)
    manifest, shard = out / "manifest.json", out / "train-00000.arrow"
    good_manifest, good_shard = manifest.read_text(), shard.read_bytes()
    shard.write_bytes(good_shard[:100])
    refuses("cannot read the shard")
    shard.unlink()
    refuses("cannot read the shard")
    shard.write_bytes(good_shard)
    manifest.write_text(good_manifest.replace('"vocab_size": 256', '"vocab_size": 300', 1))
    refuses("was changed by hand")
    manifest.write_text("{}")
    refuses("is no manifest")
    manifest.write_text(good_manifest)
    assert len(Tokens(path=str(out)).load().train) > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"documents": "page"}, "^documents: must be one of file, blank line, got 'page'"),
        ({"token_type": "int8"}, "^token_type: must be one of uint16, uint32, got 'int8'"),
        ({"vocab_size": 0}, "^vocab_size: must be at least 1 and at most 2\\*\\*32, got 0"),
        ({"vocab_size": 10**20}, "^vocab_size: .* at most 2"),
        ({"shard_tokens": 0}, "^shard_tokens: must be at least 1, got 0"),
    ],
)
def test_a_layout_out_of_range_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(**fields)
