"""AdamW with a rate per role, and the schedule as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loraloom.training.config import TrainConfig

Groups = list[dict[str, Any]]


def role_rates(config: TrainConfig) -> dict[str, float]:
    """Peak learning rate of each role of an adapter's parameters. LoRA+ (2402.12354): B at lr_ratio × A."""
    return {
        "A": config.rate,
        "B": config.rate * config.lr_ratio,
        "bias": config.rate,
        "head": config.head_rate,
        "weight": config.rate,
    }


def parameter_groups(by_role: Mapping[str, Sequence[nn.Parameter]], config: TrainConfig) -> Groups:
    """Optimiser groups, one per role that has parameters, with their peak rate under "peak".

    Vectors (biases, norms) never decay.
    """
    rates = role_rates(config)
    groups: Groups = []
    for role, parameters in by_role.items():
        for flat in (False, True):
            chosen = [entry for entry in parameters if entry.requires_grad and (entry.ndim < 2) == flat]
            if chosen:
                decay = 0.0 if flat or role == "bias" else config.weight_decay
                groups.append({"params": chosen, "role": role, "peak": rates[role], "weight_decay": decay})
    return groups


def scaled_rates(groups: Groups, named: Mapping[str, Tensor], rates: Mapping[str, float]) -> Groups:
    """The groups, parted so that each path of `rates`, and what lies below it, has its own share of the peak rate."""
    if not rates:
        return groups
    factors = {id(tensor): _factor(name, rates) for name, tensor in named.items()}
    parted: Groups = []
    for group in groups:
        for factor in dict.fromkeys(factors[id(parameter)] for parameter in group["params"]):
            chosen = [parameter for parameter in group["params"] if factors[id(parameter)] == factor]
            parted.append({**group, "params": chosen, "peak": group["peak"] * factor})
    return parted


def _factor(name: str, rates: Mapping[str, float]) -> float:
    return next((factor for path, factor in rates.items() if name.startswith(f"{path}.")), 1.0)


def full_roles(model: nn.Module, heads: Sequence[str]) -> dict[str, list[nn.Parameter]]:
    """Every parameter of a model by role: "head" for those under the head paths, "weight" for the others."""
    roles: dict[str, list[nn.Parameter]] = {"weight": [], "head": []}
    for name, parameter in model.named_parameters():
        in_head = any(name == head or name.startswith(f"{head}.") for head in heads)
        roles["head" if in_head else "weight"].append(parameter)
    return roles


def make_optimizer(groups: Groups) -> torch.optim.AdamW:
    """AdamW, fused where torch has the kernel for where the parameters lie."""
    device = groups[0]["params"][0].device.type
    fused = device in ("cpu", "cuda", "mps", "xpu")
    return torch.optim.AdamW(groups, lr=groups[0]["peak"], weight_decay=0.0, fused=fused)


def schedule_factor(step: int, steps: int, *, warmup: float, schedule: str) -> float:
    """Share of the peak rate at `step` (from 0) of `steps`: a rise over the warm-up, then the schedule.

    The first step of a warm-up of w steps takes 1 / w of the peak, so that no step is without effect.
    """
    rise = math.ceil(warmup * steps) if warmup > 0 else 0
    if step < rise:
        return (step + 1) / rise
    if schedule == "constant":
        return 1.0
    done = (step - rise) / max(1, steps - rise)
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its peak rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
