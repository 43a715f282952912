"""Forward pass with one adapter, three weighted ones, and eight routed per sample, against the base alone.

12 layers of width 768, rank 16, 16 × 64 tokens, no gradients; PEFT is timed beside where it is installed.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from bench.models import encoder
from bench.pairs import ratio, take_turns
from loraloom.adapters import AdapterSet, attach

BATCH, POSITIONS, WIDTH, RANK = 16, 64, 768, 16


def attached(model: nn.Module, count: int) -> AdapterSet:
    """The model with `count` adapters whose factors are all non-zero."""
    for index in range(count):
        adapters = attach(model, name=f"a{index}", rank=RANK, seed=index)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_(std=0.02)
    return adapters


@torch.no_grad()
def measure(rounds: int = 6) -> dict[str, float]:
    """Ratios to the base's forward, by case."""
    x = torch.randn(BATCH, POSITIONS, WIDTH)
    bare = encoder().eval()
    sides: dict[str, Callable[[], Any]] = {"base": lambda: bare(inputs_embeds=x)}
    model = copy.deepcopy(bare)
    adapters = attached(model, 8)
    routes = [f"a{row % 8}" for row in range(BATCH)]

    def with_mix(mix: dict[str, float]) -> None:
        adapters.activate(mix)
        model(inputs_embeds=x)

    def routed() -> None:
        adapters.route(routes)
        model(inputs_embeds=x)

    sides["one adapter"] = lambda: with_mix({"a0": 1.0})
    sides["three weighted"] = lambda: with_mix({"a0": 0.7, "a1": 0.4, "a2": -0.2})
    sides["eight routed per sample"] = routed
    if find_spec("peft") is not None:
        sides |= peft_sides(bare, x, routes)
    timings = take_turns(sides, rounds=rounds)
    return {name: ratio(timings, name, "base") for name in sides if name != "base"}


def peft_sides(bare: nn.Module, x: torch.Tensor, routes: list[str]) -> dict[str, Callable[[], Any]]:
    """The same three in PEFT: it has no weights at run time, so its three adapters act at weight 1."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(copy.deepcopy(bare), config, adapter_name="a0").eval()
    for index in range(1, 8):
        model.add_adapter(f"a{index}", config)

    def active(names: list[str]) -> None:
        model.base_model.set_adapter(names)
        model(inputs_embeds=x)

    def routed() -> None:
        model.base_model.set_adapter(["a0"])
        model(inputs_embeds=x, adapter_names=routes)

    return {
        "PEFT one adapter": lambda: active(["a0"]),
        "PEFT three": lambda: active(["a0", "a1", "a2"]),
        "PEFT eight routed": routed,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    for name, value in measure(parser.parse_args().rounds).items():
        print(f"{value:6.3f}  {name}")
