"""One training run: configuration → base and examples → adapter → loop → files and evidence."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from loraloom.errors import ConfigError
from loraloom.tasks.base import Task
from loraloom.training.checkpoint import newest_checkpoint
from loraloom.training.config import TrainConfig
from loraloom.training.job import ADAPTER, Job
from loraloom.training.log import RunLog
from loraloom.training.loop import Loop
from loraloom.training.memory import PeakMemory
from loraloom.training.output import OutputFolder
from loraloom.training.prepare import prepare
from loraloom.training.processes import Processes
from loraloom.training.record import Findings, trained_parameters, versions
from loraloom.training.reporter import Notebook, Reporter, RunPlan, RunResult, SilentReporter
from loraloom.training.results import OUTPUT_EXAMPLES, Run, gather_findings, write_results
from loraloom.training.scoring import raw_outputs, score_features
from loraloom.training.seeds import own_randomness, seed_generators, step_seed
from loraloom.training.stepper import within_memory


def train(config: TrainConfig, task: Task, *, reporter: Reporter | None = None, resume: bool = False) -> RunResult:
    """Train as `config` says, and write the result to its output folder.

    Everything is checked before anything is written; a run that fails leaves no folder, unless it has
    checkpoints. `resume` goes on from the newest of them and ends in the same bytes as a run that was never
    stopped; on a finished run it returns what is there, and with nothing there it begins.

    Raises ConfigError, DataError, BaseModelError, TargetError, OutputError, MissingExtraError before the
    first step, TrainingError when the run comes to nothing.
    """
    processes = Processes.of_environment(config.device)
    notebook = Notebook((reporter or SilentReporter()) if processes.main else SilentReporter())
    out = OutputFolder(config.out)
    out.check(resume=resume)
    if out.resumable or out.complete:
        out.check_settings(config.settings())
    if out.complete:
        return _finished(out, notebook)
    # No process may make the folder before every process has looked at it.
    processes.barrier()
    with own_randomness(processes.device), PeakMemory(processes.device) as peak:
        run = _prepare(config, task, processes, out, notebook, peak)
        with out.undone_on_error() if processes.main else nullcontext():
            return _train(run)


def _finished(out: OutputFolder, notebook: Notebook) -> RunResult:
    out.tidy()
    notebook.note(f"'{out.path}' holds this run, finished: there is nothing to resume")
    result = RunResult(out.path, out.read_state())
    notebook.finished(result)
    return result


def _prepare(
    config: TrainConfig,
    task: Task,
    processes: Processes,
    out: OutputFolder,
    notebook: Notebook,
    peak: PeakMemory,
) -> Run:
    began = time.perf_counter()
    seed_generators(step_seed(config.seed, -1), processes.device)
    job, base_parameters = prepare(config, task, processes, notebook.note, loaded=peak.begin)
    checkpoint = newest_checkpoint(out.checkpoints) if out.resumable else None
    state = out.read_state() if out.resumable else {}
    _check_same_inputs(job, state, out, notebook)
    prepared = time.perf_counter() - began
    findings = Findings(state.get("base_metrics") or {}, base_parameters=base_parameters)
    findings.seconds["preparation"] = prepared
    return Run(job, out, notebook, findings, peak, [], checkpoint)


def _look_at_base(run: Run) -> None:
    """Outputs and scores of the untrained model, which what training comes to is held against."""
    job = run.job
    run.outputs = raw_outputs(job, job.evaluation[:OUTPUT_EXAMPLES])
    run.findings.base_metrics = run.findings.base_metrics or _base_metrics(job, run.reporter)


def _base_metrics(job: Job, notebook: Notebook) -> dict[str, float]:
    """Scores of the model before training: its adapter adds nothing yet, its head is new."""
    metrics, _ = within_memory(
        lambda size: score_features(job, job.evaluation, size), job.config.batch_size, job.processes, notebook.note
    )
    return metrics


def _inputs(job: Job) -> dict[str, Any]:
    """What a resumed run must find as it was, beside its settings."""
    return {"data": job.splits.hashes, "base": job.base.fingerprint}


def _check_same_inputs(job: Job, state: dict[str, Any], out: OutputFolder, notebook: Notebook) -> None:
    """Raise ConfigError when a resumed run's data or base have changed; note what may change its bytes."""
    if not state:
        return
    for what, now in _inputs(job).items():
        if state["inputs"][what] != now:
            raise ConfigError(f"'{out.path}' cannot be resumed: the files of '{what}' are not those it was begun with")
    if state["processes"] != job.processes.count:
        notebook.note(
            f"resumed with {job.processes.count} processes after {state['processes']}: equal up to rounding only"
        )
    changed = {name: version for name, version in versions().items() if state["versions"].get(name) != version}
    if changed:
        told = ", ".join(f"{name} {state['versions'].get(name)} → {version}" for name, version in changed.items())
        notebook.note(f"resumed with other versions ({told}): the result may differ in its last digits")


def _train(run: Run) -> RunResult:
    job = run.job
    step = run.checkpoint.step if run.checkpoint else 0
    run.reporter.started(_plan(run, step))
    _look_at_base(run)
    if job.processes.main:
        run.out.begin(_run_state(run))
    job.processes.barrier()
    with _log(run, step) as log:
        loop = Loop(job, log, run.reporter, run.out.checkpoints)
        if run.checkpoint is not None:
            loop.restore(run.checkpoint)
            run.reporter.note(f"resumed after step {step}")
        loop.run()
    run.peak.end()
    gather_findings(run, loop)
    return write_results(run, loop)


def _log(run: Run, step: int) -> AbstractContextManager[RunLog | None]:
    """The log, which only the main process writes."""
    if not run.job.processes.main:
        return nullcontext()
    return RunLog(run.out.path, step=step, tensorboard=run.job.config.tensorboard)


def _run_state(run: Run) -> dict[str, Any]:
    return {
        "settings": run.job.config.settings(),
        "inputs": _inputs(run.job),
        "processes": run.job.processes.count,
        "versions": versions(),
        "base_metrics": run.findings.base_metrics,
    }


def _plan(run: Run, first_step: int) -> RunPlan:
    job = run.job
    sites = tuple(job.adapters.plan(ADAPTER).table()) if job.adapters is not None else ()
    return RunPlan(
        method=job.config.method,
        base=job.base.name,
        device=str(job.processes.device),
        precision=job.precision.name,
        processes=job.processes.count,
        train_examples=len(job.train),
        evaluation_examples=len(job.evaluation),
        steps=job.steps,
        first_step=first_step,
        batch_size=job.config.batch_size,
        trained_parameters=trained_parameters(job),
        total_parameters=run.findings.base_parameters,
        sites=sites,
    )
