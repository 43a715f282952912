"""One adapter file into another program's: written under a temporary name, read back, compared, and only then named."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from loraloom.errors import ConfigError, FormatError, OutputError, suggest
from loraloom.formats.anyfile import DIFFUSERS_NAME, locate_adapter, read_any
from loraloom.formats.certificate import Certificate, compare_updates, limit_of
from loraloom.formats.diffusers_write import diffusers_metadata, diffusers_tensors
from loraloom.formats.export import DTYPES, pure_updates
from loraloom.formats.facts import AdapterFacts, describe_adapter
from loraloom.formats.families import check_family
from loraloom.formats.kohya import kohya_metadata, kohya_tensors
from loraloom.formats.loralib import FOLDED, loralib_tensors
from loraloom.formats.loralib import HEADER as LORALIB
from loraloom.formats.peft_file import CONFIG_NAME, WEIGHTS_NAME, AdapterFile
from loraloom.formats.resolving import canonical, part_of
from loraloom.formats.tensorfile import Buffer, tensor_pieces, write_together
from loraloom.formats.updates import as_peft, in_dtype, updates_of

FORMATS = ("kohya", "diffusers", "peft", "loralib")
"""What can be written."""
Files = dict[str, Iterable[Buffer]]
"""Path below the target → its bytes; "" is the target itself."""


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
        if self.to not in FORMATS:
            raise ConfigError(f"--to {self.to!r} is not one of {', '.join(FORMATS)}{suggest(self.to, FORMATS)}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(f"--dtype {self.dtype!r} is not one of {', '.join(DTYPES)}{suggest(self.dtype, DTYPES)}")
        if self.kind is not None:
            check_family(self.kind)

    @property
    def torch_dtype(self) -> torch.dtype | None:
        return None if self.dtype is None else DTYPES[self.dtype]


def convert(job: Conversion) -> Certificate:
    """Convert and compare. The target exists afterwards only where the certificate holds.

    Raises FormatError for a source that cannot be read in full or that the target's format cannot hold, OutputError
    for a target that is there already or cannot be written.
    """
    facts = describe_adapter(job.source)
    kind = job.kind or facts.kind
    if job.to == "kohya" and kind is None:
        raise ConfigError(f"{job.source} does not tell which base it is for: name it with --base-kind (sd1, sdxl …)")
    target = _target(job)
    file = read_any(job.source, rank=job.rank, alpha=job.alpha)
    files = _files(job, file, kind)
    with _beside(target) as draft:
        write_together({draft / (name or target.name): pieces for name, pieces in files.items()})
        written = draft / target.name if "" in files else draft
        certificate = _compare(job, target, file, written, facts, kind)
        if certificate.holds:
            _name(draft, target, files)
    return certificate


# -- what to write ------------------------------------------------------------------------------------


def _files(job: Conversion, file: AdapterFile, kind: str | None) -> Files:
    if job.to == "peft":
        return _peft_files(file, job.torch_dtype)
    updates = pure_updates(file)
    if job.to == "kohya":
        assert kind is not None
        tensors = kohya_tensors(updates.values(), kind, job.torch_dtype)
        return {"": tensor_pieces(tensors, kohya_metadata(tensors, kind, _kept(file.metadata)))}
    if job.to == "loralib":
        header = {"format": "pt", LORALIB: FOLDED}
        return {"": tensor_pieces(loralib_tensors(updates.values(), job.torch_dtype), header)}
    tensors = diffusers_tensors(updates.values(), kind, job.torch_dtype)
    name = "" if job.target.suffix == ".safetensors" else DIFFUSERS_NAME
    return {name: tensor_pieces(tensors, diffusers_metadata(kind, _kept(file.metadata)))}


_PASSED_ON = ("ss_", "modelspec.", "sshs_")
_REWRITTEN = ("ss_network_", "sshs_", "modelspec.architecture", "ss_base_model_version", "ss_v2")
"""Fields of the header that tell of the file itself, which is another one now."""


def _kept(metadata: Mapping[str, str]) -> dict[str, str]:
    """What a header tells of the training, which holds for the new file too."""
    return {
        key: value for key, value in metadata.items() if key.startswith(_PASSED_ON) and not key.startswith(_REWRITTEN)
    }


def _peft_files(file: AdapterFile, dtype: torch.dtype | None) -> Files:
    """PEFT's two files; of a pipeline a folder per part, since PEFT loads one model at a time."""
    updates, rest = updates_of(file)
    parts = {part_of(path) for path in updates}
    if rest or "" in parts or (file.path / CONFIG_NAME).is_file():
        tensors = {key: _cast(key, tensor, dtype) for key, tensor in file.tensors.items()}
        return _pair("", replace(file, tensors=tensors))
    files: Files = {}
    for part in sorted(parts):
        own = [
            replace(update, path=canonical(path).removeprefix(f"{part}."))
            for path, update in updates.items()
            if part_of(path) == part
        ]
        own = own if dtype is None else [in_dtype(update, dtype) for update in own]
        files |= _pair(f"{part}/", as_peft(own, file.path, {"format": "pt"} | _kept(file.metadata)))
    return files


