"""Wrong input ends with exit code 2 and one clear line, before Ray starts, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli import main

GOOD = """
name: tiny
workload: {name: quadratic}
optimizer: {name: sgd}
schedule: {name: constant}
axes:
  lr: [0.1, 0.2, 0.4]
  batch_tokens: [8, 16]
  tokens: [128, 256]
"""
GPT = ["workload.name=gpt", "axes.batch_tokens=[64,128]", "axes.tokens=[1024,2048]"]
IMAGE = ["workload.name=image", "axes.tokens=[1024,2048]"]
WSD = "schedule.name=wsd"

# (overrides of GOOD, what the line must hold)
OVERRIDDEN: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    # unknown keys, at every level
    "unknown section": (["optimzer.name=sgd"], ["optimzer", "did you mean 'optimizer'?"]),
    "unknown section, far from all": (["zzz=1"], ["zzz: no section", "It has: axes,"]),
    "unknown workload field": (["workload.dimension=3"], ["workload.dimension", "did you mean 'dimensions'?"]),
    "unknown optimizer field": (["optimizer.momentun=0.9"], ["optimizer.momentun", "did you mean 'momentum'?"]),
    "unknown schedule field": ([WSD, "schedule.coldown=linear"], ["schedule.coldown", "did you mean 'cooldown'?"]),
    "unknown axis": (["axes.batch_token=[8]"], ["axes.batch_token", "did you mean 'batch_tokens'?"]),
    "unknown dotted axis": (["axes.workload.dimension=[8]"], ["workload.dimension", "did you mean 'dimensions'?"]),
    "unknown range field": (["axes.lr={lgo: [0.1, 1], points: 3}"], ["axes.lr.lgo", "did you mean 'log'?"]),
    "unknown seed field": (["axes.seed={value: [0]}"], ["axes.seed.value", "did you mean 'values'?"]),
    "unknown search field": (["search.grows=1"], ["search.grows", "did you mean 'grow'?"]),
    "unknown law field": (["law.variable=[tokens]"], ["law.variable", "did you mean 'variables'?"]),
    "unknown reach": (["law.reach.token=4"], ["law.reach.token", "did you mean 'tokens'?"]),
    "unknown validate field": (["validate={tokens: 512, batch: 8}"], ["validate.batch", "batch_tokens"]),
    "unknown budget field": (["budget.trial=9"], ["budget.trial", "did you mean 'trials'?"]),
    "unknown resource": (["resources.gpu=1"], ["resources.gpu", "did you mean 'gpus'?"]),
    "unknown tracking field": (["tracking.url=x"], ["tracking.url", "did you mean 'uri'?"]),
    "unknown reports field": (["reports.per_octaves=1"], ["reports.per_octaves", "did you mean 'per_octave'?"]),
    "unknown stopper field": (["stopping=[{name: diverged, over: 2}]"], ["stopping[0].over", "above"]),
    "unknown corpus field": ([*GPT, "workload.data={name: sotu, path: x}"], ["workload.data.path"]),
    "the sweep's name is no field of the optimizer": (["optimizer.lr=0.1"], ["optimizer.lr", "It has: clip_norm"]),
    # unknown names
    "unknown workload": (["workload.name=quadratc"], ["workload.name", "'quadratc'", "did you mean 'quadratic'?"]),
    "unknown optimizer": (["optimizer.name=adam"], ["optimizer.name", "did you mean 'adamw'?"]),
    "unknown schedule": (["schedule.name=cosin"], ["schedule.name", "did you mean 'cosine'?"]),
    "unknown search": (["search.name=tpp"], ["search.name", "did you mean 'tpe'?"]),
    "unknown law to start from": (
        ["search={name: law, from_law: steplaw}"],
        ["search.from_law", "did you mean 'step-law'?"],
    ),
    "a law to start from that needs more": (
        ["search={name: law, from_law: bjorck}"],
        ["search.from_law", "It has: deepseek, openai, porian, step-law"],
    ),
    "a law to start a grid from": (
        ["search={name: grid, from_law: step-law}"],
        ["search.from_law", "no meaning for grid"],
    ),
    "unknown stopper": (["stopping=[{name: diverge}]"], ["stopping[0].name", "did you mean 'diverged'?"]),
    "unknown corpus": ([*GPT, "workload.data.name=sotus"], ["workload.data.name", "did you mean 'sotu'?"]),
    "unknown images": ([*IMAGE, "workload.data.name=mnist"], ["workload.data.name", "did you mean 'mnist5k'?"]),
    "unknown activation": ([*GPT, "workload.activation=gelo"], ["workload.activation", "did you mean 'gelu'?"]),
    "unknown cooldown": ([WSD, "schedule.cooldown=lineer"], ["schedule.cooldown", "did you mean 'linear'?"]),
    "unknown decay": (["optimizer={name: adamw, decay: couple}"], ["optimizer.decay", "did you mean 'coupled'?"]),
    "unknown precision": (["precision=float16"], ["precision", "'float16'", "bfloat16"]),
    "unknown law variable": (["law.variables=[tokns]"], ["law.variables", "did you mean 'tokens'?"]),
    "unknown estimator": (["law.estimator=quadratics"], ["law.estimator", "did you mean 'quadratic'?"]),
    "unknown convention": (["law.convention=batch-free"], ["law.convention", "did you mean 'batch free'?"]),
    "unknown profile axis": (
        ["axes.dimensions=[8,16]", "law.profile_over=[dimension]"],
        ["law.profile_over", "did you mean 'workload.dimensions'?"],
    ),
    "a profile without further axes": (["law.profile_over=[width]"], ["law.profile_over", "no further axes"]),
    # wrong types
    "text for an integer": (["workload.dimensions=many"], ["workload.dimensions", "an integer", "'many'"]),
    "a fraction for an integer": (["workload.dimensions=3.5"], ["workload.dimensions", "an integer", "3.5"]),
    "true for an integer": (["workload.dimensions=true"], ["workload.dimensions", "an integer", "true"]),
    "true for a number": (["optimizer.momentum=true"], ["optimizer.momentum", "a number", "true"]),
    "a number for true or false": (["optimizer.nesterov=1"], ["optimizer.nesterov", "true or false", "1"]),
    "null for a number": (["workload.noise=null"], ["workload.noise", "a number", "null"]),
    "a list for a mapping": (["workload=[gpt]"], ["workload", "a mapping with a name", '["gpt"]']),
    "a text for a mapping": (["schedule=constant"], ["schedule", "a mapping with a name", "'constant'"]),
    "no name": (["optimizer=null"], ["optimizer: is required"]),
    "a section without a name": (["optimizer={momentum: 0.9}", "optimizer.name=null"], ["optimizer.name"]),
    "a pair of one": (["optimizer={name: adamw, betas: [0.9]}"], ["optimizer.betas", "a list of 2", "[0.9]"]),
    "text in a pair": (["optimizer={name: adamw, betas: [0.9, a]}"], ["optimizer.betas[1]", "a number", "'a'"]),
    "stopping as a mapping": (["stopping={name: diverged}"], ["stopping", "a list"]),
    "a number for a section": (["budget=300"], ["budget", "a mapping", "300"]),
    "axes as a list": (["axes=[1]"], ["axes", "a mapping"]),
    "text among learning rates": (["axes.lr=[0.1,fast]"], ["axes.lr[1]", "a number", "'fast'"]),
    "a fractional batch": (["axes.batch_tokens=[8.5]"], ["axes.batch_tokens[0]", "an integer", "8.5"]),
    "a lone number for an axis": (["axes.batch_tokens=8"], ["axes.batch_tokens", "write [8]"]),
    "a number for a name": (["name=3"], ["name", "3"]),
    "law variables as text": (["law.variables=tokens"], ["law.variables", "a list", "'tokens'"]),
    # missing
    "no learning rates": (["axes.lr=null"], ["axes.lr: is required"]),
    "no batches": (["axes.batch_tokens=null"], ["axes.batch_tokens: is required"]),
    "neither tokens nor steps": (["axes.tokens=null"], ["axes.tokens", "either tokens or steps"]),
    "tokens and steps": (["axes.steps=[16]"], ["axes.tokens", "not both"]),
    "a required field": (["schedule.name=power"], ["schedule.n0_tokens: is required"]),
    # ranges and values
    "an empty axis": (["axes.lr=[]"], ["axes.lr", "at least one value"]),
    "an inverted range": (["axes.lr={log: [1, 0.1], points: 3}"], ["axes.lr.log", "from low to high", "[1, 0.1]"]),
    "a range of one value": (["axes.lr={log: [1, 1], points: 3}"], ["axes.lr.log", "from low to high"]),
    "a range from zero": (["axes.lr={log: [0, 1], points: 3}"], ["axes.lr.log", "above 0", "[0, 1]"]),
    "a range of three": (["axes.lr={log: [0.1, 0.2, 1], points: 3}"], ["axes.lr.log", "a list of 2"]),
    "a range of both kinds": (["axes.lr={log: [0.1, 1], linear: [0.1, 1], points: 3}"], ["axes.lr", "either log or"]),
    "a range without points": (["axes.lr={log: [0.1, 1]}"], ["axes.lr.points: is required"]),
    "a range of one point": (["axes.lr={log: [0.1, 1], points: 1}"], ["axes.lr.points", "between 2 and", "got 1"]),
    "a million points": (["axes.lr={log: [0.1, 1], points: 1000000}"], ["axes.lr.points", "between 2 and"]),
    "a zero learning rate": (["axes.lr=[0,0.1]"], ["axes.lr[0]", "above 0", "got 0"]),
    "a negative learning rate": (["axes.lr=[-0.1,0.1]"], ["axes.lr[0]", "above 0", "-0.1"]),
    "nan": (["axes.lr=[.nan,0.1]"], ["axes.lr[0]", "finite", "NaN"]),
    "infinity": (["workload.noise=.inf"], ["workload.noise", "finite", "Infinity"]),
    "the same learning rate twice": (["axes.lr=[0.1,0.1]"], ["axes.lr", "0.1 is there twice"]),
    "one learning rate": (["axes.lr=[0.1]"], ["axes.lr", "at least 2 values"]),
    "a zero batch": (["axes.batch_tokens=[0]"], ["axes.batch_tokens[0]", "above 0"]),
    "negative tokens": (["axes.tokens=[-128]"], ["axes.tokens[0]", "above 0", "-128"]),
    "a negative seed": (["axes.seed=[-1]"], ["axes.seed", "-1"]),
    "the same seed twice": (["axes.seed=[1,1]"], ["axes.seed", "1 is there twice"]),
    "zero seed tokens": (["axes.seed={values: [0], up_to_tokens: 0}"], ["axes.seed.up_to_tokens", "above 0"]),
    "zero dimensions": (["workload.dimensions=0"], ["workload.dimensions", "at least 1", "0"]),
    "a bad value of a further axis": (["axes.dimensions=[8,0]"], ["axes.workload.dimensions", "at least 1"]),
    "momentum of one": (["optimizer.momentum=1"], ["optimizer.momentum", "1"]),
    "nesterov without momentum": (["optimizer.nesterov=true"], ["optimizer.nesterov", "momentum"]),
    "an ambiguous width": ([*GPT, "workload.width=65"], ["workload.width", "multiple", "65"]),
    "negative growth": (["search.grow=-1"], ["search.grow", "at least 0", "-1"]),
    "a wave above the trials": (
        ["search={name: tpe, trials: 3, wave: 4}", "axes.lr={log: [0.1, 1]}"],
        ["search.wave", "at most search.trials (3)", "4"],
    ),
    "growth of a search that is no grid": (["search={name: tpe, grow: 1}"], ["search.grow", "no meaning for tpe"]),
    "a search over a list": (["search.name=gp"], ["axes.lr", "gp searches a range"]),
    "confidence of one": (["law.confidence=1"], ["law.confidence", "between 0 and 1", "1"]),
    "a reach below one": (["law.reach.tokens=0.5"], ["law.reach.tokens", "at least 1", "0.5"]),
    "zero trials": (["budget.trials=0"], ["budget.trials", "above 0", "0"]),
    "negative seconds": (["budget.seconds=-1"], ["budget.seconds", "above 0", "-1"]),
    "zero cpus": (["resources.cpus=0"], ["resources.cpus", "above 0", "0"]),
    "one and a half gpus": (["resources.gpus=1.5"], ["resources.gpus", "1.5"]),
    "a CUDA graph without a gpu": (["resources.cuda_graph=true"], ["resources.cuda_graph", "needs a GPU"]),
    "negative retries": (["resources.retries=-1"], ["resources.retries", "at least 0"]),
    "a first report after the end": (["reports.first_fraction=2"], ["reports.first_fraction", "at most 1", "2"]),
    "a threshold below one": (["stopping=[{name: diverged, above: 0.5}]"], ["stopping[0].above", "0.5"]),
    "a stopper twice": (["stopping=[{name: diverged},{name: diverged}]"], ["stopping[1]", "twice"]),
    "a factor of one": (["validate={tokens: 512, batch_tokens: 8, factor: 1}"], ["validate.factor", "above 1"]),
    "no validation seeds": (["validate={tokens: 512, batch_tokens: 8, seeds: 0}"], ["validate.seeds", "at least 1"]),
    "a name with a slash": (["name=a/b"], ["name", "letters, digits", "'a/b'"]),
    "an experiment with a space": (["tracking.experiment=a b"], ["tracking.experiment", "letters, digits", "'a b'"]),
    # absurd numbers
    "tokens beyond any run": (["axes.tokens=[1e300,2e300]"], ["axes.tokens", "at most 1e+15", "got 1"]),
    "steps beyond any run": (["axes.tokens=null", "axes.steps=[1e15,2e15]"], ["axes.steps", "at most 1e+15"]),
    "a target beyond any run": (["validate={tokens: 1e30, batch_tokens: 8}"], ["validate.tokens", "at most 1e+15"]),
    "a factor of 1e300": (["validate={tokens: 512, batch_tokens: 8, factor: 1e300}"], ["validate.factor", "1,000"]),
    "1e30 validation seeds": (["validate={tokens: 512, batch_tokens: 8, seeds: 1e30}"], ["validate.seeds", "1,000"]),
    "too many seeds": ([f"axes.seed={list(range(1500))}"], ["axes.seed", "at most 1,000 values, got 1,500"]),
    "too many trials": (
        [f"axes.seed={list(range(500))}", "axes.lr={log: [0.1, 1], points: 1000}"],
        ["axes: must make at most 100,000 trials", "got 2,000,000"],
    ),
    "too many trials of a search": (
        ["search={name: gp, trials: 1e9}", "axes.lr={log: [0.1, 1]}"],
        ["search.trials", "at most 100,000 trials", "got 4,000,000,000"],
    ),
    "too many trials for a law": (["search={name: law, trials: 1e9}"], ["search.trials", "at most 100,000 trials"]),
    "a range that collapses": (
        ["axes.lr={log: [1, 1.0000000000000002], points: 50}"],
        ["axes.lr", "1.0 is there twice"],
    ),
    "a further range that collapses": (["axes.noise={linear: [1, 1.0000001], points: 9}"], ["axes.workload.noise"]),
    "dimensions beyond memory": (["workload.dimensions=1e12"], ["workload.dimensions", "at most 1,000,000"]),
    "an image network beyond memory": ([*IMAGE, "workload.width=1e9"], ["workload.width", "at most 65,536"]),
    "a language model beyond memory": ([*GPT, "workload.depth=1e9"], ["workload.depth", "at most 1,000"]),
    "a billionth of a cpu": (["resources.cpus=1e-9"], ["resources.cpus", "at least 0.01", "1e-09"]),
    "a billionth of a gpu": (["resources.gpus=1e-9"], ["resources.gpus", "at least 0.01", "1e-09"]),
    # names and places
    "optimizers as an axis": (["axes.optimizer.name=[sgd,adamw]"], ["axes.optimizer.name", "one sweep of each"]),
    "workloads as an axis": (["axes.workload.name=[quadratic,gpt]"], ["axes.workload.name", "one sweep of each"]),
    "bytes that are no text": (["name=\udcff"], ["override 'name=\\udcff'", "UTF-8"]),
    "nested without end": ([f"axes.lr={'[' * 300}{']' * 300}"], ["at most 50 deep"]),
    "a reference that does not end": (["name=${"], ["override 'name=${'", "not YAML", "at input '${'"]),
    "a list of great length": ([f"axes.lr={list(range(1, 9999))},"], ["override 'axes.lr=[1, 2", " ... ", "not YAML"]),
    "a corpus of a long name": ([*GPT, f"workload.data={{name: tokens, path: {'a' * 300}}}"], ["workload", "aaaa"]),
    "a script of a long name": (
        [f"workload={{name: script, parameters: 1, path: {'a' * 300}}}"],
        ["workload.path", "no such file", "aaaa"],
    ),
    "a script's module that fails": (
        ["workload={name: script, parameters: 1, target: 'bad_import.x:f'}"],
        ["workload.target", "ZeroDivisionError"],
    ),
    # clusters
    "an address of words": (["resources.address='nonsense address'"], ["resources.address", "host:port", "nonsense"]),
    "an address without a port": (["resources.address=localhost"], ["resources.address", "host:port", "'localhost'"]),
    "an address with a bad port": (["resources.address='h:99999'"], ["resources.address", "host:port", "'h:99999'"]),
    "an address nobody answers at": (["resources.address='127.0.0.1:9'"], ["resources.address", "127.0.0.1:9"]),
    "more cpus than there are": (["resources.cpus=1000"], ["resources.cpus: a row takes 1000, this machine has"]),
    # parts that do not go together
    "warm-up longer than the run": (["schedule.warmup_tokens=1000"], ["schedule.warmup_tokens", "128", "1000"]),
    "warm-up into the cooldown": (
        [WSD, "schedule.warmup_tokens=110", "schedule.cooldown_fraction=0.5"],
        ["schedule.", "warmup_tokens", "110"],
    ),
    "a floor above the learning rates": (["schedule={name: cosine, end_lr: 0.1}"], ["schedule.end_lr", "below"]),
    "an exponential cooldown to nothing": ([WSD, "schedule.cooldown=exponential"], ["schedule.end_lr", "above 0"]),
    "a batch larger than the run": (["axes.batch_tokens=[8,512]"], ["axes.batch_tokens", "at most", "128", "512"]),
    "a held-out batch larger than its run": (
        ["validate={tokens: 64, batch_tokens: 128}"],
        ["validate.batch_tokens", "at most", "64", "128"],
    ),
    "a batch of half an example": (["workload.name=gpt"], ["axes.batch_tokens", "a multiple of the 64", "8"]),
    "a micro-batch that does not divide": (["resources.micro_batch_tokens=5"], ["micro_batch_tokens", "divide", "5"]),
    "a variable that does not vary": (
        ["axes.batch_tokens=[8]", "law.variables=[batch_tokens]"],
        ["law.variables", "batch_tokens must take at least 2 values"],
    ),
    "variables that vary together": (
        ["axes.tokens=null", "axes.steps=[16]"],
        ["law.variables", "vary only together"],
    ),
    "a variable twice": (["law.variables=[tokens,tokens]"], ["law.variables", "once"]),
    "a batch free law of the batch": (
        ["law.convention=batch free", "law.variables=[batch_tokens,tokens]"],
        ["law.variables", "batch free"],
    ),
    "a budget below the plan": (["budget.trials=3"], ["budget.trials", "at least", "got 3"]),
    "a token budget below the plan": (["budget.tokens=1e2"], ["budget.tokens", "at least", "100"]),
    "a field of both": (["optimizer.name=adamw", "axes.eps=[1e-8]", "axes.optimizer.eps=[1e-8]"], ["optimizer.eps"]),
    "too many variants": (
        ["axes.dimensions={linear: [1, 2000], points: 1000}", "axes.noise=[1,2]"],
        ["2,000 variants"],
    ),
    # data
    "a missing corpus": ([*GPT, "workload.data={name: tokens, path: nowhere}"], ["workload.data.path", "nowhere"]),
    "a corpus without a path": ([*GPT, "workload.data={name: tokens}"], ["workload.data.path: is required"]),
    "an empty corpus": ([*GPT, "workload.data={name: tokens, path: empty}"], ["workload.data.path", "empty"]),
    "an unreadable corpus": ([*GPT, "workload.data={name: tokens, path: broken}"], ["workload.data.path", "broken"]),
    "a file for a corpus": ([*GPT, "workload.data={name: tokens, path: file.txt}"], ["workload.data.path", "file.txt"]),
    "missing images": ([*IMAGE, "workload.data={name: idx, folder: nowhere}"], ["workload.data.folder", "nowhere"]),
    "no images": ([*IMAGE, "workload.data={name: idx, folder: empty}"], ["workload.data.folder", "empty"]),
    # tracking
    "a store of files": (["tracking.uri=file:///tmp/mlruns"], ["tracking.uri", "no file store"]),
    "a path for a store": (["tracking.uri=mlruns"], ["tracking.uri", "sqlite:///"]),
    "an unknown kind of store": (["tracking.uri=postgres://h/d"], ["tracking.uri", "did you mean 'postgresql'?"]),
    "a server without a name": (["tracking.uri='http://'"], ["tracking.uri", "nothing comes after"]),
    "a secret that is not set": (["tracking.uri=${oc.env:NO_SUCH_SECRET}"], ["tracking.uri", "NO_SUCH_SECRET"]),
    # references and overrides
    "a reference to nothing": (["workload.dimensions=${workload.width}"], ["workload.dimensions", "width"]),
    "an override without a value": (["workload.width"], ["override 'workload.width'", "section.field=value"]),
    "an override without a name": (["=3"], ["override '=3'", "section.field=value"]),
    "an override with an empty part": (["workload..width=3"], ["override 'workload..width=3'"]),
    "an override that is not YAML": (["axes.lr=[0.1,"], ["override 'axes.lr=[0.1,'", "not YAML"]),
    # classes of the user's
    "no such module": (["workload.name=no_such_module:Mine"], ["workload.name", "no module 'no_such_module'"]),
    "no path at all": (["workload.name='my mod:Mine'"], ["workload.name", "my_pkg.my_mod:MyClass"]),
    "a module that fails": (["workload.name=bad_import:Mine"], ["workload.name", "ZeroDivisionError"]),
    "a module that lacks a module": (["workload.name=bad_needs:Mine"], ["workload.name", "no_such_dependency"]),
    "no such class": (["workload.name=bad_classes:Min"], ["workload.name", "did you mean 'Mine'?"]),
    "a class that is no dataclass": (["workload.name=bad_classes:Plain"], ["workload.name", "frozen dataclass"]),
    "a dataclass that is not frozen": (["workload.name=bad_classes:Thawed"], ["workload.name", "frozen=True"]),
    "a class that lacks methods": (
        ["workload.name=bad_classes:Mine"],
        ["workload.name", "does not fit Workload", "it lacks", "build_input_queue", "eval_model"],
    ),
    "a class with a value for a method": (["workload.name=bad_classes:Odd"], ["not methods: facts"]),
    "facts that fail": (["workload.name=bad_classes:Fails"], ["workload: facts() of", "KeyError"]),
    "a module that leaves": (["workload.name=bad_exit:Mine"], ["workload.name", "bad_exit:Mine", "SystemExit: bye"]),
    "facts that leave": (["workload.name=bad_classes:Leaves"], ["workload: facts() of", "SystemExit: bye"]),
    "a constructor that fails": (
        ["workload.name=bad_classes:Raises"],
        ["workload: making bad_classes:Raises failed: KeyError"],
    ),
    "a version of words": (["workload.name=bad_classes:Versioned"], ["workload.name", "version of", "'one'"]),
    "OUTSIDE that is no list": (["workload.name=bad_classes:Outside"], ["workload.name", "OUTSIDE of", "5"]),
    "OUTSIDE of no field": (["workload.name=bad_classes:Misspelt"], ["OUTSIDE of", "did you mean 'noise'?"]),
    "TABLES of no field": (["workload.name=bad_classes:Tables"], ["TABLES of", "no field 'zzz'"]),
    "TABLES that are none": (["workload.name=bad_classes:NoTables"], ["TABLES of", "a mapping", "null"]),
    "a default of bytes": (["workload.name=bad_classes:Bytes"], ["bad_classes:Bytes: field x", "plain JSON"]),
    "a default of NaN": (["workload.name=bad_classes:NaN"], ["bad_classes:NaN: field x", "plain JSON", "NaN"]),
    "examples of no tokens": (
        ["workload={name: 'bad_classes:Told', fact: tokens_per_example, value: 0}"],
        ["workload: tokens_per_example in facts() of bad_classes:Told", "at least 1, got 0"],
    ),
    "examples of half a token": (
        ["workload={name: 'bad_classes:Told', fact: tokens_per_example, value: 2.5}"],
        ["tokens_per_example in facts()", "an integer, got 2.5"],
    ),
    "no parameters told": (
        ["workload={name: 'bad_classes:Told', fact: parameters}"],
        ["workload: parameters in facts()", "an integer, got null"],
    ),
    "parameters below none": (
        ["workload={name: 'bad_classes:Told', fact: non_embedding_parameters, value: -1}"],
        ["non_embedding_parameters in facts()", "at least 0, got -1"],
    ),
    "FLOPs as text": (
        ["workload={name: 'bad_classes:Told', fact: flops_per_token, value: many}"],
        ["flops_per_token in facts()", "a number, got 'many'"],
    ),
    "facts that are none": (["workload.name=bad_classes:Empty"], ["workload: facts() of", "Facts", "NoneType"]),
}

# (file name, its text, what the line must hold)
WRITTEN: dict[str, tuple[str, Sequence[str]]] = {
    "no YAML": ("name: [1, 2\nworkload: 3\n", ["line 2", "not YAML"]),
    "a field twice": ("name: a\nname: b\n", ["line 2", "duplicate key name"]),
    "a tab": ("name: a\n\tworkload: b\n", ["line 2", "not YAML"]),
    "an object of Python's": ("name: !!python/object:os.system x\n", ["line 1", "not YAML"]),
    "a list": ("- name: a\n", ["a mapping of sections, got a list"]),
    "a text": ("quickstart\n", ["a mapping of sections, got text"]),
    "nothing": ("", ["workload: is required"]),
    "a control character": ("name: \x00\n", ["not YAML"]),
    "a number for a field": ("workload: {1: 2}\n", ["names of fields must be text, got 1"]),
    "an include of itself": ("include: sweep.yaml\n", ["include", "includes itself: sweep.yaml -> sweep.yaml"]),
    "an include of nothing": ("include: nothing.yaml\n", ["include: no file", "nothing.yaml"]),
    "an include in a circle": ("include: circle.yaml\n", ["sweep.yaml -> circle.yaml -> sweep.yaml"]),
    "an include of a number": ("include: 3\n", ["include", "a file or a list of files", "3"]),
    "a number alone": ("3\n", ["sweep.yaml: must be a mapping of sections, got '3'"]),
    "nesting without end": (f"axes: {'[' * 300}{']' * 300}\n", ["sweep.yaml", "at most 50 deep"]),
    "a deep nesting": (f"axes: {'[' * 60}{']' * 60}\n", ["sweep.yaml", "at most 50 deep"]),
    "half a character": ('name: "\\ud800"\n', ["sweep.yaml", "line 1", "not YAML"]),
    "an include of a long name": (f"include: {'a' * 300}\n", ["include: no file", "aaaa", "included by sweep.yaml"]),
    "a missing section": (GOOD.replace("schedule: {name: constant}", ""), ["schedule: is required"]),
    "a broken reference": (GOOD.replace("tiny", "${tiny"), ["sweep.yaml: not a sweep"]),
}

USER_CODE = """
import dataclasses
from dataclasses import dataclass
from workloads.base import DataError
from workloads.quadratic import Quadratic

