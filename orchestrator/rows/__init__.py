"""Rows: what Ray Tune runs."""

from orchestrator.rows.tuner import WORKER, cluster, run_rows

__all__ = ["WORKER", "cluster", "run_rows"]
