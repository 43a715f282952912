"""An adapter from two full checkpoints: the low-rank part of their difference, and the share that is lost.

The tensors are read, subtracted and cut one at a time, so that the memory is that of the largest of them; of each
only the factors stay. The written file is read back, and held against the differences on random vectors, before it
gets its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loraloom.adapters.layers import layer_kind
from loraloom.adapters.spec import ALL_LINEAR
from loraloom.adapters.targets import is_output_head, matches, no_match
from loraloom.compose.checkpoint import Checkpoint
from loraloom.compose.extract.differences import Change, Cut, Factors, change_of, factors_of
from loraloom.compose.extract.keeping import Keeper
from loraloom.compose.extract.pairing import Pair, Pairing, pair_checkpoints, shortened
from loraloom.compose.extract.report import (
    ExtractReport,
    OtherTensor,
    SiteShare,
    sorted_others,
    sorted_sites,
)
from loraloom.compose.extract.writing import Extracted, write_extracted
from loraloom.errors import ConfigError, OutputError
from loraloom.formats.export import DTYPES
from loraloom.formats.writing import Target
from loraloom.tasks.diffusion.places import find_base
from loraloom.tasks.models.bases import fingerprint
from loraloom.training.output import RECORD_NAME
from loraloom.training.restore import read_record

LINEAR = ("linear", "conv1d-transposed")
DEFAULT_KINDS = (*LINEAR, "conv1d", "conv2d", "conv3d")
"""Kinds of layers that get factors where no targets are named: all but embeddings."""


@dataclass(frozen=True)
class ExtractJob:
    """What is to be extracted, and how. Raises ConfigError for settings that cannot be."""

    tuned: str
    """The checkpoint with the change: a folder, a .safetensors file, a run of `loraloom train --method full`."""
    base: str
    """The one without."""
    out: Path
    rank: int | None = None
    """Of every layer, at most what its weight can use."""
    energy: float | None = None
    """Share of ‖ΔW‖² that every layer keeps, by the smallest rank that does; `rank` is then the largest allowed."""
    targets: tuple[str, ...] | None = None
    """Patterns of the layers that get factors; None takes every linear layer and convolution."""
    keep_others: bool = False
    """Whether what takes no factors (norms, biases, new heads) is carried whole."""
    dtype: str = "fp32"
    """"fp32", "bf16" or "fp16": of the factors."""
    to: str = "peft"
    """Format to write."""
    kind: str | None = None
    """Family of the base, for kohya's names."""
    overwrite: bool = False
    dry_run: bool = False
    """Whether to stop before any tensor is read."""
    seed: int = 0
    progress: Callable[[int, int], None] | None = None
    """Told how many of how many numbers have been compared."""

    def __post_init__(self) -> None:
        if self.rank is None and self.energy is None:
            raise ConfigError("say --rank, or --energy, the share of each layer's change to keep")
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"--rank is {self.rank}, expected a whole number of at least 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ConfigError(f"--energy is {self.energy:g}, expected a share above 0 and up to 1, such as 0.99")
        if self.targets is not None and not self.targets:
            raise ConfigError("--targets names no pattern")
        if self.keep_others and self.to != "peft":
            raise ConfigError(f"--keep-others needs --to peft: {self.to} has no word for what is carried whole")

    @property
    def target(self) -> Target:
        """What is written, and where."""
        return Target(self.out, self.to, self.dtype, self.kind, self.overwrite)

    @property
    def cut(self) -> Cut:
        """How every layer is cut."""
        return Cut(self.rank, self.energy, DTYPES[self.dtype])


