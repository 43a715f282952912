"""What a run works with once everything has been read, loaded and checked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from loraloom.adapters import AdapterSet
from loraloom.data.batches import length_batches
from loraloom.tasks.base import BaseModel, Batch, Feature, Splits, Task
from loraloom.training.config import TrainConfig
from loraloom.training.optim import Groups, full_roles, parameter_groups, scaled_rates
from loraloom.training.precision import Precision
from loraloom.training.processes import Processes

ADAPTER = "default"
"""Name of the adapter that a run trains."""


@dataclass
class Loaded:
    """A task with its base model, with or without an adapter, ready to be called."""

    task: Task
    processes: Processes
    precision: Precision
    base: BaseModel
    callable: nn.Module
    """The model as the task is to call it: itself, or compiled."""
    adapters: AdapterSet | None
    """None where the whole model was trained."""

    def collate(self, features: list[Feature], *, training: bool = False) -> Batch:
        """Features as one batch on the run's device; with `training`, varied by chance as the task likes."""
        device = self.processes.device
        batch = self.task.collate(features, self.base, training=training)
        return batch if device.type == "cpu" else {name: _moved(value, device) for name, value in batch.items()}


def _moved(value: Any, device: torch.device) -> Any:
    """Tensors on the device, also those within lists, tuples and mappings."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {name: _moved(entry, device) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_moved(entry, device) for entry in value]
    return value


@dataclass
class Job(Loaded):
    """One run: a loaded task, its settings and its examples."""

    config: TrainConfig
    splits: Splits
    train: list[Feature]
    evaluation: list[Feature]
    truncated: dict[str, int] = field(default_factory=dict)

    @cached_property
    def trained(self) -> dict[str, Tensor]:
        """Live tensors that training changes, by name: the adapter's, or all of the model's."""
        if self.adapters is not None:
            return dict(self.adapters.named_parameters(ADAPTER))
        model = self.base.model
        return {**dict(model.named_parameters()), **dict(model.named_buffers())}

    @cached_property
    def gradients_of(self) -> list[nn.Parameter]:
        """The parameters that the optimiser steps, in the optimiser's order."""
        return [parameter for group in self.groups for parameter in group["params"]]

    @cached_property
    def groups(self) -> Groups:
        """The optimiser's groups by role."""
        if self.adapters is not None:
            roles = self.adapters.parameters_by_role(ADAPTER)
        else:
            roles = full_roles(self.base.model, self.base.heads)
        return scaled_rates(parameter_groups(roles, self.config), self.trained, self.base.rates)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the training examples."""
        return math.ceil(len(self.train) / self.config.batch_size)

    @property
    def steps(self) -> int:
        """Optimiser steps in all, unless the run stops early."""
        return min(self.config.epochs * self.steps_per_epoch, self.config.max_steps or 2**62)

    def batches(self, first: int) -> Iterator[list[int]]:
        """Indices of the training examples of each step from `first` (from 0) to the last.

        The order is a pure function of the seed and the epoch, so that a resumed run sees the same batches.
        """
        lengths = [feature.length for feature in self.train]
        for epoch in range(first // self.steps_per_epoch, math.ceil(self.steps / self.steps_per_epoch)):
            batches = length_batches(lengths, self.config.batch_size, seed=self.config.seed, epoch=epoch)
            start = epoch * self.steps_per_epoch
            yield from batches[max(0, first - start) : self.steps - start]

    def set_training(self, training: bool) -> None:
        """Put the model into the mode for training steps or for evaluation.

        A frozen base runs as in evaluation in both: its dropout would cost time and determinism and bring
        nothing to an adapter that has its own. Layers with running statistics stay frozen in any case.
        """
        model = self.base.model
        if self.adapters is None:
            model.train(training)
            return
        model.train(training and self.config.base_dropout)
        if model.training:
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._NormBase):
                    module.eval()
        self.adapters.training_mode(training)