class Plain:
    pass

@dataclass
class Thawed:
    x: int = 1

@dataclass(frozen=True)
class Mine:
    version = 1
    def facts(self): ...

@dataclass(frozen=True)
class Odd(Quadratic):
    facts = None

@dataclass(frozen=True)
class Fails(Quadratic):
    def facts(self):
        return {}["missing"]

@dataclass(frozen=True)
class Empty(Quadratic):
    def facts(self):
        return None

@dataclass(frozen=True)
class Told(Quadratic):
    fact: str = "parameters"
    value: object = None
    def facts(self):
        return dataclasses.replace(Quadratic().facts(), **{self.fact: self.value})

@dataclass(frozen=True)
class Leaves(Quadratic):
    def facts(self):
        raise SystemExit("bye")

@dataclass(frozen=True)
class Raises(Quadratic):
    def __post_init__(self):
        {}["missing"]

@dataclass(frozen=True)
class Versioned(Quadratic):
    version = "one"

@dataclass(frozen=True)
class Outside(Quadratic):
    OUTSIDE = 5

@dataclass(frozen=True)
class Misspelt(Quadratic):
    OUTSIDE = ("noize",)

@dataclass(frozen=True)
class Tables(Quadratic):
    TABLES = {"zzz": {}}

@dataclass(frozen=True)
class NoTables(Quadratic):
    TABLES = None

