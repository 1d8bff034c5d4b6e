"""Recorded results, scored: what laws and rules would have said of runs that are already done."""
