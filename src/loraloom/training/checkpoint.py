"""Checkpoints: whole folders of safetensors and JSON, of which the newest complete one is resumed from.

A folder ``step-00000120`` appears by a rename when all of its bytes are on the disk; whatever a killed
process leaves behind has another name and is swept away.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from loraloom.errors import FormatError
from loraloom.training.files import folder_in_one_move, write_json, write_tensors, writing

_NAME = re.compile(r"step-(\d{8})")
_TENSORS, _BEST, _STATE = "state.safetensors", "best.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the steps after it depend on."""

    step: int
    """Steps done."""
    state: dict[str, Any]
    """The loop's counters, as JSON data; "best_step" among them."""
    weights: dict[str, Tensor]
    """Trained tensors by name."""
    moments: dict[str, Tensor]
    """The optimiser's tensors, as `optimizer_tensors` names them."""
    best: dict[str, Tensor]
    """Trained tensors at the best evaluation so far; empty before the first."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> None:
    """Add a checkpoint to `folder` and drop all but the newest `keep`. Raises OutputError."""
    with folder_in_one_move(folder / f"step-{checkpoint.step:08d}") as partial:
        weights = {f"weight.{name}": tensor for name, tensor in checkpoint.weights.items()}
        moments = {f"moment.{name}": tensor for name, tensor in checkpoint.moments.items()}
        write_tensors(partial / _TENSORS, weights | moments)
        # At the best step itself the best tensors are the weights: for a whole model that halves the file.
        if checkpoint.best and checkpoint.state["best_step"] != checkpoint.step:
            write_tensors(partial / _BEST, checkpoint.best)
        write_json(partial / _STATE, {"step": checkpoint.step, **checkpoint.state})
    with writing(folder):
        for old in complete_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and (path / _STATE).is_file())


def sweep(folder: Path) -> None:
    """Remove what a killed process left in `folder`: everything but complete checkpoints."""
    whole = set(complete_checkpoints(folder))
    for path in folder.iterdir() if folder.is_dir() else ():
        if path not in whole:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint in `folder`, or None. Raises FormatError for one that is damaged."""
    whole = complete_checkpoints(folder)
    return _read(whole[-1]) if whole else None


def _read(folder: Path) -> Checkpoint:
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        tensors = load_file(folder / _TENSORS)
        best = load_file(folder / _BEST) if (folder / _BEST).exists() else None
    except (OSError, ValueError, SafetensorError) as error:
        raise FormatError(
            f"checkpoint '{folder}' is damaged ({error}); remove it to resume from the one before"
        ) from None
    step, weights = int(state.pop("step")), _under("weight.", tensors)
    if best is None:
        best = weights if state["best_step"] == step else {}
    return Checkpoint(step, state, weights, _under("moment.", tensors), best)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def copy_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that later steps leave alone."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


@torch.no_grad()
def restore_tensors(live: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Write saved values into live tensors of the same names. Raises FormatError where they do not fit."""
    for name in sorted({*live, *saved}):
        if name not in saved or name not in live or live[name].shape != saved[name].shape:
            found = tuple(saved[name].shape) if name in saved else "nothing"
            expected = tuple(live[name].shape) if name in live else "nothing"
            raise FormatError(f"checkpoint: tensor '{name}' is {found}, expected {expected}")
    for name, tensor in live.items():
        tensor.copy_(saved[name])


def _parameters(optimizer: torch.optim.Optimizer) -> Iterable[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors as ``<number of the parameter>.<name>``, e.g. ``17.exp_avg``."""
    return {
        f"{number}.{name}": value
        for number, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give the optimiser the tensors that `optimizer_tensors` took from it."""
    parameters = list(_parameters(optimizer))
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        parameter = parameters[int(number)]
        # The step counter of a fused AdamW lies beside the parameter, like the moments. A copy: tensors
        # read from a file may lie at addresses that the kernels take another path for.
        optimizer.state[parameter][name] = value.to(parameter.device, copy=True)
