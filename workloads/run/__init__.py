"""One training run, from report to report: the plain reference for every faster way of running."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from torch import Tensor

from workloads.base import JsonDict, Point
from workloads.run.live import Live
from workloads.run.spec import RunSpec

__all__ = ["Run", "RunSpec"]

CHECK_STEPS = 64  # steps between two looks at the running training loss for divergence
STATE_VERSION = 1
LOSS = "validation/loss"


class Run:
    """A training run that can be advanced, saved and resumed; resumed equals never stopped, bit for bit on CPU.

    It sets nothing global on CPU: the caller pins one thread (two threads change the bits).

    Attributes:
        status: "running", "finished" or "diverged" (an outcome, not an error); `reason` says why it diverged.
        points: the whole curve so far, all of it finite.
        tokens, step: consumed so far.
        exceeded: of a run that diverged on a finite loss, the absurd factor that the loss exceeded.
    """

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.points: list[Point] = []
        self.tokens = 0
        self.reason = ""
        self.exceeded: float | None = None
        self.initial_loss: float | None = None
        self._diverged = False
        self._live: Live | None = None
        self._train_steps = 0  # since the last report but asides
        self._timed_tokens = 0  # since the last report, in this process
        self._train_seconds = 0.0

    @property
    def step(self) -> int:
        return self.tokens // self.spec.batch_tokens

    @property
    def status(self) -> str:
        if self._diverged:
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
        if self.initial_loss is None:
            self.initial_loss = self._live.evaluate()[LOSS]
            if not math.isfinite(self.initial_loss):
                self._diverge("the loss is not finite before the first step")

    def advance(
        self,
        *,
        deadline: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> Point | None:
        """Train to the next mark and return its point.

        Args:
            deadline: on `clock`; once it has passed the run pauses at the next step boundary.
            clock: seconds, for the deadline and for tokens/s.
            wall: seconds since the epoch, for the point's timestamp.

        Returns:
            The point, or None: paused at the deadline, diverged, or already over (see `status`).

        Raises:
            ValueError: a deadline with a world above 1.
        """
        if deadline is not None and self.spec.world > 1:
            raise ValueError(f"deadline: ranks would pause at different steps, got one with world={self.spec.world}")
        self.start()
        assert self._live is not None
        if self.status != "running":
            return None
        mark = next(mark for mark in self.spec.marks if mark > self.tokens)
        if not self._train_to(mark, deadline, clock):
            return None
        point = self._report(wall())
        if point is not None:
            self.points.append(point)
        return point

    def _train_to(self, mark: int, deadline: float | None, clock: Callable[[], float]) -> bool:
        """Take steps until the mark; False where the deadline or divergence came first."""
        live, spec = self._live, self.spec
        assert live is not None
        began, first = clock(), self.tokens
        while self.tokens < mark and not self._diverged:
            if deadline is not None and clock() >= deadline:
                break
            end = self.tokens + spec.batch_tokens
            live.train_step(spec.lr_at(self.tokens), want_norm=end == mark)
            self.tokens = end
            self._train_steps += 1
            if self.step % CHECK_STEPS == 0:
                self._check_train_loss()
        if self.tokens == mark:
            self._check_train_loss(aside=mark in spec.asides)  # on an accelerator this also waits for the last step
        self._train_seconds += clock() - began
        self._timed_tokens += self.tokens - first
        return self.tokens == mark and not self._diverged

    def _check_train_loss(self, *, aside: bool = False) -> None:
        """Judge the mean training loss since the last report but asides."""
        assert self._live is not None
        self._judge("train/loss", self._live.mean_train_loss(self._train_steps), aside=aside)

    def _judge(self, name: str, loss: float, *, aside: bool) -> None:
        """End the run at a loss that is not finite, or absurd; an aside lets the latter pass, as if it were not there.

        A loss that is not finite ends the run soon anyway, before any other point.
        """
        assert self.initial_loss is not None
        limit = self.spec.absurd_factor * self.initial_loss
        if not math.isfinite(loss):
            self._diverge(f"{name} is not finite at {self.tokens} tokens")
        elif self.initial_loss > 0 and loss > limit and not aside:
            self._diverge(f"{name} is {loss:.6g} at {self.tokens} tokens, above {limit:.6g}")
            self.exceeded = self.spec.absurd_factor

    def _diverge(self, reason: str) -> None:
        self._diverged, self.reason = True, reason

    def _report(self, timestamp: float) -> Point | None:
        """Return the point at the mark just reached, or None if it shows divergence."""
        live, aside = self._live, self.tokens in self.spec.asides
        assert live is not None
        metrics = live.evaluate()
        self._judge(LOSS, metrics[LOSS], aside=aside)
        metrics["train/loss"] = live.mean_train_loss(self._train_steps)
        metrics["lr"] = live.lr
        metrics["grad_norm"] = live.norm.item()
        if not math.isfinite(metrics["grad_norm"]):
            self._diverge(f"grad_norm is not finite at {self.tokens} tokens")
        metrics["tokens_per_second"] = self._timed_tokens / max(self._train_seconds, 1e-9)
        self._timed_tokens, self._train_seconds = 0, 0.0
        if not aside:
            live.loss_sum.zero_()
            self._train_steps = 0
        return None if self._diverged else Point(self.tokens, self.step, timestamp, metrics)

    def state(self) -> tuple[dict[str, Tensor], JsonDict]:
        """Return all that resuming needs: flat tensors (copies, on the CPU) and plain JSON. No pickle."""
        self.start()
        assert self._live is not None
        tensors, meta = self._live.state()
        meta |= {
            "version": STATE_VERSION,
            "tokens": self.tokens,
            "batch_tokens": self.spec.batch_tokens,
            "train_steps": self._train_steps,
            "initial_loss": self.initial_loss if self.initial_loss and math.isfinite(self.initial_loss) else None,
            "diverged": self._diverged,
            "reason": self.reason,
            "exceeded": self.exceeded,
            "points": [[p.tokens, p.step, p.timestamp, dict(p.metrics)] for p in self.points],
        }
        return tensors, meta

    def load(self, tensors: Mapping[str, Tensor], meta: JsonDict) -> None:
        """Go on from what `state` returned: of this run, or of one with the same model, batch, seed and data.

        Raises:
            ValueError: the state belongs to another kind of run.
        """
        if meta.get("version") != STATE_VERSION or meta["batch_tokens"] != self.spec.batch_tokens:
            raise ValueError(
                f"state: must be of version {STATE_VERSION} and batch_tokens {self.spec.batch_tokens}, "
                f"got {meta.get('version')} and {meta.get('batch_tokens')}"
            )
        if self._live is None:
            self._live = Live(self.spec)
        self._live.load(tensors, meta)
        self.tokens = meta["tokens"]
        self.initial_loss = meta["initial_loss"]
        self._diverged, self.reason, self.exceeded = meta["diverged"], meta["reason"], meta.get("exceeded")
        self.points = [Point(*point) for point in meta["points"]]
        self._train_steps = meta["train_steps"]
        self._timed_tokens, self._train_seconds = 0, 0.0

    def close(self) -> None:
        """Let go of model and data; the curve stays."""
        self._live = None
