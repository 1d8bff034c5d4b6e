"""One training run, from report to report: the plain reference for every faster way of running."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from torch import Tensor

from workloads.base import JsonDict, Point
from workloads.run.book import CHECK_STEPS, LOSS, Book, Record
from workloads.run.live import Live
from workloads.run.spec import RunSpec

__all__ = ["Run", "RunSpec"]

STATE_VERSION = 2


class Run:
    """A training run that can be advanced, saved, resumed and forked; each equals never stopping, bit for bit on CPU.

    It sets nothing global on CPU: the caller pins one thread (two threads change the bits).

    Attributes:
        status: "running", "finished" or "diverged" (an outcome, not an error); `reason` says why it diverged.
        points: the whole curve so far, all of it finite.
        tokens, step: consumed so far.
        exceeded: of a run that diverged on a finite loss, the absurd factor that the loss exceeded.
    """

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.tokens = 0
        self._book = Book(spec)
        self._live: Live | None = None
        self._timed_tokens = 0  # since the last report, in this process
        self._train_seconds = 0.0

    @property
    def step(self) -> int:
        return self.tokens // self.spec.batch_tokens

    @property
    def points(self) -> list[Point]:
        return self._book.points

    @property
    def reason(self) -> str:
        return self._book.reason

    @property
    def exceeded(self) -> float | None:
        return self._book.exceeded

    @property
    def status(self) -> str:
        if self._book.diverged:
            return "diverged"
        return "finished" if self.tokens >= self.spec.tokens else "running"

    def start(self) -> None:
        """Build model, optimizer and data, and take the loss before the first step; `advance` does it if needed.

        Raises:
            DataError: the data cannot be read.
            ValueError: the batch does not divide into examples, ranks or micro-batches, or the optimizer does not
                suit the model.
        """
        if self._live is None:
            self._live = Live(self.spec)
        if self._book.initial_loss is None:
            self._book.open(self._live.evaluate()[LOSS])

    def advance(
        self,
        *,
        deadline: float | None = None,
        until: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> Point | None:
        """Train to the next mark and return its point.

        Args:
            deadline: on `clock`; once it has passed the run pauses at the next step boundary.
            until: tokens, whole batches, beyond which it does not train now: where a trunk is forked.
            clock: seconds, for the deadline and for tokens/s.
            wall: seconds since the epoch, for the point's timestamp.

        Returns:
            The point, or None: paused at the deadline or at `until`, diverged, or already over (see `status`).

        Raises:
            ValueError: a deadline with a world above 1.
        """
        if deadline is not None and self.spec.world > 1:
            raise ValueError(f"deadline: ranks would pause at different steps, got one with world={self.spec.world}")
        self.start()
        if self.status != "running":
            return None
        mark = next((mark for mark in self.spec.marks if mark > self.tokens), self.spec.tokens)
        self._train_to(mark if until is None else min(mark, until), deadline, clock)
        if self.tokens != mark or self.status == "diverged" or mark not in self.spec.marks:
            return None
        return self._report(wall())

    def _train_to(self, end: int, deadline: float | None, clock: Callable[[], float]) -> None:
        """Take steps until the end, the deadline or divergence."""
        live, spec, book = self._live, self.spec, self._book
        assert live is not None
        began, first = clock(), self.tokens
        while self.tokens < end and not book.diverged:
            if deadline is not None and clock() >= deadline:
                break
            after = self.tokens + spec.batch_tokens
            live.train_step(spec.lr_at(self.tokens), want_norm=after == end)
            self.tokens = after
            if self.step % CHECK_STEPS == 0:
                book.check(self.tokens, self.step, live.total_loss())
        live.total_loss()  # on an accelerator this waits for the last step
        self._train_seconds += clock() - began
        self._timed_tokens += self.tokens - first

    def _report(self, timestamp: float) -> Point | None:
        """Return the point at the mark just reached, or None if it shows divergence."""
        live = self._live
        assert live is not None
        metrics = live.evaluate()
        metrics["lr"] = live.lr
        metrics["grad_norm"] = live.norm.item()
        metrics["tokens_per_second"] = self._timed_tokens / max(self._train_seconds, 1e-9)
        self._timed_tokens, self._train_seconds = 0, 0.0
        return self._book.add(Record(Point(self.tokens, self.step, timestamp, metrics), live.total_loss()))

    def state(self) -> tuple[dict[str, Tensor], JsonDict]:
        """Return all that resuming needs: flat tensors (copies, on the CPU) and plain JSON. No pickle."""
        self.start()
        assert self._live is not None
        tensors, meta = self._live.state()
        about = {"version": STATE_VERSION, "tokens": self.tokens, "batch_tokens": self.spec.batch_tokens}
        return tensors, {**meta, **about, **self._book.state()}

    def load(self, tensors: Mapping[str, Tensor], meta: JsonDict) -> None:
        """Go on from what `state` returned: of this run, or of one with the same model, batch, seed and data.

        Raises:
            ValueError: the state belongs to another kind of run.
        """
        self._load_live(tensors, meta)
        self.tokens = meta["tokens"]
        self._book.load(meta)

    def fork(self, tensors: Mapping[str, Tensor], meta: JsonDict) -> None:
        """Begin as a branch of a trunk, from what its `state` returned: as if this run had trained so far itself.

        Raises:
            ValueError: the state belongs to another kind of run, or the trunk has passed a mark of this one unseen.
        """
        self._load_live(tensors, meta)
        diverged_at = self._book.fork(meta)
        self.tokens = meta["tokens"] if diverged_at is None else diverged_at

    def _load_live(self, tensors: Mapping[str, Tensor], meta: JsonDict) -> None:
        if meta.get("version") != STATE_VERSION or meta["batch_tokens"] != self.spec.batch_tokens:
            raise ValueError(
                f"state: must be of version {STATE_VERSION} and batch_tokens {self.spec.batch_tokens}, "
                f"got {meta.get('version')} and {meta.get('batch_tokens')}"
            )
        if self._live is None:
            self._live = Live(self.spec)
        self._live.load(tensors, meta)
        self._timed_tokens, self._train_seconds = 0, 0.0

    def close(self) -> None:
        """Let go of model and data; the curve stays."""
        self._live = None
