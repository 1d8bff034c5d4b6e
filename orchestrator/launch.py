"""One command, one sweep: what is missing is trained, the law fitted, checked, and reported."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from orchestrator.address import check_answers
from orchestrator.build import target_of
from orchestrator.config import Loaded, resolve_text
from orchestrator.config.checks import cautions, lacking
from orchestrator.config.parts import changed_sources
from orchestrator.driver import ERROR_FILE, OUT_OF_TIME, Driver
from orchestrator.progress import Console, Progress, clock, human, interruptible
from orchestrator.report import reached_lines, targets_of, write_findings
from orchestrator.results import Findings, held_out_trials, of_agenda, open_tracker, study, with_checks
from orchestrator.search import chooser_of
from orchestrator.store import SweepStore
from orchestrator.store.index import Index, outcome_of
from orchestrator.store.lease import Lease
from orchestrator.tracking import Tracker, resolve_uri
from orchestrator.tracking.client import check
from sweeps.agenda import Agenda, Outcome, first_trials, is_done
from sweeps.errors import ConfigError, LeaseError, StoreError, SweepError
from sweeps.plan import price
from sweeps.spec import Json, Resources, Sweep, Trial

log = logging.getLogger(__name__)

SHOWN_FAILURES = 5
STOPPED = 130  # exit code: interrupted, or asked to stop


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what is to be said.

    `exit_code`: 0 the sweep is done; 1 trials failed, a law was refused, or the time was used up; 130 interrupted or
    stopped. What has ended is there in all cases.
    """

    exit_code: int
    lines: tuple[str, ...]
    findings: Findings | None = None
    paths: tuple[Path, ...] = field(default_factory=tuple)


def run(
    loaded: Loaded, *, home: Path, environ: Mapping[str, str], console: Console, only_check: Findings | None = None
) -> Ended:
    """Run what is missing of a sweep, then fit, check and report its law.

    With `only_check`, these laws: only their held-out check is run, and no file of the sweep is written.

    Raises:
        ConfigError: the budget is too small for the plan, or this machine for one row.
        StoreError: the store or the tracking server cannot be used.
        LeaseError: another driver runs this sweep.
    """
    sweep = loaded.sweep
    least = first_trials(sweep)
    if sweep.budget.trials is not None and least > sweep.budget.trials:
        raise ConfigError(f"budget.trials: the plan needs at least {least} trials, got {sweep.budget.trials}")
    store = SweepStore(home, sweep.experiment)
    if not store.keys():  # nothing has ended that could be reported without training
        _check_place(sweep.resources)
    store.check_writable()
    uri = None if sweep.tracking.uri is None else resolve_text(sweep.tracking.uri, environ)
    check(resolve_uri(uri, home=home, environ=environ))
    with ExitStack() as stack:
        lease = Lease.acquire(store.folder, holder="powersweep run")
        stack.callback(lease.release)
        tracker = stack.enter_context(closing(open_tracker(loaded, home=home, environ=environ)))
        return _Session(loaded, only_check, store=store, tracker=tracker, fence=lease.fence, console=console).run()


def _check_place(resources: Resources) -> None:
    """Raise ConfigError if this machine cannot hold one row, or the cluster named does not answer."""
    missing = lacking(resources)
    if missing is not None:
        raise ConfigError(missing)
    if resources.address is not None:
        check_answers(resources.address)


