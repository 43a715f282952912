"""An adapter with fewer directions: the smallest rank per layer that keeps the asked share of its update.

    report = resize(ResizeJob(Path("style.safetensors"), energy=0.99, out=Path("small.safetensors")))

Every layer gets its best approximation of the new rank (Eckart & Young 1936), from its factors alone. What was
written is read back and compared before it gets its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from loraloom.adapters.spectrum import Spectrum
from loraloom.compose.blocks import blocks_of
from loraloom.compose.records import beside
from loraloom.compose.resize.ranks import SHARES, Choice, Preview, SiteRanks, overall_error, overall_share, resized
from loraloom.compose.sources import Sites, Source, open_adapters
from loraloom.errors import ConfigError, FormatError
from loraloom.formats.anyfile import read_any
from loraloom.formats.certificate import check_whole, compare_updates, limit_of
from loraloom.formats.draft import Draft
from loraloom.formats.peft_file import CONFIG_NAME, AdapterFile
from loraloom.formats.resolving import canonical
from loraloom.formats.tensorfile import write_together
from loraloom.formats.updates import Update, as_peft, config_of
from loraloom.formats.writing import Target
from loraloom.training.output import RECORD_NAME

_OUT_PROJ = ".base_layer.out_proj"
_BY_RANK = ("r", "lora_alpha", "rank_pattern", "alpha_pattern")
_FORMAT_OF = {"lycoris": "kohya"}
"""Format of a source → the one that its result is written in, where that is not the same."""


@dataclass(frozen=True)
class ResizeJob:
    """What is to be done. Raises ConfigError for a rank or a share that cannot be."""

    source: Path
    rank: int | None = None
    """One rank for all layers; a layer of less keeps its own."""
    energy: float | None = None
    """Share of each layer's ‖ΔW‖², above 0 and at most 1, that its rank is to keep."""
    out: Path | None = None
    """Where it is written; None writes nothing."""
    to: str | None = None
    """Format to write; None takes the source's."""
    dtype: str | None = None
    """"fp16", "bf16" or "fp32"; None keeps what the source has."""
    kind: str | None = None
    """Family of the base model; None takes the one that the file speaks of."""
    overwrite: bool = False
    dry_run: bool = False
    """Check everything that can be checked before, and write nothing."""

    def __post_init__(self) -> None:
        if not self.choice.given and self.out is not None:
            raise ConfigError(f"'{self.out}' cannot be written: say which --rank, or how much --energy to keep")

    @property
    def choice(self) -> Choice:
        """Which ranks are asked for."""
        return Choice(self.rank, self.energy)

    def target(self, source: Source) -> Target | None:
        """What is to be written, checked. Raises ConfigError, OutputError."""
        if self.out is None:
            return None
        form = self.to or _FORMAT_OF.get(source.facts.format, source.facts.format)
        target = Target(self.out, form, self.dtype, self.kind or source.facts.kind, self.overwrite)
        target.check(self.source)
        return target


@dataclass(frozen=True)
class ResizeReport:
    """What resizing comes to. `error` and `kept` of the layers are measured where something was written."""

    source: Path
    name: str
    choice: Choice
    sites: tuple[SiteRanks, ...]
    size_before: int
    """Bytes on disk."""
    whole: int = 0
    """Heads, biases and other tensors carried over whole."""
    target: Path | None = None
    """What was written; None where nothing was."""
    written: str | None = None
    """Its format."""
    size_after: int | None = None
    """Bytes on disk of the adapter's files."""

    @property
    def error(self) -> float:
        """‖ΔW − ΔW'‖ / ‖ΔW‖ over all layers."""
        return overall_error(self.sites)

    @property
    def kept(self) -> float:
        """Share of the ‖ΔW‖² of all layers that is kept."""
        return overall_share(self.sites)

    @property
    def numbers(self) -> tuple[int, int]:
        """How many numbers the factors have, before and after."""
        return sum(site.numbers_before for site in self.sites), sum(site.numbers_after for site in self.sites)

    @property
    def changed(self) -> bool:
        """Whether any layer gets another rank."""
        return any(site.before != site.after for site in self.sites)

    @property
    def previews(self) -> tuple[Preview, ...]:
        """What each of `SHARES` would come to."""
        return tuple(Preview.of(self.sites, share) for share in SHARES)

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        before, after = self.numbers
        return {
            "source": str(self.source),
            "target": None if self.target is None else str(self.target),
            "format": self.written,
            "rank": self.choice.rank,
            "energy": self.choice.energy,
            "changed": self.changed,
            "kept": self.kept,
            "error": self.error,
            "numbers": before,
            "new_numbers": after,
            "bytes": self.size_before,
            "new_bytes": self.size_after,
            "whole": self.whole,
            "previews": [preview.to_json() for preview in self.previews],
            "sites": [site.to_json() for site in self.sites],
        }


def resize(job: ResizeJob) -> ResizeReport:
    """Give an adapter other ranks; without an `out` only tell what they would come to.

    Raises FormatError for an adapter that cannot be read, cannot be resized or does not come back as it was meant,
    ConfigError and OutputError for a target that cannot be.
    """
    (source,) = open_adapters([job.source])
    target = job.target(source)
    _check_whole_keys(source)
    ranks, made = _plan(source, job.choice, keep=target is not None)
    report = ResizeReport(job.source, source.name, job.choice, tuple(ranks), source.facts.size, len(source.rest))
    if target is None:
        return report
    file = _as_file(source, made)
    files = target.files(file)  # what the format cannot hold is told before anything is written, in a dry run too
    if job.dry_run:
        return report
    sites, size = _write(source, file, target, report, dict(files))
    return replace(report, sites=sites, target=target.path, written=target.to, size_after=size)