@dataclass(frozen=True)
class Bytes(Quadratic):
    x: bytes = b"a"

@dataclass(frozen=True)
class NaN(Quadratic):
    x: float = float("nan")

@dataclass(frozen=True)
class Unbuilt(Quadratic):
    def init_model_fn(self, rng):
        raise RuntimeError("no model\\nfor you")

@dataclass(frozen=True)
class Unread(Quadratic):
    def build_input_queue(self, *args, **more):
        raise DataError("noise: its file is gone")
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a good sweep and some bad data, the working folder of the test."""
    (tmp_path / "sweep.yaml").write_text(GOOD)
    (tmp_path / "circle.yaml").write_text("include: sweep.yaml\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "bad_classes.py").write_text(USER_CODE)
    (tmp_path / "bad_import.py").write_text("1 / 0\n")
    (tmp_path / "bad_exit.py").write_text("raise SystemExit('bye')\n")
    (tmp_path / "bad_needs.py").write_text("import no_such_dependency\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "bad_classes", raising=False)
    monkeypatch.setenv("POWERSWEEP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def refused(arguments: Sequence[str], fragments: Sequence[str], home: Path) -> str:
    """Return the one line that a command ends with; exit code 2, nothing written."""
    result = CliRunner().invoke(main, list(arguments))
    lines = result.stderr.splitlines()
    assert result.exit_code == 2, result.output
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("powersweep: ")
    assert len(lines[0]) < 500
    for fragment in fragments:
        assert fragment in lines[0]
    assert result.stdout == ""
    assert not home.exists()
    return lines[0]


@pytest.mark.parametrize("case", OVERRIDDEN)
def test_a_bad_value_is_refused_in_one_line(case: str, place: Path) -> None:
    overrides, fragments = OVERRIDDEN[case]
    refused(["run", "sweep.yaml", *overrides], fragments, place / "home")


@pytest.mark.parametrize("case", WRITTEN)
def test_a_bad_file_is_refused_in_one_line(case: str, place: Path) -> None:
    text, fragments = WRITTEN[case]
    (place / "sweep.yaml").write_text(text)
    refused(["run", "sweep.yaml"], fragments, place / "home")


@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("quadratik", ["sweep: no file or sweep 'quadratik'", "did you mean 'quadratic'?"]),
        ("nowhere.yaml", ["sweep: no file nowhere.yaml"]),
        ("a" * 300, ["sweep: no file or sweep 'aaaa", "It has: "]),
        ("a\udcff.yaml", ["sweep: no file a?.yaml"]),
        ("conf/nowhere", ["sweep: no file conf/nowhere"]),
        ("binary.yaml", ["binary.yaml", "not UTF-8"]),
    ],
)
def test_a_sweep_that_cannot_be_read_is_refused(name: str, fragments: Sequence[str], place: Path) -> None:
    (place / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    refused(["run", name], fragments, place / "home")


@pytest.mark.parametrize("command", ["plan", "status", "stop", "fit", "report", "export", "gc"])
def test_every_command_refuses_a_bad_sweep_alike(command: str, place: Path) -> None:
    refused([command, "sweep.yaml", "workload.name=gtp"], ["workload.name", "did you mean 'gpt'?"], place / "home")


HOMES = ["file.txt", "file.txt/home", "/dev/full", "~nobody99/home", "a" * 300]


@pytest.mark.parametrize("command", ["plan", "status", "stop", "fit", "report", "export", "gc"])
@pytest.mark.parametrize("home", HOMES)
def test_every_command_refuses_a_home_that_is_no_folder(
    home: str, command: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POWERSWEEP_HOME", home)
    refused([command, "sweep.yaml"], [home[:40]], place / "home")
    assert (place / "file.txt").read_text() == "text"


@pytest.mark.parametrize("command", ["plan", "status", "fit", "report", "export", "gc"])
def test_every_command_refuses_a_sweep_whose_trials_are_a_file(command: str, place: Path) -> None:
    (place / "home" / "sweeps" / "tiny").mkdir(parents=True)
    trials = place / "home" / "sweeps" / "tiny" / "trials"
    trials.write_text("text")
    result = CliRunner().invoke(main, [command, "sweep.yaml"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"powersweep: {trials}: cannot be read: Not a directory\n"


@pytest.mark.parametrize(
    ("name", "fragments"),
    [("Unbuilt", ["plan: training bad_classes:Unbuilt", "RuntimeError: no model for you"]), ("Unread", ["is gone"])],
)
def test_a_class_that_cannot_be_timed_is_refused(name: str, fragments: Sequence[str], place: Path) -> None:
    refused(["plan", "sweep.yaml", f"workload.name=bad_classes:{name}"], fragments, place / "home")


def test_auto_without_a_cluster_is_refused_at_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    refused(["run", "sweep.yaml", "resources.address=auto"], ["no Ray cluster answers at 127.0.0.1:9"], place / "home")
    monkeypatch.setenv("RAY_ADDRESS", "nonsense address")
    refused(["run", "sweep.yaml", "resources.address=auto"], ["RAY_ADDRESS", "host:port"], place / "home")


def test_a_training_function_in_the_working_folder_is_found(place: Path) -> None:
    (place / "my_own_training.py").write_text("def train(trial, report, folder): ...\n")
    workload = "workload={name: script, parameters: 1, target: 'my_own_training:train'}"
    result = CliRunner().invoke(main, ["plan", "sweep.yaml", "--no-time", workload])
    assert result.exit_code == 0, result.output
    assert str(place) not in sys.path
    refused(["plan", "sweep.yaml", workload.replace(":train'", ":tran'")], ["It has: train"], place / "home")


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("no model", "RuntimeError: no model"),
        ("no model\nfor you\n", "RuntimeError: no model ... for you"),
        ('no model\n  File "x", line 3 is missing\n', 'RuntimeError: no model ... File "x", line 3 is missing'),
        ("", "RuntimeError"),
    ],
)
def test_a_crash_is_told_by_its_exception_with_the_first_line_and_the_last(message: str, why: str) -> None:
    from orchestrator.rows.tuner import _why

    try:
        raise RuntimeError(message)
    except RuntimeError:
        text = traceback.format_exc()
    assert _why(f"Failure # 1\n{text.replace('no model', 'another')}Failure # 2\n{text}") == why
    assert _why("") == "its process ended unexpectedly"


def test_the_good_sweep_is_good(place: Path) -> None:
    result = CliRunner().invoke(main, ["plan", "sweep.yaml", "--no-time"])
    assert result.exit_code == 0, result.output


def run_for_real(
    place: Path, *arguments: str, code: str = "", home: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Return a finished `powersweep` of its own process."""
    script = f"import sys; sys.argv[0] = 'powersweep'\n{code}\nfrom orchestrator.cli import main; main()"
    environ = {**os.environ, "POWERSWEEP_HOME": str(home or place / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=place, env=environ, capture_output=True, text=True, check=False, timeout=55)


def test_a_bad_sweep_is_refused_before_ray_is_there(place: Path) -> None:
    watch = "import atexit; atexit.register(lambda: print(sorted({'ray', 'mlflow', 'optuna'} & set(sys.modules))))"
    done = run_for_real(place, "run", "sweep.yaml", "workload.dimensions=0", code=watch)
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert done.stderr == "powersweep: workload.dimensions: must be at least 1 and at most 1,000,000, got 0\n"
    assert not (place / "home").exists()


@pytest.mark.slow
@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "postgresql://user:secret@127.0.0.1:9/d"])
def test_a_tracking_server_that_does_not_answer_is_refused(uri: str, place: Path) -> None:
    done = run_for_real(place, "run", "sweep.yaml", f"tracking.uri='{uri}'")
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "127.0.0.1:9" in done.stderr
    assert "secret" not in done.stderr
    assert not (place / "home").exists()


@pytest.mark.slow
@pytest.mark.parametrize("home", ["file.txt/home", "/dev/full", "/proc/powersweep"])
def test_a_store_that_cannot_be_written_is_refused(home: str, place: Path) -> None:
    done = run_for_real(place, "run", "sweep.yaml", home=Path(place, home))
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert home in done.stderr
    assert (place / "file.txt").read_text() == "text"
