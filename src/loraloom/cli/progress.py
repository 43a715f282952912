"""How a run's events look at the command line: a live line on a terminal, plain lines in a log; on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from loraloom.cli.output import console, duration, percent
from loraloom.errors import OutputError
from loraloom.tasks import create_task
from loraloom.training.config import TrainConfig
from loraloom.training.reporter import EvalEvent, Reporter, RunPlan, RunResult, StepEvent
from loraloom.training.run import train

LINE_SECONDS = 10.0
"""Seconds between two progress lines where there is no terminal."""


@contextmanager
def reporting() -> Iterator[Reporter]:
    """A reporter for stderr as it is; the live line is taken down at the end, whatever happens."""
    if not sys.stderr.isatty():
        yield PlainReporter()
        return
    live = LiveReporter()
    try:
        yield live
    finally:
        live.stop()


class PlainReporter:
    """One line per event worth a line."""

    def __init__(self, every: float = LINE_SECONDS) -> None:
        self._every = every
        self._last = time.monotonic()

    def started(self, plan: RunPlan) -> None:
        """What is about to be done."""
        self._tell(plan_sentence(plan))
        self._last = time.monotonic()

    def note(self, text: str) -> None:
        """A sentence of the run."""
        self._tell(f"note: {text}")

    def step(self, event: StepEvent) -> None:
        """The newest step, not more often than every so many seconds."""
        if time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            self._tell(f"step {event.step}/{event.steps}  {step_figures(event)}  {duration(event.seconds_left)} left")

    def evaluated(self, event: EvalEvent) -> None:
        """A score."""
        self._tell(evaluation_sentence(event))

    def finished(self, result: RunResult) -> None:
        """The end; the verb prints the result itself."""

    def _tell(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class LiveReporter:
    """A bar with rate, time left, memory and the current score, and the notes above it."""

    def __init__(self) -> None:
        self._console = console(stderr=True)
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None

    def started(self, plan: RunPlan) -> None:
        """Put the bar up."""
        self.note(plan_sentence(plan))
        self._task = self._progress.add_task("", total=plan.steps, completed=plan.first_step)
        self._progress.start()

    def note(self, text: str) -> None:
        """A sentence above the bar."""
        self._console.print(text, markup=False)

    def step(self, event: StepEvent) -> None:
        """Move the bar."""
        if self._task is not None:
            left = f"{duration(event.seconds_left)} left"
            self._progress.update(self._task, completed=event.step, description=f"{step_figures(event)}  {left}")

    def evaluated(self, event: EvalEvent) -> None:
        """A score above the bar."""
        self.note(evaluation_sentence(event))

    def finished(self, result: RunResult) -> None:
        """Take the bar down."""
        self.stop()

    def stop(self) -> None:
        """Take the bar down, also after an error; a second call does nothing."""
        self._progress.stop()


class _Planned(Exception):
    """A run told its plan and is to go no further."""


class PlanOnly(PlainReporter):
    """Ends a run when it tells its plan, which it does before anything is written."""

    def started(self, plan: RunPlan) -> None:
        """Keep the plan and end the run."""
        self.plan = plan
        raise _Planned


def plan_of(config: TrainConfig) -> RunPlan:
    """What a run of this configuration would do; all that it would read and check has been."""
    reporter = PlanOnly()
    try:
        train(config, create_task(config.task, **config.task_options), reporter=reporter)
    except _Planned:
        return reporter.plan
    raise OutputError(f"out: '{config.out}' holds a finished run; choose another folder with --out")


def plan_sentence(plan: RunPlan) -> str:
    """A run in one sentence: what trains, on what, for how long."""
    share = percent(plan.trained_parameters / plan.total_parameters, 2)
    processes = f", {plan.processes} processes" if plan.processes > 1 else ""
    start = f", from step {plan.first_step}" if plan.first_step else ""
    return (
        f"{plan.method} on {plan.base}: {plan.trained_parameters:,} of {plan.total_parameters:,} parameters "
        f"train ({share}), {plan.train_examples} examples, {plan.evaluation_examples} held out, "
        f"{plan.steps} steps of {plan.batch_size}{start}, {plan.precision} on {plan.device}{processes}"
    )


def step_figures(event: StepEvent) -> str:
    """Loss, rate, memory and score of a step."""
    score = f"  score {event.score:.4f}" if event.score is not None else ""
    rate, memory = event.examples_per_second, event.memory_mib
    return f"loss {event.loss:.4f}{score}  {rate:.0f} examples/s  {memory:.0f} MiB"


def evaluation_sentence(event: EvalEvent) -> str:
    """One evaluation in one line."""
    best = "  (best so far)" if event.best else ""
    return f"epoch {event.epoch:.2f}, step {event.step}: {event.metric} {event.score:.4f}{best}"
