"""An adapter folder as it is on disk: read and checked without a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from loraloom.adapters.adapterset import is_finite
from loraloom.errors import FormatError
from loraloom.formats.careful import first_faults, parse_json, read_text
from loraloom.formats.peft_config import PeftConfig
from loraloom.formats.peft_settings import HEADER, VERSION
from loraloom.formats.stored import StoredTensors
from loraloom.formats.tensorfile import read_all

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
MAGNITUDE = "lora_magnitude_vector"
"""The end of the key under which DoRA's magnitudes are kept."""
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "pytorch_model.bin")


@dataclass(frozen=True)
class AdapterFile:
    """A sound adapter folder: what it holds makes sense by itself, whatever model it is for."""

    config: Mapping[str, Any]
    """`adapter_config.json`, field by field."""
    tensors: Mapping[str, Tensor]
    """By PEFT's keys, on the CPU; all finite."""
    metadata: Mapping[str, str]
    """Of the safetensors header."""
    path: Path
    """The folder in which the two files lie, or the file of another program."""
    errors: Mapping[str, float] = field(default_factory=dict)
    """Path → share of ΔW that an SVD left out, where another program's file held no factors."""

    @cached_property
    def peft(self) -> PeftConfig:
        """The config's fields that decide what the adapter computes."""
        return PeftConfig.of(self.config, str(self.path / CONFIG_NAME))

    @cached_property
    def ours(self) -> dict[str, Any] | None:
        """What Loraloom wrote into the header, None where another program wrote the file."""
        text = self.metadata.get(HEADER)
        if text is None:
            return None
        try:
            data = parse_json(text)
        except ValueError:
            data = None
        if not isinstance(data, dict) or type(data.get("version")) is not int:
            raise FormatError(f"{self.path / WEIGHTS_NAME}: the entry {HEADER!r} of the header is damaged")
        if data["version"] > VERSION:
            raise FormatError(
                f"{self.path / WEIGHTS_NAME} has format version {data['version']}, and this Loraloom knows "
                f"{VERSION}: update Loraloom to read it"
            )
        return data


def refuse_dora(file: AdapterFile) -> None:
    """Raises FormatError for an adapter of DoRA."""
    if file.peft.use_dora or any(key.endswith(MAGNITUDE) for key in file.tensors):
        raise FormatError(
            f"{file.path} is an adapter of DoRA, whose magnitudes set the size of whole rows of the base's weights: it "
            "can be converted, but not attached, mixed or changed; fold it into its base with PEFT's merge_and_unload"
        )


def read_folder(folder: Path | str, *, stored: bool = False) -> AdapterFile:
    """Read and check an adapter folder. Raises FormatError that names the file and everything wrong in it.

    With `stored` the tensors stay on the disk, each read, and its values checked, when it is asked for.
    """
    path = _adapter_folder(Path(folder))
    config = read_config(path / CONFIG_NAME)
    PeftConfig.of(config, str(path / CONFIG_NAME))
    weights = _weights(path)
    tensors: Mapping[str, Tensor]
    if stored:
        tensors = StoredTensors(weights, finite=True)
        header = tensors.headers[weights]
    else:
        tensors, header = read_all(weights)
    faults = [] if header.shapes else ["there is no tensor in it"]
    faults += [] if stored else [_not_finite(key) for key, tensor in tensors.items() if not is_finite(tensor)]
    faults += [
        f"tensor {key!r} holds {str(dtype).removeprefix('torch.')}, expected floating-point numbers"
        for key, dtype in header.dtypes.items()
        if ".lora_" in key and not dtype.is_floating_point
    ]
    faults += _dora_faults(header.shapes, config)
    if faults:
        raise first_faults(str(weights), faults)
    file = AdapterFile(config, tensors, header.metadata, path)
    _ = file.ours
    return file


def _dora_faults(names: Iterable[str], config: Mapping[str, Any]) -> list[str]:
    """Magnitudes that the config does not speak of, and factors that lack the ones it speaks of."""
    magnitudes = {name.removesuffix(MAGNITUDE) for name in names if name.endswith(MAGNITUDE)}
    if not config.get("use_dora"):
        return [f"tensor {stem + MAGNITUDE!r} is the magnitude of DoRA, unknown to the config" for stem in magnitudes]
    factors = {name.rpartition("lora_")[0] for name in names if name.endswith(("lora_A.weight", "lora_embedding_A"))}
    return [f"missing tensor {stem + MAGNITUDE!r} of DoRA" for stem in sorted(factors - magnitudes)]


def _not_finite(key: str) -> str:
    return f"tensor {key!r} holds values that are not finite"


def _adapter_folder(folder: Path) -> Path:
    """The folder that holds the config: this one, or its only subfolder that does, as PEFT lays a named adapter out."""
    if folder.is_file():
        raise FormatError(f"{folder} is a file: name the folder that holds {CONFIG_NAME}")
    if not folder.is_dir():
        raise FormatError(f"there is no adapter folder {folder}")
    if (folder / CONFIG_NAME).is_file():
        return folder
    inner = sorted(child for child in folder.iterdir() if (child / CONFIG_NAME).is_file())
    if not inner:
        raise FormatError(f"{folder} is not an adapter folder: it has no {CONFIG_NAME}")
    if len(inner) > 1:
        names = ", ".join(child.name for child in inner)
        raise FormatError(f"{folder} holds several adapters ({names}): name one of these subfolders")
    return inner[0]


def _weights(path: Path) -> Path:
    weights = path / WEIGHTS_NAME
    if weights.is_file():
        return weights
    pickle = next((path / name for name in _PICKLES if (path / name).is_file()), None)
    if pickle is None:
        raise FormatError(f"{path} has no {WEIGHTS_NAME}")
    raise FormatError(
        f"{pickle} is a pickle, which can run code when it is read, so that only {WEIGHTS_NAME} is; if you trust its "
        f"source, convert it: safetensors.torch.save_file(torch.load({pickle.name!r}, weights_only=True), "
        f"{WEIGHTS_NAME!r})"
    )


def read_config(path: Path) -> dict[str, Any]:
    """The fields of a config file. Raises FormatError where it is no JSON object."""
    try:
        data = parse_json(read_text(path))
    except ValueError as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise FormatError(f"{path} holds a {type(data).__name__}, expected a JSON object")
    return data
