"""Where a run computes, and with how many processes: a thin face on accelerate's PartialState."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

_BUCKET = 16 * 2**20
"""Numbers per all-reduce: 64 MiB of float32, so that full fine-tuning needs no second copy of all gradients."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    device: torch.device
    index: int = 0
    count: int = 1

    @classmethod
    def of_environment(cls, device: str = "auto") -> Processes:
        """The device and the processes that torchrun (or nothing) set up; `device` "cpu" stays on the CPU."""
        accelerator = None if device == "cpu" else torch.accelerator.current_accelerator(check_available=True)
        # Without cpu=True, PartialState passes over processes that torchrun starts where there is no accelerator.
        state = PartialState(cpu=accelerator is None)
        if accelerator is not None and state.num_processes > 1:
            accelerator = state.device
        return cls(accelerator or torch.device("cpu"), state.process_index, state.num_processes)

    @property
    def main(self) -> bool:
        """Whether this process writes the files and reports."""
        return self.index == 0

    def barrier(self) -> None:
        """Wait for every process."""
        if self.count > 1:
            dist.barrier()

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace float32 tensors, in place, by their sums over the processes."""
        if self.count == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, in the order of the processes."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors in groups of about _BUCKET numbers."""
    buckets: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if size > _BUCKET:
            buckets.append([])
            size = 0
        buckets[-1].append(tensor)
        size += tensor.numel()
    return buckets
