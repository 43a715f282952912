"""What an extraction came to: layer by layer, what was lost, and what could not be carried."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SiteShare:
    """One layer that got factors."""

    path: str
    kind: str
    shape: tuple[int, ...]
    """Of the weight."""
    rank: int
    norm: float
    """‖ΔW‖_F."""
    change: float
    """‖ΔW‖ / ‖W‖ of the base."""
    left_out: float
    """‖ΔW − B·A‖ / ‖ΔW‖, the factors as they are written."""

    @property
    def lost(self) -> float:
        """‖ΔW − B·A‖²."""
        return (self.left_out * self.norm) ** 2


@dataclass(frozen=True)
class OtherTensor:
    """One tensor that changed and got no factors."""

    path: str
    norm: float
    """‖Δ‖."""
    change: float
    """‖Δ‖ / ‖base‖."""
    kept: bool
    """Whether it is in the adapter whole."""
    reason: str
    """Why it got no factors: "a norm", "an embedding" …"""


@dataclass(frozen=True)
class NewTensor:
    """One tensor that the base does not have, or has in another shape."""

    path: str
    shape: tuple[int, ...]
    base_shape: tuple[int, ...] | None
    """None where the base does not have it."""
    kept: bool


@dataclass(frozen=True)
class ExtractReport:
    """An extraction."""

    tuned: str
    base: str
    target: Path
    format: str
    sites: tuple[SiteShare, ...]
    """Worst first: the largest share lost."""
    others: tuple[OtherTensor, ...]
    """The largest change first."""
    new: tuple[NewTensor, ...]
    missing: tuple[str, ...]
    """Keys of what the base alone has."""
    compared: int
    """Tensors that are in both checkpoints."""
    unchanged: int
    """Of these, those that are the same."""
    size: int
    """Bytes of the adapter's tensors."""
    checkpoint_size: int
    """Bytes of the tuned checkpoint."""
    written: bool
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """‖all differences of tensors that both have‖²."""
        return math.fsum([*(site.norm**2 for site in self.sites), *(other.norm**2 for other in self.others)])

    @property
    def carried(self) -> float:
        """Share of `total` that the adapter carries."""
        lost = [site.lost for site in self.sites] + [other.norm**2 for other in self.others if not other.kept]
        return max(1.0 - math.fsum(lost) / self.total, 0.0) if self.total else 1.0

    @property
    def carried_by_sites(self) -> float:
        """Share of the squared change of the layers with factors that these carry."""
        whole = math.fsum(site.norm**2 for site in self.sites)
        return max(1.0 - math.fsum(site.lost for site in self.sites) / whole, 0.0) if whole else 1.0

    @property
    def lost(self) -> tuple[OtherTensor, ...]:
        """Changed tensors that are not in the adapter."""
        return tuple(other for other in self.others if not other.kept)

    def to_json(self) -> dict[str, Any]:
        """As JSON data; a change of what was zero in the base, which is no number, is null."""
        data = asdict(self) | {"target": str(self.target)}
        for entry in (*data["sites"], *data["others"]):
            entry["change"] = entry["change"] if math.isfinite(entry["change"]) else None
        told = {"carried": self.carried, "carried_by_sites": self.carried_by_sites}
        return data | told


def sorted_sites(sites: Iterable[SiteShare]) -> tuple[SiteShare, ...]:
    """Worst first."""
    return tuple(sorted(sites, key=lambda site: (-site.left_out, -site.norm, site.path)))


def sorted_others(others: Iterable[OtherTensor]) -> tuple[OtherTensor, ...]:
    """Lost before kept, the largest first."""
    return tuple(sorted(others, key=lambda other: (other.kept, -other.norm, other.path)))