class _Session:
    """One driver at work on one sweep, its lease held."""

    def __init__(
        self,
        loaded: Loaded,
        only_check: Findings | None,
        *,
        store: SweepStore,
        tracker: Tracker,
        fence: int,
        console: Console,
    ) -> None:
        self._loaded = loaded
        self._only_check = only_check
        self._sweep = loaded.sweep
        self._store = store
        self._tracker = tracker
        self._fence = fence
        self._console = console
        self._findings = only_check
        self._unwritten: dict[str, str] = {}  # trial key -> why MLflow never takes it
        store.clear_stop()
        self._outcomes = Index.open(store).outcomes()
        self._agenda = self._plan()

    def _plan(self) -> Agenda:
        """Return the agenda, with the held-out check if all else is done; what the store lost is taken from MLflow."""
        chooser = chooser_of(self._sweep, journal=self._store.folder / "optuna.journal")
        while True:
            agenda = Agenda(self._sweep, chooser, self._outcomes, brackets=self._only_check is None)
            while agenda.complete and (more := self._after(agenda)):
                agenda.add(more)
            lost = [trial for trial in agenda.waiting() if trial.key not in self._outcomes]
            records = self._tracker.ended(lost) if lost else []
            for record in records:
                self._take(agenda.trials[record["key"]], record)
            if not records:
                return agenda
            self._console.say(f"{_counted(len(records), 'trial')} taken from MLflow: the store had lost them.")

    def _take(self, trial: Trial, record: dict[str, Json]) -> None:
        """Write the outcome file of a trial as it would be, had the store not lost it."""
        target = target_of(trial.workload, outcome_of(record).curve, cwd=Path.cwd())
        record["target"] = None if target is None else asdict(target)
        self._store.trial(trial.key, fence=self._fence).write_outcome(record)
        self._outcomes[trial.key] = outcome_of(record)

    def run(self) -> Ended:
        """Train, fit, check, report."""
        if not self._agenda.complete:
            _check_place(self._sweep.resources)
        self._tracker.parent(self._sweep.name, sweep_key=self._sweep.key, params=_parent_params(self._sweep))
        try:
            return self._work()
        except LeaseError:
            raise  # another driver has the sweep: the parent run is its own to end
        except BaseException as error:
            with suppress(StoreError):  # the first error counts; the next driver settles what is left open
                self._tracker.flush()
                self._tracker.end_parent("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            raise

    def _work(self) -> Ended:
        started = time.monotonic()
        done_before = sum(is_done(trial, self._outcome(key)) for key, trial in self._agenda.trials.items())
        self._tracker.settle(self._outcomes)  # whatever a driver before this one left undone
        self._flush()
        ran = [
            (trial, self._outcomes[key].trial) for key, trial in self._agenda.trials.items() if key in self._outcomes
        ]
        for warning in [*cautions(self._sweep), *changed_sources(ran)]:
            self._console.say(f"warning: {warning}")
        driver = None
        if not self._agenda.complete:
            self._announce(done_before)
            driver = self._train()
            if not self._agenda.complete:
                return self._stopped(driver)
        return self._report(driver, time.monotonic() - started)

    def _flush(self) -> None:
        """Wait for the tracker; what it never takes is told at the end, and stops nothing."""
        self._unwritten.update(self._tracker.flush())

    def _announce(self, done_before: int) -> None:
        waiting = self._agenda.waiting()
        cost = price(waiting)
        kept = f", {done_before} already done" if done_before else ""
        first = "" if self._sweep.search.name == "grid" else " in the first wave"
        self._console.say(
            f"{self._sweep.name}: {cost.trials} trials to run{first}{kept}; {human(cost.tokens)} tokens, "
            f"{human(cost.flops)} FLOPs. Curves: powersweep ui {self._loaded.name}"
        )

    def _train(self) -> Driver:
        from orchestrator.rows import cluster, run_rows

        progress = Progress(self._console, self._store.folder)
        driver = Driver(
            self._sweep,
            agenda=self._agenda,
            store=self._store,
            tracker=self._tracker,
            fence=self._fence,
            progress=progress,
            after=lambda: self._after(self._agenda),
        )
        try:
            with interruptible(driver.stop, self._console), cluster(self._sweep.resources):
                run_rows(driver)
        finally:
            progress.end()
            driver.end_begun()
        if driver.error is not None:
            raise driver.error if isinstance(driver.error, SweepError) else RuntimeError(str(driver.error))
        driver.check_if_complete()
        return driver

    def _after(self, agenda: Agenda) -> Sequence[Trial]:
        """Return what the held-out checks still ask for; the laws are fitted when all brackets are complete."""
        if self._findings is None:
            self._findings = study(self._sweep, of_agenda(agenda))
        wanted = held_out_trials(self._sweep, self._findings, agenda.outcomes)
        new = [trial for trial in wanted if trial.key not in agenda.trials]
        return new if not new or agenda.holds(new) else []

    def _stopped(self, driver: Driver) -> Ended:
        """End a sweep that is not done; where its time was used up, with the law of the cells that are."""
        self._flush()
        waiting = sum(not is_done(trial, self._outcome(key)) for key, trial in self._agenda.trials.items())
        stopped = f"Stopped ({driver.stopping}): {waiting} trials are not finished, their state is saved."
        findings, paths = None, []
        if driver.stopping is not None and driver.stopping.startswith(OUT_OF_TIME):
            cells = [(c, self._agenda.results(c) if self._agenda.is_complete(c) else []) for c in self._agenda.cells]
            findings = study(self._sweep, cells)
            self._agenda.refused.append(stopped)  # a remark of the report
            paths = self._write(findings)
        self._tracker.end_parent("stopped")
        again = f"powersweep run {self._loaded.name}" if self._only_check is None else "the same command"
        lines = [*self._failed_lines(driver), stopped, f"To go on: {again}"]
        lines += [] if findings is None else findings.lines()
        lines += self._unwritten_lines()
        asked = driver.stopping in ("interrupted", "asked to stop")
        return Ended(STOPPED if asked else 1, tuple(lines), findings, tuple(paths))

    def _write(self, findings: Findings) -> list[Path]:
        if self._only_check is not None:
            return []
        return write_findings(self._loaded, findings, agenda=self._agenda, store=self._store, tracker=self._tracker)

    def _unwritten_lines(self) -> list[str]:
        if not self._unwritten:
            return []
        why = next(iter(self._unwritten.values()))
        return [f"warning: MLflow does not take {_counted(len(self._unwritten), 'trial')} ({why}); the law has them"]

    def _outcome(self, key: str) -> Outcome | None:
        return self._agenda.outcomes.get(key)

    def _failed_lines(self, driver: Driver | None) -> list[str]:
        failed = {} if driver is None else driver.tally.failed
        lines = [f"failed: {self._agenda.trials[key].short_key}: {why}" for key, why in failed.items()]
        if len(lines) > SHOWN_FAILURES:
            lines[SHOWN_FAILURES:] = [f"failed: {len(lines) - SHOWN_FAILURES} more"]
        lines += [f"  {self._store.trials / key / ERROR_FILE}" for key in list(failed)[:1]]
        return lines

    def _report(self, driver: Driver | None, seconds: float) -> Ended:
        self._flush()
        if self._findings is None:
            self._findings = study(self._sweep, of_agenda(self._agenda))
        findings = with_checks(self._sweep, self._findings, self._agenda.outcomes)
        failed = driver is not None and bool(driver.tally.failed)
        paths = self._write(findings)
        self._tracker.end_parent("failed" if failed else "finished")
        lines = []
        if driver is None:
            lines.append(f"Nothing to run: all {len(self._agenda.trials)} trials are done.")
        else:
            tally = driver.tally
            short = {"diverged": tally.diverged, "stopped": tally.stopped}
            ended = _counted(tally.finished + sum(short.values()), "trial") + " ended"
            ended += "".join(f", {count} {how}" for how, count in short.items() if count)
            crashes = f", {_counted(tally.crashes, 'crash')} retried from the checkpoint" if tally.crashes else ""
            lines.append(f"{ended}{crashes}, {clock(seconds)}.")
        lines += [
            *reached_lines(self._sweep, targets_of(self._agenda).values()),
            *self._failed_lines(driver),
            *findings.lines(),
        ]
        lines += self._unwritten_lines()
        refused = all(law is None for law in findings.laws.values())
        return Ended(1 if failed or refused else 0, tuple(lines), findings, tuple(paths))


def _counted(count: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("sh") else "s")
    return f"{count} {noun if count == 1 else plural}"


def _parent_params(sweep: Sweep) -> dict[str, str]:
    """Return what the parent run says of the sweep; the whole of it is in its report."""
    first = sweep.variants[0]
    return {
        "workload": first.workload.name,
        "optimizer": first.optimizer.name,
        "schedule": sweep.schedule.name,
        "search": sweep.search.name,
        "parameters": str(first.size.parameters),
    }
