"""What comes after the last step: the evidence that something was learnt, and the files of the result."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from loraloom.formats.peft import save_adapter
from loraloom.tasks.base import BaseModel, DrawsScores, WritesExports
from loraloom.training.checkpoint import Checkpoint
from loraloom.training.curves import draw_curves
from loraloom.training.evidence import (
    gather_evidence,
    output_change,
    pattern_table,
    site_changes,
    unmoved_sites,
    weight_changes,
)
from loraloom.training.files import write_bytes, write_json, write_tensors
from loraloom.training.job import ADAPTER, Job
from loraloom.training.log import LOG_NAME, read_log
from loraloom.training.loop import Loop
from loraloom.training.memory import PeakMemory
from loraloom.training.model_card import model_card
from loraloom.training.output import RECORD_NAME, OutputFolder
from loraloom.training.precision import Precision
from loraloom.training.prepare import adapter_spec, attach_adapter, load_base
from loraloom.training.record import Findings, make_record, weights_bytes
from loraloom.training.reporter import Notebook, RunResult
from loraloom.training.scoring import predict_features, raw_outputs, score_features

OUTPUT_EXAMPLES = 64
"""Held-out examples whose raw outputs are compared with the base's."""


@dataclass
class Run:
    """What the stages of one run share."""

    job: Job
    out: OutputFolder
    reporter: Notebook
    findings: Findings
    peak: PeakMemory
    outputs: list[Tensor]
    """Raw outputs of the base model for the first held-out examples."""
    checkpoint: Checkpoint | None
    predictions: list[Any] = field(default_factory=list)
    """Of the trained model, for a task that draws its scores."""


def gather_findings(run: Run, loop: Loop) -> None:
    """The evidence that something was learnt, and the scores over the float32 base. Raises NothingMoved."""
    job = run.job
    began = time.perf_counter()
    change = output_change(run.outputs, raw_outputs(job, job.evaluation[:OUTPUT_EXAMPLES]))
    patterns, sites = [], []
    if job.adapters is not None:
        patterns = pattern_table(job.adapters, ADAPTER)
        sites = site_changes(job.base.model, job.adapters, ADAPTER)
    else:
        sites = weight_changes(_fresh_base(job).model, job.base.model)
    run.findings.evidence = gather_evidence(patterns, sites, change, len(job.evaluation[:OUTPUT_EXAMPLES]))
    if still := unmoved_sites(run.findings.evidence):
        run.reporter.note(f"{len(still)} of {len(sites)} layers did not change at all, e.g. '{still[0]}'")
    rounded = job.precision.base != torch.float32 or job.config.quantize is not None
    if job.adapters is not None and rounded and job.config.compare_precision:
        run.findings.fp32_metrics = _scores_over_fp32(run, loop)
    if isinstance(job.task, DrawsScores):
        run.predictions = loop.stepper.within_memory(lambda micro: predict_features(job, job.evaluation, micro))
    run.findings.seconds["proof"] = time.perf_counter() - began


def _fresh_base(job: Job) -> BaseModel:
    """The base model again, in float32, as it was before training."""
    base = load_base(job.config, job.task, torch.float32, quantized=False)
    base.model.to(job.processes.device)
    return base


def _scores_over_fp32(run: Run, loop: Loop) -> dict[str, float]:
    """Scores of the trained adapter over the base in float32, and a note that states both."""
    job = run.job
    assert job.adapters is not None
    base = _fresh_base(job)
    adapters = attach_adapter(base.model, adapter_spec(job.config, base), run.reporter.note)
    adapters.load_tensors(ADAPTER, job.adapters.tensors(ADAPTER))
    exact = replace(
        job, base=base, callable=base.model, adapters=adapters, precision=Precision("fp32", torch.float32, None)
    )
    exact.set_training(False)
    metrics = score_features(exact, exact.evaluation, loop.stepper.micro)
    metric = job.task.metric
    how = job.config.quantize
    trained_over, exactly = (f"{how} base", "unquantised fp32") if how else (f"{job.precision.name} base", "fp32")
    run.reporter.note(
        f"{metric} is {loop.state.best_metrics[metric]:.4f} over the {trained_over} and "
        f"{metrics[metric]:.4f} over the {exactly} base"
    )
    return metrics


def write_results(run: Run, loop: Loop) -> RunResult:
    """Write the files of the result, which are in place together or not at all. Raises OutputError."""
    job, findings = run.job, run.findings
    findings.notes = run.reporter.notes
    record: dict[str, Any] = {}
    if job.processes.main:
        with run.out.results() as folder:
            save_weights(job, folder)
            findings.result_bytes = weights_bytes(folder)
            if isinstance(job.task, WritesExports) and job.adapters is not None:
                for sentence in job.task.write_exports(job.base, job.adapters, ADAPTER, folder, run.out.path.name):
                    run.reporter.note(sentence)
            record = make_record(job, loop, findings, run.peak)
            write_json(folder / RECORD_NAME, record)
            write_bytes(folder / "README.md", model_card(record).encode())
            if isinstance(job.task, DrawsScores):
                job.task.draw_scores(run.predictions, [feature.reference for feature in job.evaluation], folder)
            draw_curves(
                folder / "curves.png",
                read_log(run.out.path / LOG_NAME),
                metric=job.task.metric,
                base_score=findings.base_metrics.get(job.task.metric),
                base_label="base, untrained head" if job.base.heads else "base",
                best_step=loop.state.best_step,
            )
    job.processes.barrier()
    result = RunResult(run.out.path, record or make_record(job, loop, findings, run.peak))
    run.reporter.finished(result)
    return result


def save_weights(job: Job, folder: Path) -> None:
    """Write what was trained: the adapter as PEFT has it, or the whole model with its processor."""
    if job.adapters is not None:
        save_adapter(job.adapters, ADAPTER, folder, base_name=job.base.name, task_type=job.task.peft_type)
        return
    with _no_progress_bar():
        for part in (job.base.model, job.base.processor):
            save: Any = getattr(part, "save_pretrained", None)
            if save is not None:
                save(folder)
    if not hasattr(job.base.model, "save_pretrained"):
        write_tensors(folder / "model.safetensors", job.trained)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing one while it writes."""
    switch: Any = transformers_logging
    shown = switch.is_progress_bar_enabled()
    switch.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            switch.enable_progress_bar()
