"""Losses from the LR of every step: curve laws, forecasts of running trials, learning traces, schedules by design."""
