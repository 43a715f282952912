"""How well a model denoises a batch: what it says, and how far that is from what it should say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from loraloom.errors import DataError
from loraloom.tasks.diffusion.objective import noised, target
from loraloom.tasks.intervals import Z_95

Group = dict[str, Any]
"""Pictures of one size with conditions, noise and times; see `Bench`."""


class Denoised(NamedTuple):
    """How well the model denoises one picture."""

    loss: float
    """Mean squared error over latents, and over the fixed times."""
    by_time: tuple[float, ...]
    """The same at each of the fixed times, least noise first."""


def said(model: nn.Module, group: Group, number: int) -> Tensor:
    """What the denoiser says (B, C, h, w) at the `number`-th of a group's times."""
    noise, signal, spread = (group[name][number] for name in ("noise", "signal", "spread"))
    noisy = noised(group["latents"], noise, signal, spread)
    found: Tensor = model(noisy, group["times"][number], group["conditions"])
    return found


def errors(model: nn.Module, group: Group) -> Iterator[Tensor]:
    """Squared errors (B,) of a group at each of its times, a mean over the latents of each picture."""
    for number in range(len(group["noise"])):
        noise, signal, spread = (group[name][number] for name in ("noise", "signal", "spread"))
        wanted = target(group["prediction"], group["latents"], noise, signal, spread)
        yield (said(model, group, number) - wanted).square().flatten(1).mean(1)


def weighted_loss(model: nn.Module, groups: Sequence[Group]) -> Tensor:
    """The errors of all groups as they are weighted, summed over pictures: a float32 scalar."""
    sums = [
        (weights * found).sum() / len(group["noise"])
        for group in groups
        for found, weights in zip(errors(model, group), group["weights"], strict=True)
    ]
    return torch.stack(sums).sum()


def denoised(model: nn.Module, groups: Sequence[Group]) -> list[Denoised]:
    """How well each picture of the groups is denoised, unweighted, in the order of the batch."""
    found: dict[int, Denoised] = {}
    for group in groups:
        by_time = torch.stack(list(errors(model, group)), dim=1).tolist()
        for row, losses in zip(group["rows"].tolist(), by_time, strict=True):
            found[row] = Denoised(math.fsum(losses) / len(losses), tuple(losses))
    return [found[row] for row in range(len(found))]


def score_losses(losses: Sequence[float]) -> dict[str, float]:
    """The mean "loss", its 95 % interval by the normal distribution where there are several, and "n".

    Raises DataError when there is nothing to score.
    """
    if not losses:
        raise DataError("evaluation: there are no pictures to score")
    count, mean = len(losses), math.fsum(losses) / len(losses)
    scores = {"loss": mean}
    if count > 1:
        spread = math.sqrt(math.fsum((loss - mean) ** 2 for loss in losses) / (count - 1) / count)
        scores |= {"loss_low": mean - Z_95 * spread, "loss_high": mean + Z_95 * spread}
    return {**scores, "n": float(count)}
