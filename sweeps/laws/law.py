"""A law as a record: the LR it gives at a batch size, token count and model size, with an interval, or a refusal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from sweeps.errors import ConfigError, FitError, ReachError, unknown_name
from sweeps.laws import lawfile
from sweeps.laws.batches import best_batches
from sweeps.laws.factors import HorizonFactor, PowerFactor
from sweeps.laws.powerlaw import VARIABLES, fit
from sweeps.laws.records import CONVENTIONS as CONVENTIONS
from sweeps.laws.records import FARTHEST, Prediction, Verdict, formula, size_text
from sweeps.laws.records import SYMBOLS as SYMBOLS
from sweeps.laws.regression import clusters_of
from sweeps.optima.noise import minimum_of
from sweeps.optima.pooled import pooled_noise, refine
from sweeps.optima.records import CellOptimum
from sweeps.optima.student import is_confidence, two_sided
from sweeps.spec import Json, LawSpec, content_key

REACH = {"batch_tokens": 2.0, "tokens": 4.0, "parameters": 2.0}  # how far beyond the box a law is asked; a choice
REACH_WIDENING = 1.05  # of the interval at the end of the reach, growing in proportion from 1 at the box; assumed
ABSENT_EXPONENT_SD = 0.5  # of an axis that never varied: published exponents lie in -0.77 .. 1 (docs/laws.md); assumed
EDGE = 1e-9  # in logs: a point on the border is inside


@dataclass(frozen=True, kw_only=True)
class Law:
    """lr* = a B^p T^q N^r of one recipe, with what it was fitted on: the content of law.json.

    Attributes:
        form: the formula, symbols as in the file.
        convention: "batch fixed" (the best LR at the batch given) or "batch free" (at the best batch).
        variables: names of the regressors, in order.
        coefficients: "log_a" (natural log), then the exponent of each variable.
        covariance: of the coefficients, in that order.
        dof: of the t intervals: cells less unknowns.
        units: of lr and of each axis.
        box: (lowest, highest) of each axis among the cells fitted; of axes that are no variable of the law too.
        reach: the box stretched; beyond it the law refuses.
        cells: the cells fitted, each with its optimum, as JSON.
        left_out: the cells not fitted, with the reason, as JSON.
        recipe: what the law is a law of, with its fingerprint.
        status: one of records.STATUSES.
        validation: the held-out check, as JSON, or None.
        noise: "seed_sd" (a share of the loss; None with one seed) and "misfit_sd" (of ln lr* between cells about the
            law).
        estimator: of the cells' optima.
        confidence: of intervals, unless asked otherwise.
        made_by: "version" and "sweep_key".
    """

    form: str
    convention: str
    variables: tuple[str, ...]
    coefficients: Mapping[str, float]
    covariance: tuple[tuple[float, ...], ...]
    dof: float
    units: Mapping[str, str]
    box: Mapping[str, tuple[float, float]]
    reach: Mapping[str, tuple[float, float]]
    cells: tuple[Mapping[str, Json], ...]
    left_out: tuple[Mapping[str, Json], ...]
    recipe: Mapping[str, Json]
    status: str
    validation: Json
    noise: Mapping[str, float | None]
    estimator: str
    confidence: float
    made_by: Mapping[str, str]

    def predict(
        self,
        *,
        batch_tokens: float,
        tokens: float,
        parameters: float | None = None,
        confidence: float | None = None,
    ) -> Prediction:
        """Return the LR there, with its interval.

        In reach, the interval also holds the scatter of cells about the law, and of an axis that never varied an
        unknown exponent; and is stretched by up to REACH_WIDENING.

        Args:
            batch_tokens: positive, in the law's unit.
            tokens: of the whole run; positive, in the law's unit.
            parameters: N without embeddings; None: that of the cells, for a law without N.
            confidence: of the interval; None: the law's own.

        Raises:
            ReachError: beyond the reach; `estimate` is the Prediction refused, its place "beyond".
            ConfigError: a value that is no positive number, or N missing where the law needs it.
        """
        level = self.confidence if confidence is None else confidence
        if not is_confidence(level):
            raise ConfigError(f"confidence: must be in (0, 1), got {level}")
        point = self._point({"batch_tokens": batch_tokens, "tokens": tokens, "parameters": parameters})
        outside = {name: self._outside(name, x) for name, x in point.items()}
        far = max(share for share, _ in outside.values())
        row = np.array([1.0, *(math.log(point[v]) for v in self.variables)])
        centre = float(row @ np.array([self.coefficients[n] for n in ("log_a", *self.variables)]))
        if not abs(centre) <= FARTHEST:
            raise ConfigError(
                f"coefficients: this law gives no LR that is above 0 and finite there (ln lr {centre:.4g})"
            )
        variance = max(float(row @ np.array(self.covariance) @ row), 0.0)  # rounding may leave it just below
        if far > 0.0:
            variance += (self.noise["misfit_sd"] or 0.0) ** 2
            variance += sum((ABSENT_EXPONENT_SD * d) ** 2 for n, (_, d) in outside.items() if n not in self.variables)
        half = two_sided(level, dof=self.dof) * math.sqrt(variance) * (1.0 + (REACH_WIDENING - 1.0) * min(far, 1e3))
        place = "box" if far == 0.0 else "reach" if far <= 1.0 else "beyond"
        found = Prediction(
            math.exp(centre), math.exp(centre - half), math.exp(min(centre + half, FARTHEST)), place, level
        )
        if place == "beyond":
            raise ReachError(self._refusal(point, outside, found), estimate=found)
        return found

    def factor(
        self,
        *,
        batch_tokens: float,
        tokens: float,
        parameters: float | None = None,
        schedule: Callable[[float, float], float] | None = None,
        base_lr: float = 1.0,
    ) -> HorizonFactor:
        """Return a callable step -> factor for `torch.optim.lr_scheduler.LambdaLR`, for a run to `tokens`.

        LambdaLR multiplies the optimizer's own lr by the factor: give that optimizer lr=1.0, or name its lr as
        `base_lr`. `schedule` is (tokens seen, tokens) -> factor of the peak, as in `sweeps.schedules`; None: constant.
        A step uses the value at the middle of its tokens. Raises as `predict`.
        """
        lr = self.predict(batch_tokens=batch_tokens, tokens=tokens, parameters=parameters).lr
        return HorizonFactor(lr / base_lr, float(batch_tokens), float(tokens), schedule)

    def power_schedule(
        self,
        *,
        batch_tokens: float,
        parameters: float | None = None,
        cap: float | None = None,
        warmup_tokens: float = 0.0,
        base_lr: float = 1.0,
    ) -> PowerFactor:
        """Return a callable step -> factor for `LambdaLR` that needs no horizon: lr(n) = min(cap, lr*(B, n)).

        The Power scheduler's form (arXiv:2408.13359, eq. 7): warm-up is linear, to the value at its end. Past the reach
        in tokens the LR stays at its value there. `cap` is an LR; None: the law's at the fewest tokens fitted.

        Raises:
            FitError: the law does not fall with tokens; `estimate` is its exponent.
            ReachError, ConfigError: as `predict`.
        """
        exponent = self.coefficients.get("tokens")
        if exponent is None or exponent >= 0.0:
            said = "has no exponent of tokens" if exponent is None else f"rises with tokens (T^{exponent:.3g})"
            raise FitError(f"power_schedule: needs a law that falls with tokens; this one {said}", estimate=exponent)
        first, (_, last) = self.box["tokens"][0], self.reach["tokens"]
        start = self.predict(batch_tokens=batch_tokens, tokens=first, parameters=parameters).lr
        top = start if cap is None else cap
        return PowerFactor(
            start / base_lr, first, exponent, top / base_lr, float(batch_tokens), float(warmup_tokens), last
        )

    def one_line(self) -> str:
        """Return the law as a formula about the middle of its box, with its interval."""
        middle = {n: float(max(1, round(math.sqrt(low * high)))) for n, (low, high) in self.box.items()}
        here = self.predict(**middle)
        half = two_sided(self.confidence, dof=self.dof) * np.sqrt(np.diag(np.array(self.covariance)))
        parts = [
            f" * ({SYMBOLS[v]}/{middle[v]:,.0f})^({self.coefficients[v]:.2f} ± {half[i + 1]:.2f})"
            for i, v in enumerate(self.variables)
        ]
        span = f"({100 * self.confidence:g} %: {here.low:.2e} to {here.high:.2e} there)"
        return f"lr* = {here.lr:.2e}{''.join(parts)}  {span}"

    def with_verdict(self, verdict: Verdict) -> Law:
        """Return the law with the held-out check in it."""
        return replace(self, status=verdict.status, validation=lawfile.plain(asdict(verdict)))

    def to_json(self) -> Json:
        """Return the content of law.json."""
        return {"law": lawfile.VERSION, **lawfile.plain(asdict(self))}

    def save(self, path: str | Path) -> None:
        """Write law.json: at once or not at all, the same bytes for the same law. Raises StoreError."""
        lawfile.write(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Law:
        """Return the law in a file. Raises ConfigError, with the file and the field at fault."""
        return cls(**lawfile.read(Path(path)))

    def _point(self, asked: Mapping[str, float | None]) -> dict[str, float]:
        point = {}
        for name, value in asked.items():
            if self.box[name][1] <= 0.0:
                continue  # N is not known of any cell: a script need not declare it
            if value is None:
                if name in self.variables:
                    raise ConfigError(f"{name}: this law depends on it, got None")
                low, high = self.box[name]
                value = math.sqrt(low * high)
            if not (math.isfinite(value) and value > 0.0):
                raise ConfigError(f"{name}: must be a positive number, got {value}")
            point[name] = float(value)
        return point

    def _outside(self, name: str, value: float) -> tuple[float, float]:
        """Return how far outside the box a value is: as a share of the way to the reach's end, and in logs."""
        low, high = self.box[name]
        distance = max(math.log(low / value), math.log(value / high))
        if distance <= EDGE:
            return 0.0, 0.0
        end = math.log(low / self.reach[name][0]) if value < low else math.log(self.reach[name][1] / high)
        share = distance / end if end > 0.0 else math.inf
        return (1.0 if share > 1.0 and distance <= end + EDGE else share), distance

    def _refusal(
        self, point: Mapping[str, float], outside: Mapping[str, tuple[float, float]], found: Prediction
    ) -> str:
        beyond = " and ".join(
            f"{n} {size_text(point[n])} is beyond the law's reach ({self.reach[n][0]:,.0f} to {self.reach[n][1]:,.0f})"
            for n, (share, _) in outside.items()
            if share > 1.0
        )
        return f"{beyond}; the formula alone would say {found.lr:.3g} ({found.low:.2g} to {found.high:.2g})"


