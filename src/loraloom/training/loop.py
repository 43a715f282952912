"""The training loop: steps, evaluations and checkpoints, until the steps or the patience run out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraloom.tasks.base import DrawsSamples
from loraloom.training.checkpoint import (
    Checkpoint,
    copy_tensors,
    optimizer_tensors,
    restore_optimizer,
    restore_tensors,
    save_checkpoint,
)
from loraloom.training.job import Job
from loraloom.training.log import RunLog
from loraloom.training.memory import MIB, memory_in_use
from loraloom.training.optim import schedule_factor
from loraloom.training.reporter import EvalEvent, Reporter, StepEvent
from loraloom.training.scoring import score_features
from loraloom.training.stepper import Stepper
from loraloom.training.watch import LossWatch

_CHECKPOINT_SECONDS = 600.0
"""With no checkpoint_every, a checkpoint at least this often; it changes nothing in the results."""


@dataclass
class LoopState:
    """The loop's counters: with the tensors, everything that the steps to come depend on."""

    micro: list[int]
    """Examples per forward pass of each process."""
    step: int = 0
    """Steps done."""
    best_step: int | None = None
    best_score: float | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    """Evaluations in a row without a better score."""
    watch: LossWatch = field(default_factory=LossWatch)
    training_seconds: float = 0.0
    """In steps, over all sessions of the run."""
    evaluation_seconds: float = 0.0

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LoopState:
        """The inverse of dataclasses.asdict, after a journey through JSON."""
        return cls(**{**data, "watch": LossWatch(**data["watch"])})


@dataclass(frozen=True)
class _Pending:
    """A step whose loss still lies on the device."""

    step: int
    learning_rate: float
    loss: Tensor
    norm: Tensor


