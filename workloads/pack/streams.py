"""The data of a pack: one stream for each seed, whoever reads it."""

from __future__ import annotations

from collections.abc import Sequence

from workloads.base import Batch, InputQueue
from workloads.run.live import Live


class Streams:
    """The streams of runs that stand at one position: runs of equal seed read the first one's queue.

    Args:
        lives: the started runs; the `queue` of each becomes the stream it reads, so that it tells the right position.
        seeds: of each.
    """

    def __init__(self, lives: Sequence[Live], seeds: Sequence[int]) -> None:
        self._seeds = tuple(seeds)
        self._seed_of = dict(zip(lives, seeds, strict=True))
        self._streams: dict[int, InputQueue] = {}
        self._spare: dict[int, list[InputQueue]] = {seed: [] for seed in seeds}  # the queues of those who share
        for live, seed in self._seed_of.items():
            if seed in self._streams:
                self._spare[seed].append(live.queue)
                live.queue = self._streams[seed]
            else:
                self._streams[seed] = live.queue

    def __next__(self) -> list[Batch]:
        """Return a batch for each run that there was: of its stream, of any one where all its readers have left."""
        batches = {seed: next(stream) for seed, stream in self._streams.items()}
        some = next(iter(batches.values()))
        return [batches.get(seed, some) for seed in self._seeds]

    def give_back(self, live: Live) -> None:
        """Let a run go on reading by itself, from where its stream stands."""
        seed = self._seed_of.pop(live)
        stream = self._streams[seed]
        if self._spare[seed]:
            live.queue = self._spare[seed].pop()
            live.queue.load_state_dict(stream.state_dict())
        else:
            del self._streams[seed]
