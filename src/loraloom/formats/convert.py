"""One adapter file into another program's: written under a temporary name, read back, compared, and only then named."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from loraloom.formats.anyfile import read_any
from loraloom.formats.certificate import Certificate, check_whole, compare_updates, limit_of
from loraloom.formats.draft import Draft
from loraloom.formats.facts import AdapterFacts, describe_adapter
from loraloom.formats.peft_file import AdapterFile
from loraloom.formats.tensorfile import write_together
from loraloom.formats.updates import updates_of
from loraloom.formats.writing import Target


@dataclass(frozen=True)
class Conversion:
    """What is to be done. Raises ConfigError for a format, a precision or a family that there is not."""

    source: Path
    target: Path
    to: str
    """One of `FORMATS`."""
    dtype: str | None = None
    """"fp16", "bf16" or "fp32"; None keeps what the source has."""
    kind: str | None = None
    """Family of the base model; None takes the one that the file speaks of."""
    rank: int | None = None
    """Largest rank of what is no plain LoRA in the source; None keeps all of it."""
    alpha: float | None = None
    """What a loralib file was trained with."""
    overwrite: bool = False

    def __post_init__(self) -> None:
        _ = self.outlet

    @property
    def outlet(self) -> Target:
        """What is to be written."""
        return Target(self.target, self.to, self.dtype, self.kind, self.overwrite)


def convert(job: Conversion) -> Certificate:
    """Convert and compare. The target exists afterwards only where the certificate holds.

    Raises FormatError for a source that cannot be read in full or that the target's format cannot hold, OutputError
    for a target that is there already or cannot be written.
    """
    facts = describe_adapter(job.source)
    target = replace(job.outlet, kind=job.kind or facts.kind)
    target.check(job.source)
    file = read_any(job.source, rank=job.rank, alpha=job.alpha)
    files = target.files(file)
    with Draft(job.target) as draft:
        write_together({draft.path(name): pieces for name, pieces in files.items()})
        certificate = _compare(job.source, target, file, draft.path("") if "" in files else draft.folder, facts)
        if certificate.holds:
            draft.name(files)
    return certificate


def _compare(source: Path, target: Target, file: AdapterFile, written: Path, facts: AdapterFacts) -> Certificate:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = read_any(written)
    ours, rest = updates_of(file, magnitudes=True)
    theirs, rest_again = updates_of(again, magnitudes=True)
    limit = limit_of(target.torch_dtype)
    check_whole(file.tensors, again.tensors, {*rest, *rest_again}, limit)
    read = {path: replace(update, error=file.errors.get(path, 0.0)) for path, update in ours.items()}
    sites = compare_updates(read, theirs)
    dtype = target.dtype or "as it is"
    return Certificate(source, target.path, facts.format, target.to, target.kind, dtype, limit, sites, len(rest))
