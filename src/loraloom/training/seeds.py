"""Randomness that a resumed run finds again: the generators are set at every step from its number."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_MASK = (1 << 64) - 1


def step_seed(seed: int, step: int, process: int = 0) -> int:
    """A 32-bit seed for one step of one process: SplitMix64 over the three numbers (Steele et al. 2014)."""
    state = 0
    for number in (seed, step, process):
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 32


def seed_generators(seed: int, device: torch.device) -> None:
    """Set torch's generator of the CPU and of `device`, numpy's and Python's; a few microseconds.

    `torch.manual_seed` visits every kind of device and takes a hundred times as long.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Give the caller back the generators' states, and torch's choice of algorithms, as they were.

    Inside, torch takes deterministic algorithms, so that the same seed gives the same bytes.
    """
    python, numpy = random.getstate(), np.random.get_state()
    # Not torch.use_deterministic_algorithms: that imports the compiler, which takes three seconds.
    deterministic = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    devices = [device] if device.type == "cuda" else []
    if devices:
        # cuBLAS reads it at its first use, and only with it gives the same bits each time.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with torch.random.fork_rng(devices):
        torch.set_deterministic_debug_mode("warn")
        # Filling every new tensor with NaN shows faults and costs a pass over memory.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(deterministic)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
            random.setstate(python)
            np.random.set_state(numpy)