def _check_whole_keys(source: Source) -> None:
    if not source.updates:
        raise FormatError(f"{source.path} has no low-rank update that could be resized")
    if left := [key for key in source.rest if ".lora_" in key]:
        raise FormatError(
            f"{source.path}: {left[0]!r} is a factor of a raw parameter, which cannot be resized: its rank stands "
            "for several matrices"
        )


def _plan(source: Source, choice: Choice, *, keep: bool) -> tuple[list[SiteRanks], dict[str, Update]]:
    """Every layer's ranks, and, with `keep`, its update after."""
    blocks = blocks_of(source.updates)
    together = _one_rank(source.updates, choice)
    ranks, made = [], {}
    for path in blocks:
        update = source.updates[path]
        own = choice if path not in together else Choice(rank=together[path])
        site, after = resized(update, blocks[path], own)
        ranks.append(site)
        if keep:
            made[path] = after
    return ranks, made


def _one_rank(sites: Sites, choice: Choice) -> dict[str, int]:
    """Ranks of the layers inside an attention that PEFT wraps as one: it has one rank for both, the larger."""
    found: dict[str, int] = {}
    for outer in (path for path in sites if path.endswith(_OUT_PROJ)):
        pair = [path for path in (outer.removesuffix(_OUT_PROJ), outer) if path in sites]
        spectra = [Spectrum(tuple(sites[path].product().singular_values().tolist())) for path in pair]
        rank = max(choice.of(spectrum) for spectrum in spectra)
        found |= dict.fromkeys(pair, rank) if choice.given else {}
    return found


def _as_file(source: Source, updates: Mapping[str, Update]) -> AdapterFile:
    """The adapter in PEFT's vocabulary with these updates; heads, biases and a PEFT folder's settings as they were."""
    plain = as_peft(updates.values(), source.file.path, source.file.metadata)
    if not (source.file.path / CONFIG_NAME).is_file():
        return plain
    rest: dict[str, Tensor] = {key: source.file.tensors[key] for key in source.rest}
    ranked = [update for path, update in updates.items() if not path.endswith(_OUT_PROJ)] or list(updates.values())
    if source.file.peft.use_rslora:  # alpha / √rank is to come to the same scale
        ranked = [replace(update, alpha=update.scale * math.sqrt(update.rank)) for update in ranked]
    own, new = source.file.config, config_of(ranked)
    config = {key: value for key, value in own.items() if key not in _BY_RANK}
    return replace(
        source.file,
        config=config | {key: new[key] for key in _BY_RANK if key in new},
        tensors=rest | dict(plain.tensors),
    )


def _write(
    source: Source, file: AdapterFile, target: Target, report: ResizeReport, files: dict[str, Any]
) -> tuple[tuple[SiteRanks, ...], int]:
    """Write, read back, compare, and only then give it its name. Returns the layers as measured, and the bytes."""
    with Draft(target.path) as draft:
        write_together({draft.path(name): pieces for name, pieces in files.items()})
        size = sum(draft.path(name).stat().st_size for name in files)
        again = read_any(draft.path("") if "" in files else draft.folder)
        back = Sites(again)
        _check(file, again, target)
        measured = _measured(source, back, report.sites)
        extra = {} if "" in files else _beside(source, replace(report, sites=measured))
        for name, data in extra.items():
            draft.path(name).write_bytes(data)
        draft.name([*files, *extra])
    if "" not in files and RECORD_NAME not in extra:  # of what was there before
        (target.path / RECORD_NAME).unlink(missing_ok=True)
    return measured, size


def _check(meant: AdapterFile, again: AdapterFile, target: Target) -> None:
    """Raise FormatError where what was read back is not what was meant, to the rounding of the precision."""
    one, two = Sites(meant), Sites(again)
    limit = limit_of(target.torch_dtype)
    worst = max(compare_updates(one, two), key=lambda check: check.difference)
    if worst.difference > limit:
        raise FormatError(
            f"{target.path} was not written: {worst.path!r} came back changed by {worst.difference:.1e} of its size "
            f"(limit {limit:.1e}); write fp32 or bf16 instead"
        )
    check_whole(meant.tensors, again.tensors, {*one.rest, *two.rest}, limit)


def _measured(source: Source, back: Sites, sites: tuple[SiteRanks, ...]) -> tuple[SiteRanks, ...]:
    """The layers with the error of what stands in the written file."""
    written = {canonical(path): path for path in back}
    found = []
    for site in sites:
        own = written.get(canonical(site.path))
        lost = source.updates[site.path].difference(back[own]) if own is not None else float(site.norm > 0)
        found.append(replace(site, error=lost, kept=max(0.0, 1.0 - lost * lost)))
    return tuple(found)


def _beside(source: Source, report: ResizeReport) -> dict[str, bytes]:
    """run.json and the model card for a folder."""
    asked = f"rank {report.choice.rank}" if report.choice.rank else f"{report.choice.energy:g} of ‖ΔW‖² per layer"
    before, after = report.numbers
    note = {
        "how": "resize",
        "rank": report.choice.rank,
        "energy": report.choice.energy,
        "sources": [source.name],
        "error": report.error,
        "numbers": after,
    }
    lines = [
        f"`{source.name}` at {asked}: {len(report.sites)} layers, {before:,} numbers before and {after:,} after.",
        f"Its update differs from the whole adapter's by {report.error:.2%} of its size (Frobenius norm over all "
        "layers), measured on the written file. It was not trained further, and not scored.",
    ]
    return beside([source.record] if source.record else [], note, f"{source.name}, resized", lines)
