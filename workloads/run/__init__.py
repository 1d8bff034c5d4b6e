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
        initial_loss: the validation loss before the first step; None before `start`.
        book, live: what it has seen, and its moving parts once started; for `workloads.pack`.
    """

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.tokens = 0
        self.book = Book(spec)
        self.live: Live | None = None
        self._timed_tokens = 0  # since the last report, in this process
        self._train_seconds = 0.0

    @property
    def step(self) -> int:
        return self.tokens // self.spec.batch_tokens

    @property
    def points(self) -> list[Point]:
        return self.book.points

    @property
    def reason(self) -> str:
        return self.book.reason

    @property
    def exceeded(self) -> float | None:
        return self.book.exceeded

    @property
    def initial_loss(self) -> float | None:
        return self.book.initial_loss

    @property
    def status(self) -> str:
        if self.book.diverged:
            return "diverged"
        return "finished" if self.tokens >= self.spec.tokens else "running"

    @property
    def next_mark(self) -> int:
        """The tokens up to which it trains next: those of its next report, or of its end."""
        return next((mark for mark in self.spec.marks if mark > self.tokens), self.spec.tokens)

    def start(self) -> None:
        """Build model, optimizer and data, and take the loss before the first step; `advance` does it if needed.

        Raises:
            DataError: the data cannot be read.
            ValueError: the batch does not divide into examples, ranks or micro-batches, or the optimizer does not
                suit the model.
        """
        if self.live is None:
            self.live = Live(self.spec)
        if self.book.initial_loss is None:
            self.book.open(self.live.evaluate()[LOSS])

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
        mark = self.next_mark
        self._train_to(mark if until is None else min(mark, until), deadline, clock)
        return self.report(wall()) if self.tokens == mark else None

    def _train_to(self, end: int, deadline: float | None, clock: Callable[[], float]) -> None:
        """Take steps until the end, the deadline or divergence."""
        live, spec = self.live, self.spec
        assert live is not None
        began, first = clock(), self.tokens
        while self.tokens < end and not self.book.diverged:
            if deadline is not None and clock() >= deadline:
                break
            after = self.tokens + spec.batch_tokens
            live.train_step(spec.lr_at(self.tokens), want_norm=after == end)
            self.stepped()
        live.total_loss()  # on an accelerator this waits for the last step
        self.spent(clock() - began, self.tokens - first)

    def stepped(self) -> None:
        """Count a step that its moving parts have taken, and look for divergence now and then."""
        self.tokens += self.spec.batch_tokens
        if self.step % CHECK_STEPS == 0:
            assert self.live is not None
            self.book.check(self.tokens, self.step, self.live.total_loss())

    def spent(self, seconds: float, tokens: int) -> None:
        """Take note of the time that training on some tokens took."""
        self._train_seconds += seconds
        self._timed_tokens += tokens

    def report(self, timestamp: float) -> Point | None:
        """Return the point where it stands; None if that is no mark, it has diverged, or the point shows divergence."""
        live = self.live
        if self.book.diverged or self.tokens not in self.spec.marks:
            return None
        assert live is not None
        metrics = live.evaluate()
        metrics["lr"] = live.lr
        metrics["grad_norm"] = live.norm.item()
        metrics["tokens_per_second"] = self._timed_tokens / max(self._train_seconds, 1e-9)
        self._timed_tokens, self._train_seconds = 0, 0.0
        return self.book.add(Record(Point(self.tokens, self.step, timestamp, metrics), live.total_loss()))

    def state(self) -> tuple[dict[str, Tensor], JsonDict]:
        """Return all that resuming needs: flat tensors (copies, on the CPU) and plain JSON. No pickle."""
        self.start()
        assert self.live is not None
        tensors, meta = self.live.state()
        about = {"version": STATE_VERSION, "batch_tokens": self.spec.batch_tokens}
        return tensors, {**meta, **about, **self._seen()}

    def _seen(self) -> JsonDict:
        return {"tokens": self.tokens, **self.book.state()}

    def load(self, tensors: Mapping[str, Tensor], meta: JsonDict) -> None:
        """Go on from what `state` returned: of this run, or of one with the same model, batch, seed and data.

        Raises:
            ValueError: the state belongs to another kind of run.
        """
        self._load_live(tensors, meta)
        self.tokens = meta["tokens"]
        self.book.load(meta)

    def diverges_on(self, trunk: Run) -> bool:
        """Return whether this run, had it been where the trunk was, would have diverged by now."""
        return Book(self.spec).fork(trunk._seen()) is not None

    def fork(self, tensors: Mapping[str, Tensor], meta: JsonDict) -> None:
        """Begin as a branch of a trunk, from what its `state` returned: as if this run had trained so far itself.

        Raises:
            ValueError: the state belongs to another kind of run, or the trunk has passed a mark of this one unseen.
        """
        self._load_live(tensors, meta)
        diverged_at = self.book.fork(meta)
        self.tokens = meta["tokens"] if diverged_at is None else diverged_at

    def _load_live(self, tensors: Mapping[str, Tensor], meta: JsonDict) -> None:
        if meta.get("version") != STATE_VERSION or meta["batch_tokens"] != self.spec.batch_tokens:
            raise ValueError(
                f"state: must be of version {STATE_VERSION} and batch_tokens {self.spec.batch_tokens}, "
                f"got {meta.get('version')} and {meta.get('batch_tokens')}"
            )
        if self.live is None:
            self.live = Live(self.spec)
        self.live.load(tensors, meta)
        self._timed_tokens, self._train_seconds = 0, 0.0

    def close(self) -> None:
        """Let go of model and data; the curve stays."""
        self.live = None
