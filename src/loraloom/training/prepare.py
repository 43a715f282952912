"""From a configuration to a job: everything is read, loaded and checked, and nothing is written."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from loraloom.adapters import AdapterSet, AdapterSpec, attach, plan_attach
from loraloom.errors import DataError
from loraloom.tasks.base import BaseModel, Encoded, Splits, Task
from loraloom.training.config import TrainConfig
from loraloom.training.job import ADAPTER, Job
from loraloom.training.log import check_tensorboard
from loraloom.training.precision import resolve_precision
from loraloom.training.processes import Processes

Note = Callable[[str], None]


def adapter_spec(config: TrainConfig, base: BaseModel) -> AdapterSpec:
    """The adapter that the settings mean over this base: with its new heads, and the run's seed."""
    return AdapterSpec.of(**config.adapter.spec_settings(seed=config.seed, heads=base.heads, targets=base.targets))


def load_base(config: TrainConfig, task: Task, dtype: torch.dtype, *, quantized: bool = True) -> BaseModel:
    """The base model that a configuration means; not `quantized`: in full, whatever the settings say."""
    return task.load(
        config.base_name,
        dtype=dtype,
        seed=config.seed,
        from_config=config.base_config is not None,
        quantize=config.quantize if quantized and config.method == "lora" else None,
    )


def attach_adapter(model: nn.Module, spec: AdapterSpec, note: Note) -> AdapterSet:
    """Attach the run's adapter; what the plan warns of becomes notes. Raises TargetError, ConfigError."""
    for warning in plan_attach(model, spec).warnings:
        note(warning)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return attach(model, spec, name=ADAPTER)


def parameter_count(model: nn.Module) -> int:
    """Numbers in a model's parameters, tied ones counted once, and packed ones as they are unpacked."""
    return sum(math.prod(_unpacked(parameter)) for parameter in model.parameters())


def _unpacked(parameter: nn.Parameter) -> tuple[int, ...]:
    """The shape of a weight; bitsandbytes keeps that of one in four bits beside it."""
    state = getattr(parameter, "quant_state", None)
    return tuple(parameter.shape if state is None else state.shape)


def prepare(
    config: TrainConfig, task: Task, processes: Processes, note: Note, *, loaded: Callable[[], None]
) -> tuple[Job, int]:
    """The job that a configuration means, and the number of the base model's parameters.

    `loaded` is called when the base model is in memory, and nothing of the training yet.

    Raises whatever is wrong with the settings, the data or the base model.
    """
    if config.tensorboard:
        check_tensorboard()
    for sentence in config.unused():
        note(sentence)
    precision = resolve_precision(config.precision, config.method, processes.device)
    splits = _read(config, task, note)
    base = load_base(config, task, precision.base)
    for sentence in base.notes:
        note(sentence)
    base.model.to(processes.device)
    loaded()
    size = parameter_count(base.model)
    adapters = None
    if config.method == "lora":
        adapters = attach_adapter(base.model, adapter_spec(config, base), note)
    else:
        base.model.requires_grad_(True)
    parts = {"train": task.encode(splits.train, base), "evaluation": task.encode(splits.evaluation, base)}
    for part, encoded in parts.items():
        _note_truncated(part, encoded, note)
        for sentence in encoded.notes:
            note(sentence)
    # torch.compile gives a callable with the module's own type only at run time.
    model = cast(nn.Module, torch.compile(base.model, dynamic=True)) if config.compile else base.model
    job = Job(
        config=config,
        task=task,
        processes=processes,
        precision=precision,
        base=base,
        callable=model,
        adapters=adapters,
        splits=splits,
        train=parts["train"].features,
        evaluation=parts["evaluation"].features,
        truncated={part: encoded.truncated for part, encoded in parts.items()},
    )
    job.set_training(False)
    return job, size


def _read(config: TrainConfig, task: Task, note: Note) -> Splits:
    """The run's examples. Raises DataError where a part of them is empty."""
    splits = task.read(config.data, seed=config.seed)
    for sentence in splits.notes:
        note(sentence)
    for part, examples in (("training", splits.train), ("evaluation", splits.evaluation)):
        if not examples:
            raise DataError(f"data: there are no {part} examples; raise data.eval_fraction or name more data")
    return splits


def _note_truncated(part: str, encoded: Encoded, note: Note) -> None:
    if encoded.truncated:
        note(
            f"{encoded.truncated} of {len(encoded.features)} {part} examples were longer than the model takes and "
            "were cut"
        )
