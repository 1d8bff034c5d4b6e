"""The language model: a decoder-only transformer on real text."""

from workloads.gpt.workload import Gpt

__all__ = ["Gpt"]
