"""Sweeps from YAML: merged, checked, and made into frozen records."""

from orchestrator.config.build import build, object_of
from orchestrator.config.parts import part_of
from orchestrator.config.sources import resolve_text
from orchestrator.config.sweep import Loaded, load_sweep

__all__ = ["Loaded", "build", "load_sweep", "object_of", "part_of", "resolve_text"]
