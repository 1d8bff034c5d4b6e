"""What figures and the HTML report promise."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from sweeps.curves import Curve
from sweeps.errors import StoreError
from sweeps.laws.heldout import check
from sweeps.laws.law import Law, fit_law
from sweeps.laws.published import PUBLISHED
from sweeps.laws.published.beside import beside_published
from sweeps.optima.pooled import refine
from sweeps.optima.records import CellOptimum, Optimum
from sweeps.report import Cost, LawReport, ReportData, figures, page, write_report
from sweeps.report.basins import draw_basins
from sweeps.report.law import draw_law
from sweeps.report.look import png
from sweeps.report.runs import draw_curves
from sweeps.report.spread import draw_interval, draw_residuals
from sweeps.spec import LawSpec, Result

PNG = b"\x89PNG\r\n\x1a\n"
GRID = tuple(5e-4 * 2**k for k in range(6))
NOTHING = Optimum(lr=None, low=None, high=None, log_sd=None, dof=None, censored="too few points")


def best_lr(batch_tokens: int, tokens: int, parameters: int) -> float:
    return 2e-3 * (batch_tokens / 1024) ** 0.3 * (tokens / 262_144) ** -0.1 * (parameters / 1e5) ** -0.2


def a_cell(
    batch_tokens: int, tokens: int, *, parameters: int = 100_000, lrs: Sequence[float] = GRID, seeds: int = 2
) -> CellOptimum:
    rng = np.random.default_rng([batch_tokens, tokens, parameters])
    key = f"{parameters}-{batch_tokens}-{tokens}"
    results = []
    for lr in lrs:
        for seed in range(seeds):
            x = math.log(lr / best_lr(batch_tokens, tokens, parameters))
            diverged = lr > 1.2e-2 and batch_tokens < 1000
            loss = None if diverged else 2.5 + 0.06 * x * x + 0.01 * x**3 + 0.003 * rng.standard_normal()
            results.append(Result(f"{key}-{lr:.3g}-{seed}", lr, seed, loss, "diverged" if diverged else "finished"))
    return CellOptimum(
        key, f"batch {batch_tokens}, tokens {tokens}", batch_tokens, tokens, parameters, NOTHING, tuple(results)
    )


def curves_of(cells: Sequence[CellOptimum]) -> dict[str, Curve]:
    found = {}
    for cell in cells:
        tokens = cell.tokens // 32 * np.arange(1, 33)
        for result in cell.results:
            end = 2.6 if result.loss is None else result.loss
            loss = end + 2.5 * np.exp(-5 * tokens / cell.tokens)
            if result.outcome == "diverged":
                tokens, loss = tokens[:6], np.array([*loss[:4], 80.0, math.inf])
            found[result.key] = Curve(tokens, tokens // cell.batch_tokens, tokens / 1e5, {"validation/loss": loss})
    return found


def a_report(
    *,
    batches: Sequence[int] = (256, 1024, 4096),
    tokens: Sequence[int] = (131_072, 262_144, 524_288),
    sizes: Sequence[int] = (100_000,),
    variables: tuple[str, ...] = ("batch_tokens", "tokens"),
) -> LawReport:
    cells = refine([a_cell(b, t, parameters=n) for n in sizes for b in batches for t in tokens])
    law = fit_law(cells, spec=LawSpec(variables=variables), recipe={"unit": "byte"}, sweep_key="0", version="0.1.0")
    n = sizes[-1] if "parameters" in variables else None
    lr = law.predict(batch_tokens=batches[1], tokens=2 * tokens[-1], parameters=n).lr
    target = a_cell(batches[1], 2 * tokens[-1], parameters=sizes[-1], lrs=(lr / 2, lr, lr * 2), seeds=3)
    verdict = check(law, target.results, batch_tokens=batches[1], tokens=2 * tokens[-1], parameters=n)
    held_out = replace(target, optimum=verdict.observed)
    return LawReport(cells, law.with_verdict(verdict), verdict=verdict, held_out=held_out)


@pytest.fixture(scope="module")
def report() -> LawReport:
    return a_report()


@pytest.fixture(scope="module")
def data(report: LawReport) -> ReportData:
    assert report.held_out is not None
    return ReportData(
        name="<quickstart> & more",
        laws=(report,),
        curves=curves_of([*report.cells, report.held_out]),
        cost=Cost(trials=117, tokens=38_000_000, flops=2.7e13, seconds=251.0, tokens_redone=12_288),
        recipe="name: quickstart\naxes:\n  lr: [1e-3]  # <here>\n",
        fingerprint="c0ffee" * 10,
        made_by="powersweep 0.1.0",
        unit="byte",
        remarks=("trial 3f2a9c failed twice",),
        tracking="sqlite:///mlflow.db",
    )


class Page(HTMLParser):
    """What a browser would see: text, tags left open, and all that is fetched."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.fetched: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_report_is_written_whole_and_the_same_each_time(data: ReportData, tmp_path: Path) -> None:
    data = replace(data, laws=(replace(data.laws[0], cells=data.laws[0].cells[:2]),))  # small: figures take time
    paths = write_report(tmp_path / "a", data)
    assert [p.name for p in paths] == [
        "law.png",
        "basins.png",
        "curves.png",
        "residuals.png",
        "interval.png",
        "report.html",
    ]
    again = write_report(tmp_path / "b", data)
    assert [p.read_bytes() for p in paths] == [p.read_bytes() for p in again]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(p.name for p in paths)
    assert all(p.read_bytes().startswith(PNG) for p in paths[:-1])


