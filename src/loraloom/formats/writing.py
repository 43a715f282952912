"""An adapter in PEFT's vocabulary, written as a file or folder of any of the four formats."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from loraloom.errors import ConfigError, FormatError, OutputError, one_error, suggest
from loraloom.formats.anyfile import DIFFUSERS_NAME, locate_adapter
from loraloom.formats.diffusers_write import diffusers_metadata, diffusers_tensors
from loraloom.formats.draft import Draft
from loraloom.formats.export import DTYPES, pure_updates
from loraloom.formats.families import check_family
from loraloom.formats.kohya import kohya_metadata, kohya_tensors
from loraloom.formats.loralib import FOLDED, loralib_tensors
from loraloom.formats.loralib import HEADER as LORALIB
from loraloom.formats.peft_file import CONFIG_NAME, WEIGHTS_NAME, AdapterFile
from loraloom.formats.resolving import canonical, part_of
from loraloom.formats.tensorfile import Buffer, tensor_pieces, write_together
from loraloom.formats.updates import as_peft, in_dtype, some_with_magnitudes, updates_of

FORMATS = ("kohya", "diffusers", "peft", "loralib")
"""What can be written."""
Files = dict[str, Iterable[Buffer]]
"""Path below the target → its bytes; "" is the target itself."""


@dataclass(frozen=True)
class Target:
    """What is to be written, and where. Raises ConfigError for a format, a precision or a family that there is not,
    and for a name that the format cannot have."""

    path: Path
    to: str
    """One of `FORMATS`."""
    dtype: str | None = None
    """"fp16", "bf16" or "fp32"; None keeps what the adapter has."""
    kind: str | None = None
    """Family of the base model, which decides kohya's names."""
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.to not in FORMATS:
            raise ConfigError(f"--to {self.to!r} is not one of {', '.join(FORMATS)}{suggest(self.to, FORMATS)}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(f"--dtype {self.dtype!r} is not one of {', '.join(DTYPES)}{suggest(self.dtype, DTYPES)}")
        if self.kind is not None:
            check_family(self.kind)
        if self.to in ("kohya", "loralib") and self.path.suffix != ".safetensors":
            raise ConfigError(f"'{self.path}': the name of a {self.to} file must end in .safetensors")
        if self.to == "peft" and self.path.suffix == ".safetensors":
            raise ConfigError(f"'{self.path}': PEFT's adapters are folders; choose a name without .safetensors")

    @property
    def torch_dtype(self) -> torch.dtype | None:
        return None if self.dtype is None else DTYPES[self.dtype]

    def check(self, *sources: Path) -> None:
        """Whether it may be written, before any work is done. Raises OutputError where something is in the way.

        A source is never written over: it would be gone where the work fails.
        """
        path = self.path
        place = path / DIFFUSERS_NAME if self.to == "diffusers" and path.suffix != ".safetensors" else path
        if place.exists() and any(place.resolve() == locate_adapter(source).resolve() for source in sources):
            raise OutputError(f"'{place}' is the adapter that is read: choose another name")
        taken = place.is_file() or (place.is_dir() and any(place.iterdir()))
        if taken and not self.overwrite:
            raise OutputError(f"'{place}' is there already: choose another name, or say --overwrite")
        if place.is_file() != (place.suffix == ".safetensors") and place.exists():
            raise OutputError(
                f"'{place}' is a {'file' if place.is_file() else 'folder'}, and the other is to be written"
            )

    def files(self, file: AdapterFile) -> Files:
        """The adapter as this format's files. Raises FormatError that names what the format cannot hold."""
        if self.to == "peft":
            return _peft_files(file, self.torch_dtype)
        updates = pure_updates(file)
        if self.to == "loralib":
            header = {"format": "pt", LORALIB: FOLDED}
            return {"": tensor_pieces(loralib_tensors(updates.values(), self.torch_dtype), header)}
        if self.to == "diffusers":
            tensors = diffusers_tensors(updates.values(), self.kind, self.torch_dtype)
            name = "" if self.path.suffix == ".safetensors" else DIFFUSERS_NAME
            return {name: tensor_pieces(tensors, diffusers_metadata(self.kind, kept_metadata(file.metadata)))}
        if self.kind is None:
            raise ConfigError(f"{file.path} does not tell which base it is for: name it with --base-kind (sd1, sdxl …)")
        tensors = kohya_tensors(updates.values(), self.kind, self.torch_dtype)
        return {"": tensor_pieces(tensors, kohya_metadata(tensors, self.kind, kept_metadata(file.metadata)))}


def write_adapter(file: AdapterFile, target: Target, beside: Mapping[str, bytes] | None = None) -> None:
    """Write an adapter, and with it further files of its folder by name; nothing is left where that fails."""
    files = target.files(file) | {name: [data] for name, data in (beside or {}).items()}
    with Draft(target.path) as draft:
        write_together({draft.path(name): pieces for name, pieces in files.items()})
        draft.name(files)


_PASSED_ON = ("ss_", "modelspec.", "sshs_")
_REWRITTEN = ("ss_network_", "sshs_", "modelspec.architecture", "ss_base_model_version", "ss_v2")
"""Fields of the header that tell of the file itself, which is another one now."""


def kept_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """What a header tells of the training, which holds for the new file too."""
    return {
        key: value for key, value in metadata.items() if key.startswith(_PASSED_ON) and not key.startswith(_REWRITTEN)
    }


def _peft_files(file: AdapterFile, dtype: torch.dtype | None) -> Files:
    """PEFT's two files; of a pipeline a folder per part, since PEFT loads one model at a time."""
    updates, rest = updates_of(file, magnitudes=True)
    if faults := some_with_magnitudes(updates.values()):
        raise one_error(FormatError, f"{file.path} cannot be held by a PEFT folder", faults)
    parts = {part_of(path) for path in updates}
    if rest or "" in parts or (file.path / CONFIG_NAME).is_file():
        tensors = {key: _cast(key, tensor, dtype) for key, tensor in file.tensors.items()}
        return _peft_pair("", replace(file, tensors=tensors))
    files: Files = {}
    for part in sorted(parts):
        own = [
            replace(update, path=canonical(path).removeprefix(f"{part}."))
            for path, update in updates.items()
            if part_of(path) == part
        ]
        own = own if dtype is None else [in_dtype(update, dtype) for update in own]
        files |= _peft_pair(f"{part}/", as_peft(own, file.path, {"format": "pt"} | kept_metadata(file.metadata)))
    return files


def _cast(key: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor
    if tensor.numel() and float(tensor.abs().max()) > torch.finfo(dtype).max:
        raise FormatError(f"tensor {key!r} holds values beyond the range of {str(dtype).removeprefix('torch.')}")
    return tensor.to(dtype)


def _peft_pair(folder: str, file: AdapterFile) -> Files:
    text = json.dumps(dict(file.config), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return {
        f"{folder}{WEIGHTS_NAME}": tensor_pieces(file.tensors, file.metadata),
        f"{folder}{CONFIG_NAME}": [text.encode("utf-8")],
    }
