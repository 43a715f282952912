"""How the two factors of an update start, by name.

Every initialiser leaves ΔW = s·B·A at zero, so that an attached model computes what its base computes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

Shape = tuple[int, ...]
_CPU = torch.device("cpu")  # where the seeded stream is, whatever device torch was told to prefer
Initialiser = Callable[[Shape, Shape, bool, torch.Generator], tuple[Tensor, Tensor]]


def kaiming(shape_a: Shape, shape_b: Shape, lookup: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A uniform in ±1/√fan_in and B zero, as in the paper's code; for a lookup table B normal and A zero.

    A has shape (R, fan_in, …) and B (O, R, …). The bound is Kaiming's with a = √5: √(6 / ((1 + a²)·fan_in)).
    An embedding looks columns of A up instead of multiplying by them, so there A starts at zero and B random.
    """
    if lookup:
        return torch.zeros(shape_a, device=_CPU), torch.randn(shape_b, generator=generator, device=_CPU)
    bound = 1 / math.sqrt(math.prod(shape_a[1:]))
    a = torch.empty(shape_a, device=_CPU).uniform_(-bound, bound, generator=generator)
    return a, torch.zeros(shape_b, device=_CPU)


INITIALISERS: dict[str, Initialiser] = {"kaiming": kaiming}


def site_generator(seed: int, site: str) -> torch.Generator:
    """A random stream that depends on the seed and the site's name alone, not on which other sites there are."""
    digest = hashlib.sha256(f"{seed}:{site}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