def fit_law(
    cells: Sequence[CellOptimum], *, spec: LawSpec, recipe: Mapping[str, Json], sweep_key: str, version: str
) -> Law:
    """Return the law of a sweep's cells; cells with results have their optima found again under the pooled noise.

    `recipe` may name its "unit" (of tokens) and "fingerprint"; both are added where they are missing.

    Raises:
        FitError: the cells do not support it (`powerlaw.fit`), or no batch is best between others (batch free).
        ConfigError: an unknown variable, convention or estimator, or batch_tokens as a variable of a batch free law.
    """
    if spec.convention not in CONVENTIONS:
        raise unknown_name("law.convention", spec.convention, CONVENTIONS, "convention")
    found = refine(cells, estimator=spec.estimator, confidence=spec.confidence)
    not_best: list[Mapping[str, Json]] = []
    kept: Sequence[CellOptimum] = found
    if spec.convention == "batch free":
        if "batch_tokens" in spec.variables:
            raise ConfigError(
                "law.variables: a batch free law is at the best batch, so batch_tokens is no variable of it"
            )
        kept, not_best = best_batches(found)
    line = fit(kept, spec.variables, seed=sweep_key, confidence=spec.confidence)
    used = [c for c in sorted(kept, key=lambda c: c.key) if c.key in set(line.used)]
    box = {v: (float(min(getattr(c, v) for c in used)), float(max(getattr(c, v) for c in used))) for v in VARIABLES}
    wide = {v: float(spec.reach.get(v, REACH[v])) for v in VARIABLES}
    unit = str(recipe.get("unit", "token"))
    clusters = clusters_of([[r.key for r in c.results] for c in used])
    return Law(
        form=formula(line.variables),
        convention=spec.convention,
        variables=line.variables,
        coefficients=dict(zip(("log_a", *line.variables), line.coefficients, strict=True)),
        covariance=line.covariance,
        dof=float(line.dof),
        units={"lr": "per step", "batch_tokens": unit, "tokens": unit, "parameters": "parameter"},
        box=box,
        reach={v: (low / wide[v], high * wide[v]) for v, (low, high) in box.items()},
        cells=tuple(told(c, int(cluster)) for c, cluster in zip(used, clusters, strict=True)),
        left_out=tuple(
            sorted([{"key": k, "label": n, "reason": why} for k, n, why in line.left_out] + not_best, key=_key)
        ),
        recipe={"fingerprint": content_key(recipe), **recipe},
        status="fitted",
        validation=None,
        noise={"seed_sd": pooled_noise(found), "misfit_sd": line.misfit_sd},
        estimator=spec.estimator,
        confidence=spec.confidence,
        made_by={"version": version, "sweep_key": sweep_key},
    )


def _key(cell: Mapping[str, Json]) -> str:
    return str(cell["key"])


def told(cell: CellOptimum, cluster: int) -> Mapping[str, Json]:
    """Return a cell as JSON: its optimum, the loss there by seed, and which cells it shares trials with."""
    fields = asdict(replace(cell, results=()))
    del fields["results"]
    minimum = minimum_of(cell)
    told = {**fields, "cluster": cluster, "minimum": None if minimum is None else asdict(minimum)}
    return dict(lawfile.plain(told))
