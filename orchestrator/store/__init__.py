"""What a sweep keeps on disk: checkpoints and outcomes, the lease of its driver, the index of its outcomes."""

from orchestrator.store.folders import SCRIPT_FOLDER, STOP_FILE, SweepStore, TrialStore, home

__all__ = ["SCRIPT_FOLDER", "STOP_FILE", "SweepStore", "TrialStore", "home"]
