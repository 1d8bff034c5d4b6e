"""Files and options that cannot be read end with exit code 2 and one clear line, and leave nothing behind."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from orchestrator.cli import main
from orchestrator.tracking import client
from workloads.data.prepare import prepare
from workloads.data.shards import COLUMN
from workloads.data.stream import fingerprint_of

SWEEP = """
name: tiny
workload: {name: quadratic}
optimizer: {name: sgd}
schedule: {name: constant}
axes:
  lr: [0.1, 0.2, 0.4]
  batch_tokens: [8, 16]
  tokens: [128, 256]
"""
LAW: dict[str, Any] = {
    "law": 1,
    "form": "lr* = a * B^p * T^q",
    "convention": "batch fixed",
    "variables": ["batch_tokens", "tokens"],
    "coefficients": {"log_a": -5.0, "batch_tokens": 0.5, "tokens": -0.4},
    "covariance": [[0.01, 0, 0], [0, 0.01, 0], [0, 0, 0.01]],
    "dof": 6.0,
    "units": {"lr": "per step", "batch_tokens": "token", "tokens": "token", "parameters": "parameter"},
    "box": {"batch_tokens": [512, 2048], "tokens": [65536, 262144], "parameters": [256, 256]},
    "reach": {"batch_tokens": [256, 4096], "tokens": [16384, 1048576], "parameters": [128, 512]},
    "cells": [],
    "left_out": [],
    "recipe": {"unit": "token"},
    "status": "validated",
    "validation": None,
    "noise": {"seed_sd": 0.01, "misfit_sd": 0.02},
    "estimator": "asymmetric",
    "confidence": 0.95,
    "made_by": {"version": "0", "sweep_key": "x"},
}
CELL: dict[str, Any] = {
    "key": "a",
    "label": "cell a",
    "batch_tokens": 512,
    "tokens": 65536,
    "parameters": 256,
    "optimum": {"lr": 0.001, "loss": 2.0, "basin": [0.7, 0.0, 0.1]},
    "minimum": {"loss": 2.0, "by_seed": {"0": 2.0}, "offset_sd": None, "fit_sd": None},
}
ASKED = ["--tokens", "1e5", "--batch-tokens", "1024"]
RUNS = "lr,batch,T,loss,note,none\n" + "".join(
    f"{lr},{batch},{tokens},{2 + 0.1 * math.log(lr / 0.002) ** 2 + 0.01 * math.log(batch / 2e4) ** 2},word,\n"
    for lr in (0.0005, 0.001, 0.002, 0.004, 0.008)
    for batch in (8192, 16384, 32768, 65536)
    for tokens in (1e9, 2e9, 8e9)
)
REPORTS = "run,cell,step,loss\n" + "".join(
    f"r{run},c,{step},{3 - 0.1 * step + 0.1 * run}\n" for run in (0, 1, 2) for step in range(1, 11)
)
CURVE = "step,lr,loss\n" + "".join(f"{step},0.001,{3 + step**-0.3:.5f}\n" for step in range(40, 2401, 40))
TABLE = "lr=lr,batch_tokens=batch,tokens=T,loss=loss"
LAWS = ("replay", "laws", "runs.csv", "--target", "tokens>=8e9", "--columns")
STOPPING = (
    "replay",
    "stopping",
    "reports.csv",
    "--rule",
    "median",
    "--columns",
    "run=run,cell=cell,tokens=step,loss=loss",
)


def write_law(**changed: Any) -> None:
    Path("law.json").write_text(json.dumps({**LAW, **changed}))


def without(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of good files, the working folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POWERSWEEP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("sweep.yaml").write_text(SWEEP)
    Path("runs.csv").write_text(RUNS)
    Path("reports.csv").write_text(REPORTS)
    Path("text.txt").write_text("hello world\n" * 50)
    Path("curves").mkdir()
    for name in ("constant", "other"):
        Path("curves", f"{name}.csv").write_text(CURVE)
    write_law()
    return tmp_path


def files(place: Path) -> dict[str, int]:
    return {str(path.relative_to(place)): path.stat().st_mtime_ns for path in place.rglob("*")}


def refused(arguments: Sequence[str], fragments: Sequence[str], place: Path, *, code: int = 2) -> None:
    """Assert that a command ends with one line that holds these, and that it changes nothing."""
    before = files(place)
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == code, result.output + repr(result.exception)
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("powersweep: ")
    assert len(result.stderr) < 500
    for fragment in fragments:
        assert fragment in result.stderr
    assert result.stdout == ""
    assert files(place) == before


HUGE = 10**400
LAW_FIELDS: dict[str, tuple[dict[str, Any], Sequence[str]]] = {
    "the format true": ({"law": True}, ["law: must be format 1, got True"]),
    "an unknown form": ({"form": "lr* = a"}, ["form: must be 'lr* = a * B^p * T^q'"]),
    "an unknown convention": ({"convention": "batch fix"}, ["convention", "did you mean 'batch fixed'?"]),
    "an unknown estimator": ({"estimator": "asymetric"}, ["estimator", "did you mean 'asymmetric'?"]),
    "units of numbers": ({"units": {"lr": 3}}, ["units: must be texts"]),
    "an LR no float holds": ({"coefficients": {**LAW["coefficients"], "log_a": 800}}, ["coefficients", "finite"]),
    "an LR of nothing": ({"coefficients": {**LAW["coefficients"], "log_a": -5000}}, ["coefficients", "above 0"]),
    "a number of 400 digits": ({"coefficients": {**LAW["coefficients"], "log_a": HUGE}}, ["coefficients"]),
    "dof of 400 digits": ({"dof": HUGE}, ["dof: must be a number"]),
    "huge dof": ({"dof": 1e300}, ["dof: must be from 0.1 to 1e+09"]),
    "a box of 400 digits": ({"box": {**LAW["box"], "tokens": [1, HUGE]}}, ["box.tokens"]),
    "no N of a law of N": (
        {
            "variables": ["parameters"],
            "form": "lr* = a * N^r",
            "box": {**LAW["box"], "parameters": [0, 0]},
            "reach": {**LAW["reach"], "parameters": [0, 0]},
        },
        ["box.parameters: must be [low, high]"],
    ),
    "a reach inside the box": ({"reach": {**LAW["reach"], "tokens": [1e5, 2e5]}}, ["reach.tokens: must hold the box"]),
    "an asymmetric covariance": ({"covariance": [[1, 0.5, 0], [0, 1, 0], [0, 0, 1]]}, ["covariance", "symmetric"]),
    "a covariance of none": ({"covariance": [[1, 2, 0], [2, 1, 0], [0, 0, 1]]}, ["covariance", "eigenvalue"]),
    "a huge covariance": ({"covariance": [[1e300, 0, 0], [0, 1, 0], [0, 0, 1]]}, ["covariance", "from 0 to 1e+12"]),
    "a confidence beside 1": ({"confidence": 0.9999999999999999}, ["confidence: must be in (0, 1)"]),
    "a text for noise": ({"noise": {"misfit_sd": 0, "seed_sd": "x"}}, ["noise.seed_sd"]),
    "cells of text": ({"cells": ["x"]}, ["cells[0]: must be an object"]),
    "cells of nothing": ({"cells": [CELL, {}]}, ["cells[1].key: is required"]),
    "cells of null": ({"cells": [None]}, ["cells[0]: must be an object, got null"]),
    "a cell without an optimum": ({"cells": [without(CELL, "optimum")]}, ["cells[0].optimum: is required"]),
    "an optimum of text": ({"cells": [{**CELL, "optimum": "x"}]}, ["cells[0].optimum: must be an object"]),
    "an optimum without an LR": ({"cells": [{**CELL, "optimum": {"loss": 1}}]}, ["cells[0].optimum.lr: is required"]),
    "a batch of text": ({"cells": [{**CELL, "batch_tokens": "x"}]}, ["cells[0].batch_tokens", "whole number"]),
    "a minimum of nothing": ({"cells": [{**CELL, "minimum": {}}]}, ["cells[0].minimum.loss: is required"]),
    "a seed of text": (
        {"cells": [{**CELL, "minimum": {**CELL["minimum"], "by_seed": {"x": 1.0}}}]},
        ["cells[0].minimum.by_seed"],
    ),
    "left out of text": ({"left_out": ["x"]}, ["left_out[0]: must be an object"]),
    "validation of text": ({"validation": "x"}, ["validation: must be an object or null"]),
}


@pytest.mark.parametrize("command", ["predict", "compare", "validate"])
@pytest.mark.parametrize("case", LAW_FIELDS)
def test_a_law_with_a_field_that_cannot_be_is_refused_by_all_that_read_it(case: str, command: str, place: Path) -> None:
    changed, fragments = LAW_FIELDS[case]
    write_law(**changed)
    arguments = {
        "predict": ["predict", "law.json", *ASKED],
        "compare": ["compare", "law.json", "law.json"],
        "validate": ["validate", "sweep.yaml", "--law", "law.json"],
    }
    refused(arguments[command], ["law.json", *fragments], place)


def test_a_law_of_no_known_size_is_read(place: Path) -> None:
    write_law(box={**LAW["box"], "parameters": [0, 0]}, reach={**LAW["reach"], "parameters": [0, 0]}, cells=[CELL])
    result = CliRunner().invoke(main, ["predict", "law.json", *ASKED])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("target", [["--tokens", "1e12"], ["--batch-tokens", "1"]])
def test_a_check_beyond_the_reach_is_refused_before_anything_is_written(target: list[str], place: Path) -> None:
    write_law(cells=[CELL])
    refused(["validate", "sweep.yaml", "--law", "law.json", *target], ["beyond the law's reach"], place, code=1)


STEP = ["--law", "step-law", "--tokens", "4e10", "--parameters", "4e8"]
OPTIONS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    # predict
    "a law of nearly that name": (["predict", "step-lwa", *ASKED], ["did you mean 'step-law'?"]),
    "a name no file can have": (["predict", "a" * 5000, *ASKED], ["LAW: no file aaa"]),
    "an anchor of step-law": (
        ["predict", *STEP, "--anchor-lr", "1e-3", "--anchor-tokens", "1e9"],
        ["--anchor-lr: step-law does not read it"],
    ),
    "a sequence of openai": (
        ["predict", "openai", "--tokens", "1e9", "--parameters", "1e8", "--sequence-tokens", "8"],
        ["--sequence-tokens: openai does not read it"],
    ),
    # validate
    "a third of a token": (["validate", "sweep.yaml", "--law", "law.json", "--tokens", "0.3"], ["--tokens", "0.3"]),
    "a billion seeds": (["validate", "sweep.yaml", "--law", "law.json", "--seeds", "1000000000"], ["--seeds"]),
    # prepare
    "a user that is not there": (["prepare", "~nobody-here/x.txt", "--out", "made"], ["~nobody-here/x.txt"]),
    "a vocabulary of 10^12": (
        ["prepare", "text.txt", "--out", "made", "--tokenizer", "1000000000000"],
        ["tokenizer", "at most 1,000,000"],
    ),
    "a small two": (["prepare", "text.txt", "--out", "made", "--tokenizer", "²"], ["tokenizer", "no file ²"]),
    "a corpus of nobody's": (
        ["run", "sweep.yaml", "workload={name: gpt, data: {name: tokens, path: '~nobody-here/x'}}"],
        ["data.path", "~nobody-here/x"],
    ),
    "a file for a corpus": (
        ["run", "sweep.yaml", "workload={name: gpt, data: {name: tokens, path: text.txt}}"],
        ["data.path", "text.txt is a file"],
    ),
    # replay laws
    "a column of text": ([*LAWS, TABLE.replace("=lr", "=note")], ["columns.lr: column 'note' holds no numbers"]),
    "an empty column": ([*LAWS, TABLE.replace("=lr", "=none")], ["columns.lr: column 'none' holds no numbers"]),
    "an open bracket": ([*LAWS, f"lr=(lr,{TABLE[6:]}"], ["columns: a ( is not closed in 'lr=(lr"]),
    "an open quote": ([*LAWS, f'lr="lr,{TABLE[6:]}'], ['columns: a " is not closed in']),
    "a bracket too many": ([*LAWS, TABLE.replace("=lr", "=lr)")], ["columns: a ) closes no bracket"]),
    "a function of nothing": ([*LAWS, TABLE.replace("=lr", "=log()")], ["columns.lr: log() takes one value"]),
    "2,000 terms": ([*LAWS, TABLE.replace("=lr", "=lr" + "+lr" * 2000)], ["columns.lr: must have at most 500 parts"]),
    "brackets of brackets": ([*LAWS, TABLE.replace("=lr", "=" + "lr[" * 90 + "lr" + "]" * 90)], ["is not understood"]),
    "480 signs": ([*LAWS, TABLE.replace("=lr", "=" + "-" * 481 + "lr")], ["lr must be positive in every run"]),
    "5,000 brackets": ([*LAWS, TABLE.replace("=lr", "=" + "(" * 5000 + "lr" + ")" * 5000)], ["is no expression"]),
    "400 digits": ([*LAWS, TABLE.replace("=lr", "=" + "1" * 400)], ["columns.lr: a number is beyond"]),
    "a folder for a table": (["replay", "laws", "curves", *LAWS[3:], TABLE], ["curves: is a folder"]),
    "a division by zero": ([*LAWS, TABLE, "--train", "tokens<1/0"], ["target: shares"]),
    "a figure in a file": ([*LAWS, TABLE, "--figure", "text.txt/x.png", "--train", "tokens<8e9"], ["text.txt/x.png"]),
    # replay stopping
    "a law of a table": ([*STOPPING, "--law", "zzz"], ["--law: is of the curve law that --fit asks for"]),
    "a warm-up of a table": ([*STOPPING, "--warmup", "zzz"], ["--warmup: is of the curve law"]),
    "a prior of a table": ([*STOPPING, "--prior", "zzz"], ["--prior: is of the curve law"]),
    "steps of warm-up of a table": ([*STOPPING, "--warmup-steps", "5"], ["--warmup-steps: is of a folder"]),
    "a law without --fit": (["replay", "stopping", "curves", "--rule", "median", "--law", "fsl"], ["--law", "--fit"]),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_that_cannot_be_is_refused_in_one_line(case: str, place: Path) -> None:
    arguments, fragments = OPTIONS[case]
    refused(arguments, fragments, place)


def test_a_published_law_without_a_value_there_is_refused(place: Path) -> None:
    asked = ["predict", "--law", "deepseek", "--tokens", "1e308", "--parameters", "1e308"]
    refused(asked, ["deepseek: its formula gives no LR above 0 and finite there"], place, code=1)


CURVES = ("replay", "curves", "curves", "--fit", "constant")
# (file, its text, the command, what the line must hold)
WRITTEN: dict[str, tuple[str, str, Sequence[str], Sequence[str]]] = {
    "a table of a header": ("runs.csv", "lr,batch,T,loss\n", [*LAWS, TABLE], ["runs.csv: has no rows"]),
    "two columns of one name": (
        "curves/other.csv",
        "step,step,lr,loss\n1,1,1,1\n",
        CURVES,
        ["two columns named 'step'"],
    ),
    "a step of 10^11": (
        "curves/other.csv",
        f"{CURVE}100000000000,0.001,3\n",
        CURVES,
        ["at most 10,000,000, got 1e+11"],
    ),
    "a step of 10^300": ("curves/other.csv", f"{CURVE}1e300,0.001,3\n", CURVES, ["at most 10,000,000, got 1e+300"]),
    "a schedule without end": (
        "curves/schedules.yaml",
        "warmup: {steps: 10, lr: 1.0e-3}\ncurves: {constant: [{until: 100000000000000}]}\n",
        CURVES,
        ["curves.constant[0].until: must be at most 10,000,000 steps"],
    ),
    "a warm-up without end": (
        "curves/schedules.yaml",
        "warmup: {steps: 100000000000000, lr: 1.0e-3}\ncurves: {constant: [{until: 2400}]}\n",
        CURVES,
        ["warmup.steps: must be at most 10,000,000 steps"],
    ),
    "runs of no tokens": (
        "reports.csv",
        "run,cell,step,loss\nr0,c,0,3\nr1,c,0,2\n",
        STOPPING,
        ["tokens must be above 0 somewhere in cell 'c'"],
    ),
    "rows of no run": (
        "reports.csv",
        "run,cell,step,loss\nr0,c,1,3\n,c,1,2\n",
        STOPPING,
        ["columns.run: must name the run of every row, and run is empty in row 2"],
    ),
    "an empty array": ("x.npy", "", ["prepare", "x.npy", "--out", "made"], ["x.npy: must be a NumPy array file"]),
    "deep JSON lines": (
        "x.jsonl",
        "[" * 10**5,
        ["prepare", "x.jsonl", "--out", "made"],
        ["x.jsonl: line 1 must be JSON"],
    ),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(case: str, place: Path) -> None:
    name, text, arguments, fragments = WRITTEN[case]
    Path(name).write_text(text)
    refused(arguments, fragments, place)


def test_a_schedule_of_no_curve_is_noted_with_the_nearest_name(place: Path) -> None:
    text = "warmup: {steps: 10, lr: 1.0e-3}\ncurves: {constnt: [{until: 2400}]}\n"
    Path("curves/schedules.yaml").write_text(text)
    result = CliRunner().invoke(main, ["replay", "stopping", "curves", "--rule", "median", "--json"])
    assert result.exit_code == 0, result.output
    assert "no curve 'constnt' (did you mean 'constant'?)" in json.loads(result.stdout)["notes"][0]


def test_schedules_may_hold_the_environment(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAST_STEP", "2400")
    text = "warmup: {steps: 10, lr: 1.0e-3}\ncurves: {constant: [{until: '${oc.env:LAST_STEP}'}]}\n"
    Path("curves/schedules.yaml").write_text(text)
    refused(CURVES, ["curves.constant[0].until: must be a whole number", "2400"], place)


def test_a_figure_makes_its_folder(place: Path) -> None:
    done = CliRunner().invoke(main, [*LAWS, TABLE, "--train", "tokens<8e9", "--figure", "new/x.png"])
    assert done.exit_code == 0, done.output
    assert Path("new/x.png").stat().st_size > 0


def corpus(**changed: Any) -> dict[str, Any]:
    """Make a corpus whose manifest says these things of itself, and is signed as its own; return the manifest."""
    prepare([Path("text.txt")], Path("corpus"))
    manifest = json.loads(Path("corpus/manifest.json").read_text())
    del manifest["fingerprint"]
    return sign(manifest | changed)


def sign(manifest: dict[str, Any]) -> dict[str, Any]:
    signed = manifest | {"fingerprint": fingerprint_of(json.dumps(manifest, sort_keys=True).encode())}
    Path("corpus/manifest.json").write_text(json.dumps(signed))
    return manifest


def one_split() -> None:
    manifest = corpus()
    del manifest["splits"]["held_out"]
    sign(manifest)


def tokens_of(kind: str, *, largest: int = 255, signed: bool = True) -> None:
    """Write the training shard anew, of this type and up to this token."""
    manifest = corpus(vocab_size=256)
    (shard,) = manifest["splits"]["train"]["shards"]
    array = pa.array(np.resize(np.arange(largest + 1), shard["tokens"]).astype(kind))
    path = Path("corpus", shard["file"])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema([(COLUMN, array.type)])) as writer:
        writer.write_batch(pa.record_batch([array], names=[COLUMN]))
    if signed:
        shard["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        sign(manifest)


CORPORA: dict[str, tuple[Callable[[], object], Sequence[str]]] = {
    "a deep manifest": (lambda: (corpus(), Path("corpus/manifest.json").write_text("[" * 10**5)), ["no manifest"]),
    "no held-out split": (one_split, ["splits must be train and held_out, got train"]),
    "a vocabulary of text": (lambda: corpus(vocab_size="x"), ["vocab_size must be from 1", "got 'x'"]),
    "a vocabulary of null": (lambda: corpus(vocab_size=None), ["vocab_size must be from 1", "got None"]),
    "no vocabulary": (lambda: corpus(vocab_size=0), ["vocab_size must be from 1", "got 0"]),
    "a negative vocabulary": (lambda: corpus(vocab_size=-5), ["vocab_size must be from 1", "got -5"]),
    "a unit of null": (lambda: corpus(unit=None), ["unit must be a text, got None"]),
    "tokens of fractions": (lambda: tokens_of("float32"), ["train-00000.arrow", "must be uint8", "got float32"]),
    "tokens with a sign": (lambda: tokens_of("int64"), ["train-00000.arrow", "must be uint8", "got int64"]),
    "tokens above the vocabulary": (lambda: tokens_of("uint16", largest=400), ["below the vocabulary size 256", "400"]),
    "other tokens": (lambda: tokens_of("uint8", largest=9, signed=False), ["train-00000.arrow was changed", "SHA-256"]),
}


@pytest.mark.parametrize("case", CORPORA)
def test_an_odd_corpus_is_refused_in_one_line(case: str, place: Path) -> None:
    make, fragments = CORPORA[case]
    make()
    data = "workload={name: gpt, validation_tokens: 64, data: {name: tokens, path: corpus}}"
    refused(["run", "sweep.yaml", data], ["data.path", *fragments], place)


STORES: dict[str, tuple[str, Sequence[str]]] = {
    "a port of letters": ("http://127.0.0.1:abc", ["127.0.0.1:abc is no URI", "'abc'"]),
    "an open bracket": ("http://[::1", ["is no URI", "IPv6"]),
    "an unknown scheme": ("foo://x/y", ["no kind of store 'foo'"]),
    "nearly a scheme": ("postgres://ada:secret@h/d", ["did you mean 'postgresql'?"]),
    "plain files": ("file:///tmp/mlruns", ["no runs in plain files"]),
    "a path": ("mlruns", ["no runs in plain files"]),
    "memory": ("sqlite:///:memory:", ["sqlite:///<path>/mlflow.db"]),
    "no file": ("sqlite://", ["sqlite:///<path>/mlflow.db"]),
    "a file to read only": ("sqlite:///x.db?mode=ro", ["that can be written"]),
    "no host": ("http://", ["http://host:port"]),
}


@pytest.mark.parametrize("command", [["ui"], ["run", "sweep.yaml"]])
@pytest.mark.parametrize("case", STORES)
def test_a_store_that_keeps_no_runs_is_refused(
    case: str, command: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, fragments = STORES[case]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1
    assert "secret" not in result.stderr
    for fragment in fragments:
        assert fragment in result.stderr
    assert not Path("home/mlflow.db").exists()


@pytest.mark.parametrize("uri", ["databricks", "databricks://me", "mysql+pymysql://h/d", "sqlite:////tmp/x.db"])
def test_what_mlflow_takes_is_taken(uri: str) -> None:
    client.check_form(uri)


def test_the_ui_of_a_dead_store_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ada:secret@127.0.0.1:9/d")
    refused(["ui"], ["postgresql://***@127.0.0.1:9/d cannot be reached"], place)


def test_the_ui_of_no_host_names_the_host(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
    Path("mlflow.db").touch()
    result = CliRunner().invoke(main, ["ui", "--host", "no such host"])
    assert result.exit_code == 2
    assert "--host: must be a name or address of this machine, got 'no such host'" in result.stderr