def extract(job: ExtractJob) -> ExtractReport:
    """Make the adapter and write it; with `dry_run` only plan it.

    Raises ConfigError where nothing differs, or nothing that could be carried; FormatError and BaseModelError for
    checkpoints that cannot be used or do not belong together; OutputError where the target is taken.
    """
    target = job.target
    target.check()
    tuned, base = Checkpoint.open(job.tuned), Checkpoint.open(job.base)
    _check_place(job, tuned, base)
    pairing = pair_checkpoints(tuned, base)
    chosen = chosen_layers(pairing, job.targets)
    if job.dry_run:
        return _planned(job, pairing, chosen)
    record, told = record_of_run(tuned, base)
    keeper = Keeper(pairing, job.keep_others, chosen, keep_heads=record is not None)
    streamed = _Streamed(job, pairing, chosen, keeper)
    streamed.run()
    if not streamed.changed and not keeper.new:
        raise ConfigError(f"nothing differs: the {len(pairing.pairs)} tensors of {job.tuned} are those of {job.base}")
    kept = keeper.kept()
    factors = {path: one for path, one in streamed.factors.items() if not kept.covers(path)}
    others = [replace(other, kept=kept.holds(other.path)) for other in streamed.others]
    others += [_whole(site) for path, site in streamed.sites.items() if path not in factors]
    if not factors and not kept:
        raise ConfigError(_nothing(streamed, keeper, job))
    extracted = Extracted(job.tuned, job.base, pairing, factors, kept, record)
    report = ExtractReport(
        tuned=job.tuned,
        base=job.base,
        target=job.out,
        format=job.to,
        sites=sorted_sites(site for path, site in streamed.sites.items() if path in factors),
        others=sorted_others(others),
        new=keeper.new_tensors(kept),
        missing=pairing.missing,
        compared=len(pairing.pairs),
        unchanged=len(pairing.pairs) - streamed.changed,
        size=0,
        checkpoint_size=tuned.size,
        written=True,
        notes=(*pairing.notes, *_dtype_notes(pairing), *keeper.notes, *told, *_short_of(job, streamed.sites)),
    )
    return write_extracted(extracted, target, job.cut, report)


def record_of_run(tuned: Checkpoint, base: Checkpoint) -> tuple[dict[str, Any] | None, list[str]]:
    """The run.json of a model that was trained in full, as that of an adapter over its base; and what is to be noted.

    None where there is none, or where BASE is not what the run began with: an adapter's record must name its base.
    """
    if not (tuned.path / RECORD_NAME).is_file():
        return None, []
    record = read_record(tuned.path)
    if record["method"] != "full":
        return None, []
    files = find_base(str(base.path)).weights if base.form == "pipeline" else sorted(base.shards)
    if fingerprint(list(files)) != record["base"]["fingerprint"]:
        return None, [
            f"{tuned.name} was trained from {record['base']['name']!r}, whose weights are not those of {base.name}: "
            "no run.json is written, so that evaluate and predict do not open the adapter"
        ]
    return record | {"method": "lora", "settings": {**record["settings"], "method": "lora"}}, []


def chosen_layers(pairing: Pairing, targets: tuple[str, ...] | None) -> dict[str, Pair]:
    """Path of every layer that is to get factors → its weight.

    Raises ConfigError for a pattern that matches no layer which can carry an update.
    """
    layers = {pair.module: pair for pair in pairing.pairs if pair.kind is not None}
    if targets is None:
        return {path: pair for path, pair in layers.items() if pair.kind in DEFAULT_KINDS}
    inner = _inner_linear(pairing) if ALL_LINEAR in targets else frozenset()
    chosen: dict[str, Pair] = {}
    for pattern in targets:
        found = [path for path in layers if (path in inner if pattern == ALL_LINEAR else matches(pattern, path))]
        if not found:
            raise ConfigError(f"--targets: {no_match(pattern, list(layers), 'layer that can carry an update')}")
        chosen |= {path: layers[path] for path in found}
    return {path: pair for path, pair in layers.items() if path in chosen}


def _inner_linear(pairing: Pairing) -> frozenset[str]:
    """Linear layers but output heads, as training means "all-linear"."""
    return frozenset(
        model.prefix + path
        for model in pairing.models
        for path, module in model.skeleton.model.named_modules()
        if layer_kind(module) in LINEAR and not is_output_head(path, module, model.skeleton.model)
    )


