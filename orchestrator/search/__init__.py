"""Optuna: the LRs of a bracket in waves, a sampler that chooses trials for the law, and samplers on recorded runs."""

from orchestrator.search.bracket import OptunaChooser, chooser_of
from orchestrator.search.law import LawSampler
from orchestrator.search.samplers import SAMPLERS

__all__ = ["SAMPLERS", "LawSampler", "OptunaChooser", "chooser_of"]
