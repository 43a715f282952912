"""One step: the same result however a batch is parted, and what happens when memory runs out."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_task import TinyTask, tiny_config
from torch import Tensor, nn

from loraloom.errors import TrainingError
from loraloom.tasks.base import BaseModel, Batch
from loraloom.training.job import Job
from loraloom.training.prepare import prepare
from loraloom.training.processes import Processes
from loraloom.training.scoring import predict_features
from loraloom.training.stepper import Stepper, out_of_memory

NOTES: list[str] = []


def make_job(folder: Path, task: TinyTask | None = None, **settings: Any) -> Job:
    NOTES.clear()
    job, _ = prepare(
        tiny_config(folder, **settings), task or TinyTask(), Processes(torch.device("cpu")), NOTES.append, loaded=list
    )
    job.set_training(True)
    return job


def steps(job: Job, count: int = 6, micro: int | None = None) -> tuple[list[float], dict[str, Tensor]]:
    stepper = Stepper(job, micro or job.config.batch_size, NOTES.append)
    losses = []
    for number, indices in enumerate(itertools.islice(job.batches(0), count)):
        losses.append(stepper.step(indices, number, 1.0)[0].item())
    return losses, {name: tensor.detach().clone() for name, tensor in job.trained.items()}


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("micro", [1, 5, 8])
def test_micro_batches_give_the_step_of_the_whole_batch(tmp_path: Path, method: str, micro: int) -> None:
    settings = {"method": method, "learning_rate": 1e-3}
    expected_losses, expected = steps(no_dropout(make_job(tmp_path, **settings)))
    losses, found = steps(no_dropout(make_job(tmp_path, **settings)), micro=micro)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=2e-5)


def no_dropout(job: Job) -> Job:
    for module in job.base.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return job


class ByWord(TinyTask):
    """Counts every word as an item, so that batches of equal size differ in their items."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        each = nn.functional.cross_entropy(model(batch["words"]), batch["labels"], reduction="none")
        words = (batch["words"] > 0).sum(1)
        return (each * words).sum(), int(words.sum())


def test_the_loss_is_the_mean_over_the_items_of_the_whole_batch(tmp_path: Path) -> None:
    settings = {"max_grad_norm": None, "learning_rate": 1e-3}
    whole = make_job(tmp_path, ByWord(), **settings)
    indices = next(whole.batches(0))
    loss, items = whole.task.loss(whole.callable, whole.collate([whole.train[index] for index in indices]))
    gradients = torch.autograd.grad(loss / items, whole.gradients_of)
    norm = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients]))
    for micro in (16, 3):
        job = make_job(tmp_path, ByWord(), **settings)
        found_loss, found_norm = Stepper(job, micro, NOTES.append).step(indices, 0, 1.0)
        assert found_loss.item() == pytest.approx((loss / items).item(), rel=1e-5)
        assert found_norm.item() == pytest.approx(norm.item(), rel=1e-4)
        for parameter, gradient in zip(job.gradients_of, gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_told(tmp_path: Path) -> None:
    job = make_job(tmp_path, max_grad_norm=0.05)
    _, norm = Stepper(job, 16, NOTES.append).step(next(job.batches(0)), 0, 1.0)
    assert norm.item() > 0.1
    after = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in job.gradients_of if p.grad is not None]))
    assert after.item() == pytest.approx(0.05, rel=1e-3)


class Hungry(TinyTask):
    """Runs out of memory with more than `most` examples."""

    def __init__(self, most: int, error: BaseException) -> None:
        super().__init__()
        self.most, self.error = most, error

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        result = super().loss(model, batch)
        if len(batch["labels"]) > self.most:
            torch.rand(7)
            raise self.error
        return result

    def predict(self, model: nn.Module, batch: Batch, base: BaseModel) -> list[int]:
        if len(batch["words"]) > self.most:
            raise self.error
        return super().predict(model, batch, base)


CPU_FULL = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried …")


@pytest.mark.parametrize("error", [CPU_FULL, torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_out_of_memory_halves_the_micro_batch_and_repeats_the_step(tmp_path: Path, error: BaseException) -> None:
    """The step that failed is done again from the same random state: the result is that of small micro-batches."""
    settings = {"adapter__dropout": 0.3}
    expected_losses, expected = steps(make_job(tmp_path, **settings), micro=4)
    losses, found = steps(make_job(tmp_path, Hungry(5, error), **settings))
    assert [note for note in NOTES if "memory" in note] == [
        "memory ran out: the micro-batch is halved to 8, the batch of a step stays",
        "memory ran out: the micro-batch is halved to 4, the batch of a step stays",
    ]
    assert losses == expected_losses
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_one_example_that_does_not_fit_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="memory ran out with one example per forward pass; take a smaller"):
        steps(make_job(tmp_path, Hungry(0, MemoryError())))


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path: Path) -> None:
    assert not out_of_memory(RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        steps(make_job(tmp_path, Hungry(0, RuntimeError("shape mismatch"))))


def test_a_frozen_base_runs_as_in_evaluation_unless_asked(tmp_path: Path) -> None:
    job = make_job(tmp_path, adapter__dropout=0.2)
    assert not any(module.training for module in job.base.model.modules())
    assert any(job.adapters.drops(module) for module in job.base.model.modules())
    job.set_training(False)
    assert not any(job.adapters.drops(module) for module in job.base.model.modules())
    job = make_job(tmp_path, base_dropout=True)
    assert all(module.training for module in job.base.model.modules() if isinstance(module, nn.Dropout))
    job.base.model.norm = nn.BatchNorm1d(3)
    job.set_training(True)
    assert not job.base.model.norm.training
    full = make_job(tmp_path, method="full")
    assert full.base.model.training


def test_layers_that_keep_copies_see_every_step(tmp_path: Path) -> None:
    """Over a bf16 base, layers keep their factors in bf16 for evaluation; a step must make them look again."""
    job = make_job(tmp_path, precision="bf16", learning_rate=0.3)
    job.set_training(False)
    before = job.task.outputs(job.callable, job.collate(job.evaluation[:8])).detach()
    with torch.no_grad():
        job.task.outputs(job.callable, job.collate(job.evaluation[:8]))
    job.set_training(True)
    steps(job, count=3)
    job.set_training(False)
    live = job.task.outputs(job.callable, job.collate(job.evaluation[:8])).detach()
    with torch.no_grad():
        kept = job.task.outputs(job.callable, job.collate(job.evaluation[:8]))
    assert not torch.equal(live, before)
    torch.testing.assert_close(kept, live, rtol=0.05, atol=0.05)


def test_batches_go_on_where_they_stopped(tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=3, max_steps=27)
    every = list(job.batches(0))
    assert len(every) == job.steps == 27
    for first in (0, 1, 9, 10, 11, 26, 27):
        assert list(job.batches(first)) == every[first:]
    assert every[:10] != every[10:20]
    for epoch in range(2):
        seen = [index for batch in every[epoch * 10 : epoch * 10 + 10] for index in batch]
        assert sorted(seen) == list(range(160))


def test_predictions_come_in_the_order_of_the_examples(tmp_path: Path) -> None:
    job = make_job(tmp_path, adapter__rank=2)
    steps(job, count=4)
    job.set_training(False)
    alone = [job.task.predict(job.callable, job.collate([feature]), job.base)[0] for feature in job.evaluation]
    assert len(set(alone)) == 2
    assert predict_features(job, job.evaluation, 7) == alone
