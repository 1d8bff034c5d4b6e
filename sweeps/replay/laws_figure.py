"""The figures of `replay laws`: the gap at each cell, or against the trials that samplers have picked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sweeps.replay.laws import Score
from sweeps.report.look import COLOURS, FAINT, MARKERS, styled
from sweeps.report.text import count_text

HEADROOM = 1.6  # of the gap axis over the median at half the trials: the first guesses are far off


def draw_gaps(groups: Mapping[str, Sequence[Score]], *, reference: float | None = None) -> Figure:
    """Return the figure of scores by name; `reference` is the mean gap of a fit of all runs, per mille."""
    with styled():
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        if all(score.sampler is None for scores in groups.values() for score in scores):
            _cells(axes, groups)
        else:
            _samplers(axes, groups, reference)
    return figure


def _cells(axes: Axes, groups: Mapping[str, Sequence[Score]]) -> None:
    cells = [(cell.params, cell.tokens) for cell in next(iter(groups.values()))[0].cells]
    for i, (name, scores) in enumerate(groups.items()):
        gaps = [cell.gap_per_mille for cell in scores[0].cells]
        axes.plot(
            gaps, range(len(gaps)), MARKERS[i % 7], color=COLOURS[i % 7], label=f"{name}, mean {np.mean(gaps):.2f}"
        )
    axes.set_yticks(
        range(len(cells)), [f"{count_text(round(n))} parameters, {count_text(round(t))} tokens" for n, t in cells]
    )
    axes.invert_yaxis()
    axes.set_xlim(left=0.0)
    axes.set_xlabel("loss above the cell's best, per mille")
    axes.legend(loc="lower right")
    axes.set_title("Loss gap of what the law recommends")


def _samplers(axes: Axes, groups: Mapping[str, Sequence[Score]], reference: float | None) -> None:
    top = 0.0
    for i, (name, scores) in enumerate(groups.items()):
        trials = [*(n for n, _ in scores[0].steps), scores[0].trials]
        gaps_SN = np.array([[*(gap for _, gap in score.steps), score.mean] for score in scores])
        middle = gaps_SN.mean(axis=0)
        colour = COLOURS[i % 7]
        axes.plot(
            trials, middle, color=colour, marker=MARKERS[i % 7], markersize=4.5, label=f"{name}: {middle[-1]:.2f}"
        )
        if len(groups) == 1:
            axes.fill_between(trials, *np.quantile(gaps_SN, [0.1, 0.9], axis=0), color=colour, alpha=0.15, linewidth=0)
        top = max(top, float(middle[len(middle) // 2]))
    if reference is not None:
        axes.axhline(reference, color=FAINT, linestyle="--", linewidth=1.2, label=f"all runs: {reference:.2f}")
    axes.set_ylim(0.0, max(HEADROOM * top, 1.0))
    axes.set_xlabel("trials picked")
    axes.set_ylabel("loss above the cell's best, per mille")
    axes.legend(title=f"mean gap of {len(next(iter(groups.values())))} seeds", alignment="left")
    axes.set_title("Loss gap at the target against trials")