class _Streamed:
    """Every pair of tensors read, subtracted and cut, one after the other."""

    def __init__(self, job: ExtractJob, pairing: Pairing, chosen: dict[str, Pair], keeper: Keeper) -> None:
        self.job, self.pairing, self.chosen, self.keeper = job, pairing, chosen, keeper
        self.factors: dict[str, Factors] = {}
        self.sites: dict[str, SiteShare] = {}
        self.others: list[OtherTensor] = []
        self.changed = 0

    def run(self) -> None:
        """Read all; the order is that of the tuned checkpoint's files."""
        total, done = sum(math.prod(pair.shape) for pair in self.pairing.pairs), 0
        for number, pair in enumerate(self.pairing.pairs):
            self._compare(pair, self.job.seed + number)
            done += math.prod(pair.shape)
            if self.job.progress is not None:
                self.job.progress(done, total)

    def _compare(self, pair: Pair, seed: int) -> None:
        change = change_of(pair, self.pairing)  # gone at the end, before the next is read
        if change is not None:
            self.changed += 1
            self._take(pair, change, seed)

    def _take(self, pair: Pair, change: Change, seed: int) -> None:
        if self._is_site(pair):
            factors = factors_of(pair, change, self.job.cut, seed)
            self.factors[pair.module] = factors
            self.sites[pair.module] = SiteShare(
                pair.module, str(pair.kind), pair.shape, factors.rank, change.norm, change.relative, factors.left_out
            )
            return
        reason = self.keeper.changed(pair)
        self.others.append(OtherTensor(pair.path, change.norm, change.relative, False, reason))

    def _is_site(self, pair: Pair) -> bool:
        own = self.chosen.get(pair.module)
        return own is not None and own.path == pair.path and self.job.cut.rank_of(pair) > 0


def _whole(site: SiteShare) -> OtherTensor:
    """A layer inside a module that is carried whole, and needs no factors."""
    return OtherTensor(f"{site.path}.weight", site.norm, site.change, True, "inside a module that is carried whole")


def _nothing(streamed: _Streamed, keeper: Keeper, job: ExtractJob) -> str:
    """Why there is nothing to write."""
    names = shortened([other.path for other in streamed.others] or list(keeper.new))
    hint = "" if job.keep_others else "; --keep-others carries norms, biases and new heads whole"
    if any(other.reason.startswith("not among") for other in streamed.others):
        hint += "; --targets names further layers ('*' is all)"
    return f"no layer that could carry an update differs, only {names}{hint}"


def _check_place(job: ExtractJob, *checkpoints: Checkpoint) -> None:
    for checkpoint in checkpoints:
        if job.out.resolve() == checkpoint.path.resolve():
            raise OutputError(f"'{job.out}' is the checkpoint that is read: choose another name")


def _dtype_notes(pairing: Pairing) -> Iterator[str]:
    """Said where the checkpoints are in different dtypes, whose rounding is then a part of the difference."""
    found = {(pairing.tuned.tensors.dtype(pair.tuned), pairing.base.tensors.dtype(pair.base)) for pair in pairing.pairs}
    for tuned, base in sorted(found, key=str):
        if tuned != base:
            one, other = (str(dtype).removeprefix("torch.") for dtype in (tuned, base))
            yield f"the tuned checkpoint holds {one} where the base holds {other}: rounding is a part of what differs"


def _short_of(job: ExtractJob, sites: dict[str, SiteShare]) -> Iterator[str]:
    """Said where the largest rank that is allowed does not keep the share that is asked for."""
    if job.energy is None:
        return
    short = [path for path, site in sites.items() if 1 - site.left_out**2 < job.energy - 1e-6]
    if short:
        yield (
            f"{len(short)} of {len(sites)} layers keep less than {100 * job.energy:g} % at the largest rank that is "
            f"allowed, e.g. {short[0]}"
        )


def _planned(job: ExtractJob, pairing: Pairing, chosen: dict[str, Pair]) -> ExtractReport:
    """What would be compared, from the headers alone."""
    rank = job.rank or 0
    sites = [
        SiteShare(path, str(pair.kind), pair.shape, job.cut.rank_of(pair) if rank else 0, 0.0, 0.0, 0.0)
        for path, pair in chosen.items()
    ]
    keeper = Keeper(pairing, job.keep_others, chosen)
    size = sum(pair.factor_size(rank) for pair in chosen.values()) * job.cut.dtype.itemsize
    return ExtractReport(
        tuned=job.tuned,
        base=job.base,
        target=job.out,
        format=job.to,
        sites=tuple(sites),
        others=(),
        new=keeper.new_tensors(keeper.kept()),
        missing=pairing.missing,
        compared=len(pairing.pairs),
        unchanged=0,
        size=size,
        checkpoint_size=pairing.tuned.size,
        written=False,
        notes=(*pairing.notes, *_dtype_notes(pairing), *keeper.notes),
    )


__all__ = ["ExtractJob", "ExtractReport", "chosen_layers", "extract"]
