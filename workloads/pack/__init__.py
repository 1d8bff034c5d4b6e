"""Runs in lockstep: K runs of one shape trained as one, each with the curve and the checkpoints of a plain run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from workloads.pack.shape import differences, shape_key, why_not
from workloads.pack.streams import Streams
from workloads.pack.ways import Way, choose, stacking_pays
from workloads.run import Run
from workloads.run.live import Live

__all__ = ["Pack", "shape_key", "stacking_pays", "why_not"]

IDLE_SHARE = 0.25  # of the rows of a compiled stack, below which it is not built anew; a choice: compiling takes 30 s


class Pack:
    """Runs of one shape, at one step, that are trained together.

    A member is a run as any other: its state can be saved at any time. One that is loaded, forked, advanced by itself
    or closed leaves the pack. On a CPU at one thread a member's bits depend neither on how many there are nor on which:
    they are the plain run's where members take turns, and within float noise of it where they are stacked.

    Attributes:
        members: what is still in the pack: neither finished, nor diverged, nor taken out.
        tokens: consumed by each of them.

    Args:
        runs: fresh, loaded or forked.
        stacked: True: as one program; False: one after the other; None: as is faster.

    Raises:
        ValueError: no run, one that cannot be packed, one that is given twice, or two that differ in shape or tokens.
    """

    def __init__(self, runs: Sequence[Run], *, stacked: bool | None = None) -> None:
        if not runs:
            raise ValueError("runs: must be at least one, got none")
        for run in runs:
            if words := why_not(run.spec):
                raise ValueError(f"runs: cannot be packed: {words}")
            if shape_key(run.spec) != shape_key(runs[0].spec):
                raise ValueError(f"runs: must be of one shape, they differ in {differences(runs[0].spec, run.spec)}")
            if run.tokens != runs[0].tokens:
                raise ValueError(f"runs: must be at the same tokens, got {runs[0].tokens} and {run.tokens}")
        if len({id(run) for run in runs}) < len(runs):
            raise ValueError("runs: must be different runs, got one twice")
        self.members: list[Run] = list(runs)
        self.tokens = runs[0].tokens
        self._stacked = stacked
        self._lives: dict[Run, Live] = {}  # of the members, as long as they are held
        self._way: Way | None = None
        self._streams: Streams | None = None

    def advance(
        self,
        *,
        deadline: float | None = None,
        until: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Train all members to the next mark of any of them, and let each that has one there report.

        A member's tokens/s are its own tokens over the time of the whole pack. Members that are over leave.

        Args:
            deadline: on `clock`; once it has passed the pack pauses at the next step boundary.
            until: tokens, whole batches, beyond which it does not train now.
            clock: seconds, for the deadline and for tokens/s.
            wall: seconds since the epoch, for the points' timestamps.
        """
        self._drop_strays()
        for run in self.members:
            run.start()
        self._drop_over()
        if not self.members:
            return
        mark = min(run.next_mark for run in self.members)
        self._train_to(mark if until is None else min(mark, until), deadline, clock)
        if self.tokens == mark:
            for run in self.members:
                run.report(wall())
        self._drop_over()

    def _train_to(self, end: int, deadline: float | None, clock: Callable[[], float]) -> None:
        """Take steps until the end, the deadline, or the last member's divergence."""
        began, first, trained = clock(), self.tokens, list(self.members)
        while self.members and self.tokens < end:
            if deadline is not None and clock() >= deadline:
                break
            self._step(end)
            if any(run.status == "diverged" for run in self.members):
                self._drop_over()
        for live in [run.live for run in self.members[:1] if run.live is not None]:
            live.total_loss()  # on an accelerator this waits for the last step
        seconds = clock() - began
        for run in trained:
            run.spent(seconds, run.tokens - first)

    def _step(self, end: int) -> None:
        if self._way is None or self._streams is None:
            self._way, self._streams = self._hold()
        after = self.tokens + self.members[0].spec.batch_tokens
        lrs = {live: run.spec.lr_at(self.tokens) for run, live in self._lives.items()}
        self._way.step(next(self._streams), lrs, want_norm=after == end)
        self.tokens = after
        for run in self.members:
            run.stepped()

    def _hold(self) -> tuple[Way, Streams]:
        """Take over the moving parts of all members."""
        lives = [run.live for run in self.members if run.live is not None]
        specs = [run.spec for run in self.members]
        way, streams = choose(lives, specs, self._stacked), Streams(lives, [spec.seed for spec in specs])
        self._lives = dict(zip(self.members, lives, strict=True))
        for run, live in self._lives.items():
            live.release = partial(self.leave, run)
        return way, streams

    def leave(self, run: Run) -> None:
        """Take a member out. It stands where the pack stands, and can be saved, or go on by itself.

        Raises:
            ValueError: it is no member.
        """
        if run not in self.members:
            raise ValueError("run: must be a member of the pack")
        self.members.remove(run)
        if run.live is not None:
            run.live.release = None
        if run in self._lives:
            self._give_back(run)
        patience = IDLE_SHARE if run.spec.compile else 0.0
        if self._way is not None and (self._way.idle > patience or not self.members):
            self._let_go()

    def _let_go(self) -> None:
        """Give every member its own parts; the next step takes them over again, in a smaller pack."""
        for run in list(self._lives):
            self._give_back(run)
        self._way = self._streams = None

    def _give_back(self, run: Run) -> None:
        live = self._lives.pop(run)
        assert self._way is not None
        assert self._streams is not None
        self._way.give_back(live)
        self._streams.give_back(live)

    def _drop_strays(self) -> None:
        """Let those leave that were closed, or went on by themselves, while the pack was not looking."""
        for run in list(self.members):
            closed = run.live is None and run.tokens > 0
            if closed or run.tokens != self.tokens or self._lives.get(run, run.live) is not run.live:
                self.leave(run)

    def _drop_over(self) -> None:
        """Let those leave that are finished or diverged."""
        for run in [run for run in self.members if run.status != "running"]:
            self.leave(run)
