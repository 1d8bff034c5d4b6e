"""What of a sweep is still to run, decided from outcomes alone."""

from sweeps.agenda.agenda import Agenda
from sweeps.agenda.choosers import (
    LAW,
    Chooser,
    GridChooser,
    Planner,
    first_lrs,
    first_tokens,
    first_trials,
    grid_chooser,
)
from sweeps.agenda.for_law import LawPlanner
from sweeps.agenda.outcomes import LOSS, Outcome, Stopped, Target, is_done, result_of

__all__ = [
    "LAW",
    "LOSS",
    "Agenda",
    "Chooser",
    "GridChooser",
    "LawPlanner",
    "Outcome",
    "Planner",
    "Stopped",
    "Target",
    "first_lrs",
    "first_tokens",
    "first_trials",
    "grid_chooser",
    "is_done",
    "result_of",
]
