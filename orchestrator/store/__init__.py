"""What a sweep keeps on disk: checkpoints and outcomes, the lease of its driver, the index of its outcomes."""

from orchestrator.store.folders import STOP_FILE, SweepStore, TrialStore, home

__all__ = ["STOP_FILE", "SweepStore", "TrialStore", "home"]