class Loop:
    """Runs the steps of a job. `state` and `best` hold what came of them."""

    def __init__(self, job: Job, log: RunLog | None, reporter: Reporter, checkpoints: Path) -> None:
        share = -(-job.config.batch_size // job.processes.count)
        micro = min(share, job.config.micro_batch_size or share)
        self.job = job
        self.state = LoopState(micro=[micro] * job.processes.count)
        self.best: dict[str, Tensor] = {}
        """Trained tensors at the best evaluation, on the CPU."""
        self.stepper = Stepper(job, micro, reporter.note)
        self._log = log
        self._reporter = reporter
        self._checkpoints = checkpoints
        self._pending: list[_Pending] = []
        self._score: float | None = None
        self._saved_at = time.monotonic()
        self._session = (0, 0.0)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint. Raises FormatError when it does not fit the model."""
        self.state = LoopState.from_json({**checkpoint.state, "step": checkpoint.step})
        self.best = checkpoint.best
        restore_tensors(self.job.trained, checkpoint.weights)
        restore_optimizer(self.stepper.optimizer, checkpoint.moments)
        # With another number of processes than before, each takes the smallest micro-batch that was in use.
        same = len(self.state.micro) == self.job.processes.count
        self.stepper.micro = self.state.micro[self.job.processes.index] if same else min(self.state.micro)

    @property
    def stopped_early(self) -> bool:
        """Whether the patience has run out."""
        patience = self.job.config.patience
        return patience is not None and self.state.stale >= patience

    def run(self) -> None:
        """Do all the remaining steps, then put the best evaluation's tensors into the model."""
        job, state = self.job, self.state
        self._session = (state.step, state.training_seconds)
        if state.step == 0:
            self._draw_samples()
        job.set_training(True)
        for indices in job.batches(state.step):
            if self.stopped_early:
                break
            began = time.perf_counter()
            self._step(indices)
            state.training_seconds += time.perf_counter() - began
            if self._evaluation_is_due():
                self.evaluate()
            if self._checkpoint_is_due():
                self.save()
        restore_tensors(job.trained, self.best)
        job.set_training(False)

    def _step(self, indices: list[int]) -> None:
        config, number = self.job.config, self.state.step
        factor = schedule_factor(number, self.job.steps, warmup=config.warmup, schedule=config.schedule)
        loss, norm = self.stepper.step(indices, number, factor)
        self.state.step = number + 1
        self._pending.append(_Pending(number + 1, config.rate * factor, loss, norm))
        if loss.device.type == "cpu" or self.state.step % config.log_every == 0:
            self._read_losses()

    def _read_losses(self) -> None:
        """Fetch the losses of the steps since the last reading, in one go; check, log and report them."""
        if not self._pending:
            return
        stacked = torch.stack([torch.stack((entry.loss, entry.norm)) for entry in self._pending]).tolist()
        for entry, (loss, norm) in zip(self._pending, stacked, strict=True):
            self.state.watch.see(entry.step, loss, norm, entry.learning_rate)
            values = {"epoch": self._epoch(entry.step), "loss": loss, "grad_norm": norm}
            self._write("step", entry.step, {**values, "learning_rate": entry.learning_rate})
        self._reporter.step(self._event(self._pending[-1], *stacked[-1]))
        self._pending.clear()

    def _event(self, entry: _Pending, loss: float, norm: float) -> StepEvent:
        first, seconds = self._session
        # The step just done is not in the sum yet: one that is still being timed counts like the others.
        done, taken = max(1, entry.step - 1 - first), self.state.training_seconds - seconds
        per_step = taken / done
        return StepEvent(
            step=entry.step,
            steps=self.job.steps,
            epoch=self._epoch(entry.step),
            loss=loss,
            grad_norm=norm,
            learning_rate=entry.learning_rate,
            examples_per_second=self.job.config.batch_size / per_step if per_step else 0.0,
            seconds_left=per_step * (self.job.steps - entry.step),
            memory_mib=memory_in_use(self.job.processes.device) / MIB,
            score=self._score,
        )

    def _epoch(self, step: int) -> float:
        return round(step / self.job.steps_per_epoch, 4)

    def _write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        if self._log is not None:
            self._log.write(kind, step, values)

    def _evaluation_is_due(self) -> bool:
        every = self.job.config.evaluate_every or self.job.steps_per_epoch
        return self.state.step % every == 0 or self.state.step == self.job.steps

    def evaluate(self) -> None:
        """Score the held-out examples; the first of equal scores stays the best."""
        job, state = self.job, self.state
        self._read_losses()
        began = time.perf_counter()
        job.set_training(False)
        metrics = self.scores()
        self._draw_samples()
        job.set_training(True)
        state.evaluation_seconds += time.perf_counter() - began
        score = self._score = metrics[job.task.metric]
        better = self._is_better(score)
        state.stale = 0 if better else state.stale + 1
        if better:
            state.best_step, state.best_score, state.best_metrics = state.step, score, metrics
            self.best = copy_tensors(job.trained)
        epoch = self._epoch(state.step)
        self._write("evaluation", state.step, {"epoch": epoch, **metrics})
        self._reporter.evaluated(EvalEvent(state.step, epoch, job.task.metric, score, metrics, better))

    def scores(self) -> dict[str, float]:
        """Every metric over the held-out examples, with the model as it is; it must be in evaluation mode."""
        job, stepper = self.job, self.stepper
        return stepper.within_memory(lambda micro: score_features(job, job.evaluation, micro))

    def _draw_samples(self) -> None:
        """What the model makes now, for a task that can be watched; into OUT/samples."""
        task = self.job.task
        if isinstance(task, DrawsSamples) and self.job.processes.main:
            task.draw_samples(self.job.base, self._checkpoints.parent / "samples", self.state.step)

    def _is_better(self, score: float) -> bool:
        best = self.state.best_score
        if best is None or best != best:
            return True
        return score > best if self.job.task.higher_is_better else score < best

    def _checkpoint_is_due(self) -> bool:
        step, every = self.state.step, self.job.config.checkpoint_every
        if step == self.job.steps:
            return False
        if every is not None:
            return step % every == 0
        # Processes must agree on when to save, and their clocks do not.
        late = self.job.processes.count == 1 and time.monotonic() - self._saved_at > _CHECKPOINT_SECONDS
        return late or self._evaluation_is_due()

    def save(self) -> None:
        """Write a checkpoint of the state after the newest step. Raises OutputError."""
        self._read_losses()
        self.state.micro = self.job.processes.gather(self.stepper.micro)
        if self.job.processes.main:
            state = asdict(self.state)
            moments = optimizer_tensors(self.stepper.optimizer)
            checkpoint = Checkpoint(state.pop("step"), state, self.job.trained, moments, self.best)
            save_checkpoint(self._checkpoints, checkpoint, keep=self.job.config.keep_checkpoints)
        self._saved_at = time.monotonic()
