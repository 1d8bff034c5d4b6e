"""Forms of laws of the optimum behind one table: each is fitted from cells and gives an LR, or a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from sweeps.laws.forms.best_batch import BestBatchForm
from sweeps.laws.forms.line import Kind
from sweeps.laws.forms.power import PowerForm, PowerSchedulerForm, per_sequence
from sweeps.laws.forms.record import FormLaw, Given
from sweeps.laws.forms.saturation import SaturatingForm
from sweeps.optima.records import CellOptimum

__all__ = ["FORMS", "Form", "FormLaw", "Given", "per_sequence"]


class Form(Protocol):
    """A form of law."""

    kind: Kind

    def fit(
        self,
        cells: Sequence[CellOptimum],
        variables: Sequence[str] | None = None,
        *,
        seed: str | int,
        confidence: float = 0.95,
        n_bootstrap: int = 1000,
    ) -> FormLaw:
        """Return the law of the cells, in the variables named or those usual for the form. Raises FitError."""
        ...


FORMS: Mapping[str, Form] = {
    form.kind.name: form for form in (PowerForm(), PowerSchedulerForm(), BestBatchForm(), SaturatingForm())
}
