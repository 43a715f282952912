"""One optimiser step on one batch, whatever the number of processes and micro-batches."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from loraloom.data.batches import micro_batches
from loraloom.errors import TrainingError
from loraloom.training.job import Job
from loraloom.training.optim import make_optimizer, set_rates
from loraloom.training.processes import Processes
from loraloom.training.seeds import seed_generators, step_seed

Result = TypeVar("Result")

_MEMORY_TEXTS = ("not enough memory", "can't allocate memory", "out of memory", "bad_alloc")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; the CPU's allocator raises a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _MEMORY_TEXTS)


def within_memory(
    work: Callable[[int], Result], micro: int, processes: Processes, note: Callable[[str], None]
) -> tuple[Result, int]:
    """`work` with `micro` examples at a time, with half as many for as long as memory runs out.

    Returns the work's result and how many examples at a time it took. Raises TrainingError when one is too
    many.
    """
    while True:
        try:
            return work(micro), micro
        except Exception as error:
            if not out_of_memory(error):
                raise
        # Only here, with the error and its frames gone, is the memory of the failed attempt free.
        gc.collect()
        if processes.device.type == "cuda":
            torch.cuda.empty_cache()
        if micro == 1:
            raise TrainingError(
                "memory ran out with one example per forward pass; take a smaller base model, shorter examples, "
                "or precision: bf16"
            )
        micro = (micro + 1) // 2
        where = f" of process {processes.index}" if processes.count > 1 else ""
        note(f"memory ran out: the micro-batch{where} is halved to {micro}, the batch of a step stays")


class Stepper:
    """Steps the optimiser, and halves the micro-batch when memory runs out.

    Every process works on its share of a batch; the gradients are added up once per step, so that the
    processes may differ in the number of their micro-batches. The loss is the mean over all items of the
    batch, which makes the result that of one process up to rounding.
    """

    def __init__(self, job: Job, micro: int, note: Callable[[str], None]) -> None:
        self.job = job
        self.micro = micro
        """Examples per forward pass of this process."""
        self.optimizer = make_optimizer(job.groups)
        self._note = note

    def step(self, indices: Sequence[int], number: int, factor: float) -> tuple[Tensor, Tensor]:
        """Step on the training examples `indices` at `factor` of the peak rates.

        Returns the loss and the gradient norm before clipping as scalars that are left on the device:
        reading them there would make every step wait.
        """
        share = indices[self.job.processes.index :: self.job.processes.count]
        total, items = self.within_memory(lambda micro: self._accumulate(share, len(indices), number, micro))
        gradients, tally = self._joined(total, items)
        count = items if self.job.processes.count == 1 else tally[1]
        norm = self._normalise(gradients, len(indices) / count)
        set_rates(self.optimizer, factor)
        self.optimizer.step()
        return tally[0] / count, norm

    def within_memory(self, work: Callable[[int], Result]) -> Result:
        """Do `work` with the micro-batch, which stays smaller once memory ran out. Raises TrainingError."""
        result, self.micro = within_memory(work, self.micro, self.job.processes, self._note)
        return result

    def _accumulate(self, share: Sequence[int], batch: int, number: int, micro: int) -> tuple[Tensor, int]:
        """Gradients of (sum of the losses) / `batch` over this process's share; returns that sum and its items.

        Begins anew in every respect, so that a step which ran out of memory can be done again.
        """
        job = self.job
        self.optimizer.zero_grad(set_to_none=True)
        seed_generators(step_seed(job.config.seed, number, job.processes.index), job.processes.device)
        total = torch.zeros((), device=job.processes.device)
        items = 0
        parts = -(-len(share) // micro)
        for part in micro_batches(share, parts) if parts > 1 else [share] * parts:
            with job.precision.computing(job.processes.device):
                batch_of = job.collate([job.train[index] for index in part], training=True)
                loss, count = job.task.loss(job.callable, batch_of)
            (loss / batch).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
            items += count
        return total, items

    def _joined(self, total: Tensor, items: int) -> tuple[list[Tensor], Tensor]:
        """Gradients, and (sum of losses, items), added up over the processes."""
        tally = torch.stack([total, torch.tensor(float(items), device=total.device)])
        if self.job.processes.count > 1:
            for parameter in self.job.gradients_of:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.job.gradients_of if parameter.grad is not None]
        self.job.processes.sum_([*gradients, tally])
        return gradients, tally

    def _normalise(self, gradients: list[Tensor], scale: float | Tensor) -> Tensor:
        """Multiply the gradients by `scale` and clip them; returns their norm before clipping."""
        if not gradients:
            raise TrainingError("no trained parameter received a gradient; check adapter.targets and the heads")
        norm = torch.nn.utils.get_total_norm(gradients) * scale
        limit = self.job.config.max_grad_norm
        if limit is not None:
            clip = (limit / (norm + 1e-6)).clamp(max=1.0)
            # Reading a number off a CPU tensor is free, and mostly there is nothing to multiply.
            scale = scale * (float(clip) if clip.device.type == "cpu" else clip)
        if isinstance(scale, Tensor) or scale != 1.0:
            torch._foreach_mul_(gradients, scale)
        return norm
