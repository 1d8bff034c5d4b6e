"""The report as one HTML file that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape

from sweeps.laws.noise import seeds_line
from sweeps.laws.published.beside import beside_published
from sweeps.optima.noise import monotonicity, sweep_noise
from sweeps.optima.records import CellOptimum
from sweeps.report.data import Cost, LawReport, ReportData
from sweeps.report.figures import file_name
from sweeps.report.sheet import CSS
from sweeps.report.spread import seeds_of, target_of, widths_of
from sweeps.report.text import count_text, exact_text, interval_text, lr_text, optimum_text, seconds_text

EXPLAINED = {
    "fitted": "fitted, not checked on a held-out run",
    "validated": "validated: the held-out optimum meets the interval",
    "rejected": "rejected: the held-out optimum lies outside the interval",
    "cannot tell": "cannot tell: the held-out runs do not decide",
    "none": "no law",
}
PLACES = {"box": "among the cells fitted", "reach": "extrapolated", "beyond": "beyond the reach"}
LANGUAGE_UNITS = ("token", "byte")  # of the runs that published laws are of
AXES = {"batch_tokens": "B", "tokens": "T", "parameters": "N"}
STAR = "The star is the optimum found at the held-out target, beside the interval that the law gave for it before."
CAPTIONS = {
    "law": "Each point is the best LR of one cell with its interval; the lines are the law, solid where cells were "
    "fitted and dashed where it is extrapolated, with their bands.",
    "basins": "Final loss over LR. Pale points are seeds, dark ones their mean; the line is the fit around the minimum "
    "and the bar the interval of the optimum. A cell whose best LR is at the edge of what was tried is censored: it "
    "has no optimum and takes no part in the fit.",
    "curves": "A line a run, coloured by its LR; thick: the LR nearest to the optimum; a red cross: diverged.",
    "residuals": "Left: each optimum over the law. Middle: how wide the interval of each optimum is. Right: noise.",
    "interval": "At {where}. Left: the law fitted again on the trials that had ended by then, over the last lr*; a "
    "sweep that had stopped there might have chosen other trials. Right: what other numbers of seeds would give; "
    "predicted, but for the one that ran.",
}


def render(data: ReportData, figures: Mapping[str, bytes]) -> str:
    """Return the page. `figures` is file name -> PNG, as `figures.draw` makes them."""
    several = len(data.laws) > 1
    body = "".join(_law(data, i, law, figures, several=several) for i, law in enumerate(data.laws))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(data.name)}: learning-rate law</title><style>{CSS}</style></head><body><main>"
        f'<header><p class="kicker">learning-rate law of the sweep</p><h1>{escape(data.name)}</h1></header>'
        f"{body}{_refused(data)}{_stopped(data)}{_cost(data)}{_recipe(data)}"
        f"<footer>{escape(data.made_by)}</footer></main></body></html>\n"
    )


def _law(data: ReportData, index: int, report: LawReport, figures: Mapping[str, bytes], *, several: bool) -> str:
    status = "none" if report.law is None else report.law.status
    heading = f"<h2>{escape(report.label)}</h2>" if several or report.label else ""
    line = escape(report.law.one_line()) if report.law is not None else escape(report.refusal or "no law was fitted")
    first = (
        f'<section class="lead"><p class="badge {status.replace(" ", "-")}">{EXPLAINED[status]}</p>'
        f'<p class="formula">{line}</p>{_convention(report, data.unit)}</section>'
    )
    captions = {**CAPTIONS, "law": f"{CAPTIONS['law']} {STAR}"} if report.verdict is not None else CAPTIONS
    captions = {**captions, "interval": captions["interval"].format(where=escape(_where(report, data.unit)))}
    shown = {kind: _figure(figures, file_name(kind, index), kind, text) for kind, text in captions.items()}
    return (
        f"{heading}{first}{shown['law']}{_usage(report)}{_held_out(report, data.unit)}{_published(report, data.unit)}"
        f"<h3>Cells</h3>{_cells(report.cells, data.unit)}"
        f"<h3>Basins</h3>{shown['basins']}<h3>Curves</h3>{shown['curves']}"
        f"<h3>Fit and noise</h3>{shown['residuals']}{_noise(data, report)}{shown['interval']}"
    )


def _figure(figures: Mapping[str, bytes], name: str, kind: str, caption: str) -> str:
    if name not in figures:
        return ""
    picture = base64.b64encode(figures[name]).decode()
    return (
        f'<figure><img alt="{escape(kind)} figure" src="data:image/png;base64,{picture}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _convention(report: LawReport, unit: str) -> str:
    law = report.law
    if law is None:
        return ""
    meaning = {"batch fixed": "the best LR at the batch size given", "batch free": "the best LR at the best batch size"}
    spans = [
        f"{AXES[name]} {exact_text(low)} to {exact_text(high)}, asked up to {exact_text(law.reach[name][1])}"
        for name, (low, high) in law.box.items()
        if low < high
    ]
    sized = "; N counts parameters without embeddings" if "parameters" in law.variables else ""
    return (
        f'<p class="small">Convention: {escape(law.convention)} ({escape(meaning.get(law.convention, ""))}). '
        f"B is the batch size and T the length of the run, in {escape(unit)}s{sized}. "
        f"Fitted on {escape('; '.join(spans))}. Beyond that it refuses.</p>"
    )


def _usage(report: LawReport) -> str:
    if report.law is None:
        return ""
    asked = report.verdict is not None and report.verdict.predicted.place != "beyond"
    target = report.verdict.target if report.verdict and asked else {n: x for n, (_, x) in report.law.box.items()}
    batch, tokens = round(target["batch_tokens"]), round(target["tokens"])
    size = round(target["parameters"]) if "parameters" in report.law.variables else None
    option, argument = ("", "") if size is None else (f" --parameters {size}", f", parameters={size}")
    command = f"powersweep predict {report.file} --tokens {tokens} --batch-tokens {batch}{option}"
    call = f"law.factor(batch_tokens={batch}, tokens={tokens}{argument})"
    code = (
        f'law = Law.load("{report.file}")  # from sweeps.laws.law import Law\n'
        f"scheduler = LambdaLR(optimizer, {call})  # optimizer with lr=1.0"
    )
    return f"<h3>Use it</h3><pre>{escape(command)}</pre><pre>{escape(code)}</pre>"


def _held_out(report: LawReport, unit: str) -> str:
    verdict = report.verdict
    if verdict is None:
        return ""
    observed, predicted = verdict.observed, verdict.predicted
    regret = "-" if verdict.regret is None else f"{verdict.regret:.4f} nats"
    if verdict.regret_tokens is not None:
        share = 100 * verdict.regret_tokens / verdict.target["tokens"]
        regret += f", worth {count_text(verdict.regret_tokens)} {unit}s ({share:.2g} % of the run)"
    rows = [
        (
            "target",
            f"batch {exact_text(verdict.target['batch_tokens'])}, {count_text(verdict.target['tokens'])} {unit}s",
        ),
        (
            "predicted",
            f"{lr_text(predicted.lr)} {interval_text(predicted.low, predicted.high)}, {PLACES[predicted.place]}",
        ),
        ("found", optimum_text(observed)),
        ("loss given up at the predicted LR", regret),
        ("verdict", f"{verdict.status}: {verdict.reason}"),
    ]
    return f"<h3>Held-out check</h3>{_pairs(rows)}"


def _published(report: LawReport, unit: str) -> str:
    """Return the table of published laws, "" where none is of such runs."""
    law, target = report.law, target_of(report)
    if law is None or target is None or unit not in LANGUAGE_UNITS:
        return ""
    rows = []
    for one in beside_published(law, report.cells, target):
        lr = "-" if one.lr is None else lr_text(one.lr)
        ratio = "-" if one.ratio is None else f"×{one.ratio:.2g}"
        row = (one.law.name, lr, ratio, one.law.formula, one.law.convention, one.law.source, "; ".join(one.remarks))
        rows.append(f"<tr>{''.join(f'<td>{escape(x)}</td>' for x in row)}</tr>")
    names = ("law", "LR there", "over ours", "formula", "convention", "source", "to know")
    head = "".join(f"<th>{name}</th>" for name in names)
    counted = "" if unit == "token" else f" They count tokens of a few characters each, this sweep counts {unit}s."
    return (
        f"<h3>Beside published laws</h3><p>At {escape(_where(report, unit))}. Each is a law of its own recipe, most of "
        f"models far larger than these: a distance is no fault of either.{escape(counted)}</p>"
        f'<div class="wide"><table class="grid wordy"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _where(report: LawReport, unit: str) -> str:
    """Return where the law's interval is looked at, in words."""
    target = target_of(report)
    if target is None:
        return "no target: there is no law"
    return f"batch {exact_text(target['batch_tokens'])}, {count_text(target['tokens'])} {unit}s"