def test_the_page_needs_nothing_else_and_is_closed_properly(data: ReportData) -> None:
    html = page.render(data, {figures.file_name(kind, 0): PNG for kind in figures.KINDS})
    seen = Page(html)
    assert seen.open == []
    assert len(seen.fetched) == len(figures.KINDS)
    assert all(source.startswith("data:image/png;base64,") for source in seen.fetched)
    assert not seen.tags & {"script", "link", "iframe"}
    assert "url(" not in html
    assert "@import" not in html


def test_the_page_says_all_that_a_reader_needs(data: ReportData) -> None:
    report = data.laws[0]
    assert report.law is not None
    assert report.verdict is not None
    text = Page(page.render(data, {})).text
    for said in (
        "<quickstart> & more",
        report.law.one_line(),
        report.verdict.reason,
        "powersweep predict law.json --tokens 1048576 --batch-tokens 1024",
        "law.factor(batch_tokens=1024, tokens=1048576)",
        "trial 3f2a9c failed twice",
        "117",
        "12,288",
        "4 min 11 s",
        "c0ffee",
        "# <here>",
        "sqlite:///mlflow.db",
        "signal to noise",
        "seeds instead of 2 would narrow the interval",
        *(f"{cell.tokens:,}" for cell in report.cells),
    ):
        assert said in text


def test_the_law_stands_beside_published_ones_where_these_are_of_such_runs(data: ReportData) -> None:
    text = Page(page.render(data, {})).text
    for law in PUBLISHED.values():
        assert law.formula in text
        assert law.source in text
    assert "needs batch_tokens and sequence_tokens" in text  # what power-scheduler lacks here
    assert "Beside published laws" not in Page(page.render(replace(data, unit="image"), {})).text


def test_a_published_ratio_law_is_anchored_at_a_cell_of_the_sweep(report: LawReport) -> None:
    assert report.law is not None
    target = {"batch_tokens": 1024.0, "tokens": 1_048_576.0}
    said = {one.law.name: one for one in beside_published(report.law, report.cells, target)}
    (anchor,) = (c.optimum.lr for c in report.cells if (c.batch_tokens, c.tokens) == (1024, 131_072))
    assert anchor is not None
    assert said["bjorck"].lr == pytest.approx(anchor * 8**-0.32)
    ours = report.law.predict(batch_tokens=1024, tokens=1_048_576).lr
    assert said["bjorck"].ratio == pytest.approx(anchor * 8**-0.32 / ours)
    assert said["step-law"].lr == pytest.approx(1.79 * 1e5**-0.713 * 1_048_576**0.307)
    assert any("outside" in remark for remark in said["step-law"].remarks)


