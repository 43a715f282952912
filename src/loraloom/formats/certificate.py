"""Proof that two adapter files do the same: ΔW of every layer, compared without forming it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraloom.errors import FormatError
from loraloom.formats.resolving import canonical
from loraloom.formats.updates import Update

EXACT = 1e-6
"""Largest relative difference of ΔW that float32 may leave."""
_ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Largest relative error of one number rounded to a dtype, in its normal range."""


@dataclass(frozen=True)
class SiteCheck:
    """One layer in both files."""

    path: str
    rank: int
    """In the file that was written; 0 where it is not in it."""
    norm: float
    """‖ΔW‖_F in the file that was read."""
    difference: float
    """‖ΔW_read − ΔW_written‖_F / ‖ΔW_read‖_F; infinite where one of the files lacks the layer."""
    approximation: float
    """What an SVD left out, relative to the ΔW that the source meant; 0 where its factors were taken as they are."""


@dataclass(frozen=True)
class Certificate:
    """What a conversion came to."""

    source: Path
    target: Path
    read: str
    """Format of the source."""
    written: str
    """Format of the target."""
    kind: str | None
    """Family of the base model."""
    dtype: str
    """Precision that was asked for, "as it is" where none was."""
    limit: float
    """Largest relative difference that is accepted."""
    sites: tuple[SiteCheck, ...]
    whole: int = 0
    """Heads, biases and other tensors carried over whole, each the same to the rounding of the dtype."""

    @property
    def holds(self) -> bool:
        return bool(self.sites) and self.largest <= self.limit

    @property
    def largest(self) -> float:
        """The largest relative difference of any layer."""
        return max((site.difference for site in self.sites), default=0.0)

    @property
    def approximation(self) -> float:
        """The largest share that an SVD left out of any layer."""
        return max((site.approximation for site in self.sites), default=0.0)

    def worst(self, count: int = 5) -> list[SiteCheck]:
        """The layers that differ most, the worst first; those that do not differ are left out."""
        differing = [site for site in self.sites if site.difference > 0 or site.approximation > 0]
        return sorted(differing, key=lambda site: (-site.difference, -site.approximation, site.path))[:count]

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        data = asdict(self) | {"source": str(self.source), "target": str(self.target)}
        return data | {"holds": self.holds, "largest": self.largest, "approximation": self.approximation}


def limit_of(dtype: torch.dtype | None) -> float:
    """What rounding both factors to a dtype may change of ΔW; at least `EXACT`.

    Numbers below a dtype's normal range lose more than that, and a certificate then does not hold.
    """
    unit = _ROUNDING.get(dtype, 0.0) if dtype is not None else 0.0
    return 2 * unit + unit * unit + EXACT


def compare_updates(read: Mapping[str, Update], written: Mapping[str, Update]) -> tuple[SiteCheck, ...]:
    """Every layer of both, in order; the names that transformers' versions give a text encoder count as one."""
    ours = {canonical(path): update for path, update in read.items()}
    theirs = {canonical(path): update for path, update in written.items()}
    return tuple(_check(path, ours.get(path), theirs.get(path)) for path in sorted(ours.keys() | theirs.keys()))


def _check(path: str, read: Update | None, written: Update | None) -> SiteCheck:
    if read is None or written is None:
        known = read or written
        assert known is not None
        norm = known.norm()  # zero where a fused layer's other parts are adapted: no difference then
        rank = 0 if written is None else written.rank
        return SiteCheck(path, rank, norm, float("inf") if norm else 0.0, known.error)
    return SiteCheck(path, written.rank, read.norm(), read.difference(written), read.error)


def check_whole(meant: Mapping[str, Tensor], found: Mapping[str, Tensor], keys: Iterable[str], limit: float) -> None:
    """Raise FormatError unless tensors that are carried over whole came back, to the rounding of the dtype."""
    for key in sorted(keys):
        one, two = meant.get(key), found.get(key)
        if one is None or two is None or one.shape != two.shape:
            raise FormatError(f"tensor {key!r} did not come back from the written file")
        if float((one.double() - two.double()).norm()) > limit * float(one.double().norm()):
            raise FormatError(f"tensor {key!r} came back changed by more than {limit:g} of its size")