def _noise(data: ReportData, report: LawReport) -> str:
    """Return how noisy the sweep is, and whether more seeds would help."""
    noise = sweep_noise(report.cells, estimator="asymmetric" if report.law is None else report.law.estimator)
    of = "of the loss" if noise.relative else "nats"
    falls = monotonicity((data.curves[k] for k in _finished(report) if k in data.curves), metric=data.loss)

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.3g} % {of}" if noise.relative else f"{value:.3g} {of}"

    ratio = noise.signal_to_noise
    spread = "-" if noise.log_lr_sd is None else f"factor {math.exp(noise.log_lr_sd):.2f} ({noise.log_lr_dof} dof)"
    rows = [
        ("loss, sd between paired seeds", share(noise.loss_sd)),
        ("loss, sd of a seed's level in a cell", share(noise.offset_sd)),
        ("lr* of a cell, sd between seeds", spread),
        ("rise of the loss within a factor 4 of the best LR", share(noise.signal)),
        ("signal to noise: that rise over the sd", "-" if ratio is None else f"{ratio:.3g}"),
        ("pairs of reports of which the later is lower", _range_text(falls)),
    ]
    widths = widths_of(report)
    line = f"<p>{escape(seeds_line(widths, ran=seeds_of(report)))}</p>" if widths else ""
    return f"{_pairs(rows)}{line}"