def _cast(key: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor
    if tensor.numel() and float(tensor.abs().max()) > torch.finfo(dtype).max:
        raise FormatError(f"tensor {key!r} holds values beyond the range of {str(dtype).removeprefix('torch.')}")
    return tensor.to(dtype)


def _pair(folder: str, file: AdapterFile) -> Files:
    text = json.dumps(dict(file.config), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return {
        f"{folder}{WEIGHTS_NAME}": tensor_pieces(file.tensors, file.metadata),
        f"{folder}{CONFIG_NAME}": [text.encode("utf-8")],
    }


# -- where to write -----------------------------------------------------------------------------------


def _target(job: Conversion) -> Path:
    """The target, checked. A source is never written over: it would be gone where the certificate does not hold."""
    target = job.target
    if job.to in ("kohya", "loralib") and target.suffix != ".safetensors":
        raise ConfigError(f"'{target}': the name of a {job.to} file must end in .safetensors")
    if job.to == "peft" and target.suffix == ".safetensors":
        raise ConfigError(f"'{target}': PEFT's adapters are folders; choose a name without .safetensors")
    place = target / DIFFUSERS_NAME if job.to == "diffusers" and target.suffix != ".safetensors" else target
    if place.exists() and place.resolve() == locate_adapter(job.source).resolve():
        raise OutputError(f"'{place}' is the adapter that is read: choose another name")
    taken = place.is_file() or (place.is_dir() and any(place.iterdir()))
    if taken and not job.overwrite:
        raise OutputError(f"'{place}' is there already: choose another name, or say --overwrite")
    if place.is_file() != (place.suffix == ".safetensors") and place.exists():
        raise OutputError(f"'{place}' is a {'file' if place.is_file() else 'folder'}, and the other is to be written")
    return target


class _beside:
    """A temporary folder beside the target, on the same disk, gone at the end."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __enter__(self) -> Path:
        parent = self.target.absolute().parent
        self._made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        try:
            parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.", dir=parent))
        except OSError as error:
            raise OutputError(f"cannot write {self.target}: {error.strerror or error}") from None
        return self._folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        for folder in self._made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _name(draft: Path, target: Path, files: Files) -> None:
    """Give the files of a draft their names."""
    try:
        for name in files:
            place = target / name if name else target
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(draft / (name or target.name), place)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from None


# -- the proof ----------------------------------------------------------------------------------------


def _compare(
    job: Conversion, target: Path, file: AdapterFile, written: Path, facts: AdapterFacts, kind: str | None
) -> Certificate:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = read_any(written)
    ours, rest = updates_of(file)
    theirs, rest_again = updates_of(again)
    limit = limit_of(job.torch_dtype)
    _check_whole(file, rest, again, rest_again, limit)
    read = {path: replace(update, error=file.errors.get(path, 0.0)) for path, update in ours.items()}
    sites = compare_updates(read, theirs)
    dtype = job.dtype or "as it is"
    return Certificate(job.source, target, facts.format, job.to, kind, dtype, limit, sites, len(rest))


def _check_whole(file: AdapterFile, rest: list[str], again: AdapterFile, found: list[str], limit: float) -> None:
    """Tensors that are carried over whole come back, to the rounding of the dtype."""
    for key in sorted({*rest, *found}):
        one, two = file.tensors.get(key), again.tensors.get(key)
        if one is None or two is None or one.shape != two.shape:
            raise FormatError(f"tensor {key!r} did not come back from the written file")
        if float((one.double() - two.double()).norm()) > limit * float(one.double().norm()):
            raise FormatError(f"tensor {key!r} came back changed by more than {limit:g} of its size")