def test_the_two_lines_of_the_page_run(data: ReportData, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    law = data.laws[0].law
    assert law is not None
    law.save(tmp_path / "law.json")
    text = Page(page.render(replace(data, laws=(replace(data.laws[0], file=str(tmp_path / "law.json")),)), {})).text
    lines = [line[line.index("law = ") :] if "law = " in line else line for line in text.splitlines()]
    code = "\n".join(line for line in lines if line.startswith(("law = ", "scheduler = ")))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    names: dict[str, object] = {"Law": Law, "LambdaLR": torch.optim.lr_scheduler.LambdaLR, "optimizer": optimizer}
    exec(code.split("powersweep")[0], names)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(law.predict(batch_tokens=1024, tokens=1_048_576).lr)


def test_a_sweep_without_a_law_still_has_a_report_that_says_why(report: LawReport, tmp_path: Path) -> None:
    bare = LawReport(report.cells[:2], refusal="2 cells with an optimum, 3 unknowns")
    paths = write_report(tmp_path, ReportData("bare", (bare,)))
    text = Page(paths[-1].read_text()).text
    assert "2 cells with an optimum, 3 unknowns" in text
    assert "powersweep predict" not in text


def test_a_sweep_without_a_result_still_has_a_report(tmp_path: Path) -> None:
    assert len(write_report(tmp_path, ReportData("empty", (LawReport(()),)))) == len(figures.KINDS) + 1
    waiting = replace(a_cell(256, 1024), results=())
    assert len(write_report(tmp_path, ReportData("waiting", (LawReport((waiting,)),)))) == len(figures.KINDS) + 1


def test_each_law_of_a_further_axis_has_its_own_figures(report: LawReport) -> None:
    short = replace(report, cells=report.cells[:1], held_out=None, verdict=None)
    both = ReportData("two", (replace(short, label="weight_decay 0"), replace(short, label="weight_decay 0.1")))
    drawn = figures.draw(both)
    assert list(drawn)[:6] == ["law.png", "basins.png", "curves.png", "residuals.png", "interval.png", "law-2.png"]
    text = Page(page.render(both, drawn)).text
    assert "weight_decay 0.1" in text


def shown(figure: object) -> list[str]:
    """Return every text of a figure."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    assert isinstance(figure, Figure)
    return [t.get_text() for t in figure.findobj(Text) if isinstance(t, Text)]


def test_the_law_is_named_with_its_unit_and_batches(report: LawReport) -> None:
    texts = shown(draw_law(report, unit="byte"))
    assert "training bytes" in texts
    assert "best learning rate" in texts
    assert {"batch 256", "batch 1,024", "batch 4,096"} <= set(texts)
    assert "held out, found" in texts


def test_a_censored_cell_is_shown_as_censored(report: LawReport) -> None:
    edge = replace(report.cells[0].optimum, lr=1.6e-2, low=None, high=None, censored="edge high", basin=())
    cells = (replace(report.cells[0], optimum=edge), *report.cells[1:])
    assert "> 1.6e-2" in shown(draw_law(replace(report, cells=cells)))
    assert "censored: edge high" in shown(draw_basins(replace(report, cells=cells)))
    text = Page(page.render(ReportData("censored", (replace(report, cells=cells),)), {})).text
    assert "edge high" in text
    assert "(1.6e-2)" in text


@pytest.mark.parametrize(
    "made",
    [
        lambda: a_report(batches=(128, 256, 512, 1024, 2048, 4096, 8192, 16384)),
        lambda: a_report(sizes=(50_000, 100_000, 400_000), variables=("batch_tokens", "tokens", "parameters")),
        lambda: a_report(variables=("tokens",), batches=(512, 1024), tokens=(65_536, 131_072, 262_144, 524_288)),
        lambda: a_report(variables=("batch_tokens",), tokens=(262_144,), batches=(256, 512, 1024, 2048)),
    ],
    ids=["many batches", "sizes", "tokens alone", "batches alone"],
)
def test_laws_of_every_shape_are_drawn(made: object) -> None:
    assert callable(made)
    report: LawReport = made()
    assert png(draw_law(report)).startswith(PNG)
    assert png(draw_residuals(report)).startswith(PNG)


def test_an_endless_interval_does_not_flatten_the_picture(report: LawReport) -> None:
    assert report.verdict is not None
    wide = replace(report.verdict, predicted=replace(report.verdict.predicted, low=1e-300, high=1e300))
    low, high = draw_law(replace(report, verdict=wide)).axes[0].get_ylim()
    assert high / low < 1e3


def test_curves_that_diverged_end_in_the_picture(data: ReportData) -> None:
    figure = draw_curves(data.laws[0], data.curves, unit="byte")
    first = figure.axes[0]
    crosses = [line for line in first.get_lines() if line.get_marker() == "x"]
    assert len(crosses) == 2
    assert all(first.get_ylim()[0] <= float(np.asarray(c.get_ydata())[0]) <= first.get_ylim()[1] for c in crosses)


def test_the_interval_is_shown_as_trials_ended_and_by_seeds(data: ReportData) -> None:
    texts = shown(draw_interval(data.laws[0], data.curves))
    assert "lr* at the target, as trials ended" in texts
    assert any("(as run)" in text for text in texts)
    assert "no interval yet" in shown(draw_interval(LawReport(()), {}))


def test_drawing_leaves_matplotlib_as_it_was(report: LawReport) -> None:
    before = dict(mpl.rcParams)
    draw_law(report)
    assert dict(mpl.rcParams) == before
    code = "import sys, sweeps.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        write_report(tmp_path / "file" / "report", ReportData("x", (LawReport(()),)))


def test_a_report_of_no_law_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^laws: must hold at least one"):
        ReportData("x", ())


def test_a_held_out_cell_without_an_optimum_says_so(report: LawReport) -> None:
    assert report.verdict is not None
    edge = replace(NOTHING, lr=9e-4, censored="edge low")
    unsure = replace(report, verdict=replace(report.verdict, status="cannot tell", observed=edge))
    said = "no optimum (edge low; best tried 9e-4)"
    assert any(said in text for text in shown(draw_law(unsure)))
    assert said in Page(page.render(ReportData("unsure", (unsure,)), {})).text


def test_censored_cells_that_lie_on_each_other_share_one_number(report: LawReport) -> None:
    first = min(cell.tokens for cell in report.cells)
    edge = Optimum(0.016, None, None, None, None, "edge high")
    cells = tuple(replace(c, optimum=edge) if c.tokens == first else c for c in report.cells)
    texts = shown(draw_law(replace(report, cells=cells, verdict=None)))
    assert texts.count("> 1.6e-2") == 1