def _range_text(shares: Sequence[float]) -> str:
    if not shares:
        return "-"
    return f"{100 * shares[len(shares) // 2]:.3g} % in the median trial, {100 * shares[0]:.3g} % in the lowest"


def _finished(report: LawReport) -> list[str]:
    return sorted({r.key for cell in report.cells for r in cell.results if r.outcome == "finished"})


def _cells(cells: Sequence[CellOptimum], unit: str) -> str:
    sizes = len({cell.parameters for cell in cells}) > 1
    further = sorted({name for cell in cells for name in cell.values})
    names = ["batch", f"{unit}s", *(["parameters"] if sizes else []), *further]
    names += ["lr*", "interval", "loss there", "trials", "seeds", "noise sd / loss", "censored"]
    rows = []
    for cell in sorted(cells, key=lambda c: (c.parameters, c.batch_tokens, c.tokens, c.key)):
        o = cell.optimum
        best = "-" if o.lr is None else f"({lr_text(o.lr)})" if o.censored else lr_text(o.lr)
        row = [f"{cell.batch_tokens:,}", f"{cell.tokens:,}", *([f"{cell.parameters:,}"] if sizes else [])]
        row += [str(cell.values.get(name, "")) for name in further]
        row += [best, interval_text(o.low, o.high), "-" if o.loss is None else f"{o.loss:.4f}"]
        row += [str(len(cell.results)), str(len({r.seed for r in cell.results}))]
        row += ["-" if o.noise_sd is None else f"{o.noise_sd:.4f}", o.censored or ""]
        kind = ' class="censored"' if o.censored else ""
        rows.append(f"<tr{kind}>{''.join(f'<td>{escape(x)}</td>' for x in row)}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    censored = any(cell.optimum.censored for cell in cells)
    note = '<p class="small">In brackets: the best LR tried in a censored cell.</p>' if censored else ""
    table = f'<table class="grid"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="wide">{table}</div>{note}'


def _refused(data: ReportData) -> str:
    """List what took no part, and why."""
    said = list(data.remarks)
    for report in data.laws:
        prefix = f"{report.label}: " if report.label else ""
        said += [f"{prefix}{report.refusal}"] if report.refusal else []
        if report.law is not None:
            said += [f"{prefix}not fitted: {c['label']} ({c['reason']})" for c in report.law.left_out]
        else:
            said += [f"{prefix}{c.label}: {c.optimum.censored}" for c in report.cells if c.optimum.censored]
        results = [r for c in report.cells for r in c.results]
        lost = {way: len({r.key for r in results if r.outcome == way}) for way in ("diverged", "stopped", "failed")}
        said += [f"{prefix}{count} trials {way}" for way, count in lost.items() if count]
    items = "".join(f"<li>{escape(text)}</li>" for text in said) or "<li>nothing</li>"
    return f"<h3>Censored, refused, left out</h3><ul>{items}</ul>"


def _stopped(data: ReportData) -> str:
    """Return the table of the trials that a stopper ended, "" where there is none."""
    if not data.stopped:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in data.stopped[0])
    rows = "".join(f"<tr>{''.join(f'<td>{escape(x)}</td>' for x in row.values())}</tr>" for row in data.stopped)
    return (
        f"<h3>Stopped runs</h3><p>They bracket the best LR of their cell and have no loss in its fit.</p>"
        f'<div class="wide"><table class="grid"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _cost(data: ReportData) -> str:
    cost: Cost | None = data.cost
    if cost is None:
        return ""
    rows = [
        ("trials", f"{cost.trials:,}"),
        (f"{data.unit}s trained on", count_text(cost.tokens) if cost.tokens else "0"),
        ("of these, a second time after an interruption", f"{cost.tokens_redone:,}"),
        ("FLOPs", f"{cost.flops:.2e}"),
        ("training time, summed over trials", seconds_text(cost.seconds)),
    ]
    reached = "".join(f"<p>{escape(line[0].upper() + line[1:])}.</p>" for line in data.targets)
    return f"<h3>Cost</h3>{_pairs(rows)}{reached}"


def _recipe(data: ReportData) -> str:
    rows = [("fingerprint", data.fingerprint or "-"), ("tracked in", data.tracking or "-")]
    text = f"<pre>{escape(data.recipe.rstrip())}</pre>" if data.recipe else ""
    return f"<h3>Recipe</h3>{_pairs(rows)}{text}"


def _pairs(rows: Sequence[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value.strip())}</td></tr>" for name, value in rows)
    return f'<table class="pairs"><tbody>{lines}</tbody></table>'
