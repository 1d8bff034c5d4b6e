"""Kills the driver of a sweep with SIGKILL, again and again, and checks that nothing is lost and nothing done twice.

Each round has a fresh store: its driver is killed once in every phase and then at random times, the same command is run
again after each kill, and at last to its end. Checked then, against an uninterrupted run of the same sweep:

- `law.json` is equal to the byte;
- one MLflow run a trial, none left RUNNING, no point twice;
- of the tokens trained, at most one checkpoint interval a running row and kill was trained again (the append-only
  work log of each trial; here a checkpoint is written at every report, so one line of that log is one interval).

Rounds are appended to a file, so the command goes on where it ended. Prints the histogram of the phases.

    python benchmarks/kill.py --kills 100 --results kill.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SWEEP = HERE / "kill.yaml"
DRIVER = HERE / "kill_driver.py"
PHASES = ("creating", "before checkpoint", "after checkpoint", "flush", "growth", "fit", "report", "random")
LIMIT_SECONDS = 600


class Round:
    """One store, killed several times, then brought to its end and checked."""

    def __init__(self, home: Path, rng: random.Random) -> None:
        self.home = home
        self.rng = rng
        self.killed: Counter[str] = Counter()
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")},
            "POWERSWEEP_HOME": str(home),
            "HOME": str(home),
            "OMP_NUM_THREADS": "1",
        }

    def kill_in(self, phase: str) -> None:
        """Run the sweep with a driver that dies in this phase; not counted if it ended before."""
        nth = {"growth": self.rng.randint(1, 3), "fit": self.rng.randint(1, 2), "report": self.rng.randint(1, 2)}.get(
            phase, self.rng.randint(1, 12)
        )
        command = [sys.executable, str(DRIVER), phase, str(nth), str(SWEEP)]
        with (self.home / "log.txt").open("a") as log:
            log.write(f"\n== {phase}, call {nth}\n")
            log.flush()
            process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, cwd=HERE)
            seconds = self.rng.uniform(2, 20) if phase == "random" else LIMIT_SECONDS
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.returncode == -9:
            self.killed[phase] += 1
        elif process.returncode != 0:
            raise RuntimeError(f"{phase}, call {nth}: exit code {process.returncode} and not killed")

    def finish(self) -> None:
        """Run the same command to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", "run", str(SWEEP)],
            env=self.environment,
            capture_output=True,
            text=True,
            cwd=HERE,
            timeout=LIMIT_SECONDS,
        )
        with (self.home / "log.txt").open("a") as log:
            log.write(f"\n== to the end: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        if done.returncode != 0:
            raise RuntimeError(f"exit code {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")

    def law(self) -> bytes:
        """Return the bytes of the law."""
        (path,) = (self.home / "sweeps").glob("*/law.json")
        return path.read_bytes()

    def faults(self, reference: bytes) -> list[str]:
        """Return what is wrong; [] if nothing is."""
        found = self._tracked_faults() + self._redone_faults()
        if self.law() != reference:
            found.append("law.json differs from the uninterrupted one")
        return found

    def _tracked_faults(self) -> list[str]:
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.home}/mlflow.db")
        experiment = client.get_experiment_by_name("kill")
        runs: list[Any] = []
        token = None
        while True:
            page = client.search_runs([experiment.experiment_id], max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                break
        found = [f"run {run.info.run_name} is {run.info.status}" for run in runs if run.info.status != "FINISHED"]
        keys = Counter(run.data.tags.get("trial_key") for run in runs)
        found += [f"{count} runs for trial {key}" for key, count in keys.items() if key is not None and count > 1]
        trials = {path.name for path in (self.home / "sweeps/kill/trials").iterdir()}
        if trials != {key for key in keys if key is not None}:
            found.append(f"{len(trials)} trials in the store, {len(keys)} in MLflow")
        if keys[None] != 1:
            found.append(f"{keys[None]} parent runs")
        for run in runs:
            for name in run.data.metrics:
                steps = [metric.step for metric in client.get_metric_history(run.info.run_id, name)]
                if len(set(steps)) != len(steps):
                    found.append(f"{run.info.run_name}: {name} holds a step twice")
        return found

    def _redone_faults(self) -> list[str]:
        """Return the restarts that trained more than one interval again."""
        from orchestrator.store import TrialStore

        found = []
        self.redone = 0
        for folder in sorted((self.home / "sweeps/kill/trials").iterdir()):
            lines = TrialStore(folder, fence=0).read_work()
            longest = max((last - first for first, last in lines), default=0)
            reached = 0
            for first, last in lines:
                again = max(0, reached - first)
                self.redone += again
                if again > longest:
                    found.append(f"{folder.name[:12]}: {again} tokens again, an interval is {longest}")
                reached = max(reached, last)
        return found


def play(kills: Sequence[str], seed: int, reference: bytes | None) -> dict[str, Any]:
    """Play one round and return its record."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="powersweep-kill-") as folder:
        game = Round(Path(folder), random.Random(seed))
        try:
            for phase in kills:
                game.kill_in(phase)
            game.finish()
            law = game.law()
            faults = game.faults(reference if reference is not None else law)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            law, faults = b"", [str(error)]
        if faults:
            print((Path(folder) / "log.txt").read_text()[-4000:])
        return {
            "seed": seed,
            "killed": dict(game.killed),
            "faults": faults,
            "tokens_redone": getattr(game, "redone", None),
            "seconds": round(time.monotonic() - started, 1),
            "law": law.decode(),
        }


def main() -> int:
    """Play rounds until enough kills are counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--results", type=Path, default=None, help="rounds so far are read from here and added to it")
    options = parser.parse_args()
    rounds: list[dict[str, Any]] = []
    if options.results is not None and options.results.exists():
        rounds = [json.loads(line) for line in options.results.read_text().splitlines()]
    if not rounds:
        rounds.append(play([], 0, None))
        _keep(options.results, rounds[-1])
    reference = rounds[0]["law"].encode()
    while (left := options.kills - sum(sum(r["killed"].values()) for r in rounds)) > 0:
        seed = len(rounds)
        phases = PHASES if left >= len(PHASES) else random.Random(options.kills).sample(PHASES[:-1], left)
        rounds.append(play(phases, seed, reference))
        _keep(options.results, rounds[-1])
        print(
            f"round {seed}: {rounds[-1]['killed']}, {rounds[-1]['seconds']} s, faults: {rounds[-1]['faults']}",
            flush=True,
        )
    histogram: Counter[str] = Counter()
    for one in rounds:
        histogram.update(one["killed"])
    for phase in PHASES:
        print(f"{phase:>20} {histogram[phase]:4d} {'#' * histogram[phase]}")
    faults = [fault for one in rounds for fault in one["faults"]]
    print(json.dumps({"kills": sum(histogram.values()), "histogram": histogram, "faults": faults}))
    return 1 if faults else 0


def _keep(path: Path | None, record: dict[str, Any]) -> None:
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    sys.exit(main())
