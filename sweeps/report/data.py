"""What a report is made of: one record that the caller fills."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sweeps.curves import Curve
from sweeps.laws.law import Law
from sweeps.laws.records import Verdict
from sweeps.optima.records import CellOptimum


@dataclass(frozen=True, slots=True)
class Cost:
    """What a sweep took.

    Attributes:
        trials: training runs, of every outcome.
        tokens: consumed by all of them, tokens_redone with them.
        flops: by the workload's own count.
        seconds: of wall time.
        tokens_redone: consumed twice, after interruptions.
    """

    trials: int
    tokens: int
    flops: float
    seconds: float
    tokens_redone: int = 0


@dataclass(frozen=True, slots=True)
class LawReport:
    """One law with the cells it was fitted on, or why there is none.

    Attributes:
        cells: every cell of the sweep, censored ones too; without the held-out one.
        law: None where it was refused; `refusal` then says why.
        verdict: of the held-out check, None if there was none.
        held_out: the held-out cell with its results, for its basin.
        label: the value of a further axis this law belongs to, "" if there is none.
        file: where `predict` finds it.
    """

    cells: tuple[CellOptimum, ...]
    law: Law | None = None
    refusal: str | None = None
    verdict: Verdict | None = None
    held_out: CellOptimum | None = None
    label: str = ""
    file: str = "law.json"


@dataclass(frozen=True, slots=True)
class ReportData:
    """All that a report shows.

    Attributes:
        name: of the sweep.
        laws: one for each value of the further axes, at least one.
        curves: by trial key, as in `CellOptimum.results`.
        cost: what it took.
        recipe: the sweep as YAML text.
        fingerprint: content hash of the recipe.
        made_by: program and version.
        unit: what one token is: "byte", "token", "image", "sample".
        loss: the metric that is minimised.
        remarks: sentences on what was refused, failed or left out, beside censored cells.
        tracking: address of the tracking store, to look further.
        targets: sentences on how many trials reached the workload's target, and how soon.
        stopped: of each trial that a stopper ended, the words of the page's table.
    """

    name: str
    laws: tuple[LawReport, ...]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    cost: Cost | None = None
    recipe: str = ""
    fingerprint: str = ""
    made_by: str = "powersweep"
    unit: str = "token"
    loss: str = "validation/loss"
    remarks: tuple[str, ...] = ()
    tracking: str | None = None
    targets: tuple[str, ...] = ()
    stopped: tuple[Mapping[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.laws:
            raise ValueError("laws: must hold at least one, got none")
