"""A full checkpoint as it lies on the disk: its parts, its weight files, its tensors, none of which is read yet.

checkpoint = Checkpoint.open("models/llama")            # or a diffusers pipeline, one of its parts, one file
checkpoint.tensors["model.norm.weight"]                 # read when it is asked for
checkpoint.layout(["model.layers.0.mlp.up_proj"])       # → the keys of the weights of these layers
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from loraloom.compose.checkpoint.layout import Skeleton, class_skeleton, key_skeleton
from loraloom.errors import BaseModelError, FormatError, one_error, suggest
from loraloom.formats.stored import StoredTensors
from loraloom.tasks.diffusion.places import INDEX as PIPELINE_INDEX
from loraloom.tasks.diffusion.places import PICKLE_SUFFIXES, find_base, shipped_bases
from loraloom.tasks.models.bases import resolve_base, weight_files

CONFIG = "config.json"
_SUFFIX = ".safetensors"
_PICKLES = (*PICKLE_SUFFIXES, ".pkl", ".pickle")
_ORIGINAL = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.embedders.")
_WEIGHTS = ("diffusion_pytorch_model", "model")


@dataclass(frozen=True)
class Part:
    """One model of a checkpoint: the folder of its config.json, and its weight files."""

    name: str
    """"unet", "text_encoder" … of a pipeline; "" of a checkpoint that is one model."""
    folder: Path | None
    """None for a bare file."""
    files: tuple[Path, ...]
    index: Path | None
    """The file that tells which tensor is in which shard."""
    tensors: StoredTensors
    config: Mapping[str, Any] = field(default_factory=dict)
    """Of its config.json; empty for a bare file."""
    class_name: str | None = None
    """Of the model's class, where the pipeline or config.json names it."""
    library: str | None = None
    """"transformers" or "diffusers"."""

    @property
    def prefix(self) -> str:
        """What stands before the part's own names in the checkpoint's: "unet.", or nothing."""
        return f"{self.name}." if self.name else ""


class PartTensors(Protocol):
    """The tensors of one part by name, each read or made when it is asked for."""

    def __getitem__(self, name: str, /) -> Tensor: ...

    def __iter__(self) -> Iterator[str]: ...

    def shape(self, name: str, /) -> tuple[int, ...]:
        """Of a tensor, which is not read."""

    def dtype(self, name: str, /) -> torch.dtype:
        """Of a tensor, which is not read."""

    def place(self, name: str, /) -> tuple[Path, int, int] | None:
        """The file that holds a tensor, its first byte there, and the one after its last; None for one that is made."""


class CheckpointTensors(Mapping[str, Tensor]):
    """The tensors of all parts by name, with the part's prefix in front ("unet.conv_in.weight")."""

    def __init__(self, parts: Mapping[str, PartTensors]) -> None:
        self._owners = {prefix + key: (own, key) for prefix, own in parts.items() for key in own}

    def __getitem__(self, name: str) -> Tensor:
        own, key = self._owners[name]
        return own[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._owners)

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, name: object) -> bool:  # the mapping's own way would read the tensor
        return name in self._owners

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, which is not read."""
        own, key = self._owners[name]
        return own.shape(key)

    def dtype(self, name: str) -> torch.dtype:
        """Of a tensor, which is not read."""
        own, key = self._owners[name]
        return own.dtype(key)

    def place(self, name: str) -> tuple[Path, int, int] | None:
        """Where a tensor lies, as `PartTensors.place` tells it."""
        own, key = self._owners[name]
        return own.place(key)


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder, a pipeline's, or one file of weights."""

    name: str
    """As the user gave it."""
    path: Path
    form: str
    """"transformers", "diffusers" (one part), "pipeline" or "file"."""
    parts: tuple[Part, ...]

    @classmethod
    def open(cls, name: str | Path) -> Checkpoint:
        """Find a checkpoint: a folder, a .safetensors file, a base of the package, a name that the Hub's cache holds.

        Raises BaseModelError for what is none, for pickles and adapters, FormatError for damaged files.
        """
        path = Path(name).expanduser()
        if not path.exists():
            path = _by_name(str(name), path)
        if path.is_file():
            return cls(str(name), path, "file", (_of_file(path),))
        if (path / PIPELINE_INDEX).is_file():
            return cls(str(name), path, "pipeline", tuple(_of_pipeline(path)))
        part = _of_folder("", path)
        return cls(str(name), path, part.library or "file", (part,))

    @cached_property
    def tensors(self) -> CheckpointTensors:
        """By name; of a pipeline with the part in front."""
        return CheckpointTensors({part.prefix: part.tensors for part in self.parts})

    @cached_property
    def shards(self) -> dict[Path, list[str]]:
        """Weight file → the names of its tensors, in the order in which they lie there."""
        return {
            file: [f"{part.prefix}{key}" for key in _in_order(part.tensors, file)]
            for part in self.parts
            for file in part.files
        }

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json of a checkpoint that is one model; empty for a pipeline and for a bare file."""
        return self.parts[0].config if len(self.parts) == 1 else {}

    @property
    def size(self) -> int:
        """Bytes of all weight files."""
        return sum(file.stat().st_size for file in self.shards)

    def part(self, path: str) -> tuple[Part, str]:
        """The part that a layer belongs to, and the layer's path within it. Raises FormatError for an unknown part."""
        if self.form != "pipeline":
            return self.parts[0], path
        first, _, rest = path.partition(".")
        found = next((part for part in self.parts if part.name == first), None)
        if found is None:
            names = [part.name for part in self.parts]
            raise FormatError(f"{path!r} is in no part of {self.path} ({', '.join(names)}){suggest(first, names)}")
        return found, rest

    def layout(self, paths: Iterable[str]) -> dict[str, str]:
        """Layer's path, as adapters have it → the key of its weight.

        The model's class tells what plain names do not (another spelling in the file, the base model's prefix); a
        weight that is put together of several tensors when the model is loaded has no key of its own. Raises
        FormatError naming every path that has none.
        """
        found: dict[str, str] = {}
        faults: list[str] = []
        for path in paths:
            part, inner = self.part(path)
            key = plain_key(inner, part) or self.skeleton(part).key(inner)
            if key is None:
                near = suggest(inner, (name.removesuffix(".weight") for name in part.tensors), most=1)
                faults.append(f"{path!r} has no weight there{near}")
            else:
                found[path] = part.prefix + key
        if faults:
            raise one_error(FormatError, f"{self.path} has no place for what the adapter changes", faults)
        return found

    def skeleton(self, part: Part) -> Skeleton:
        """A part as an empty model, made once: of its class, or of the names and shapes of its tensors."""
        made = self._skeletons.get(part.name)
        if made is None:
            made = class_skeleton(part.config, part.class_name, part.library, part.tensors) if part.library else None
            made = self._skeletons[part.name] = made or key_skeleton(part.tensors)
        return made

    @cached_property
    def _skeletons(self) -> dict[str, Skeleton]:
        return {}


def plain_key(path: str, part: Part) -> str | None:
    """The key of a layer's weight where the file has it by this very path, or by one without or with a prefix."""
    if f"{path}.weight" in part.tensors:
        return f"{path}.weight"
    if path in part.tensors:
        return path
    shorter = f"{path.partition('.')[2]}.weight"  # the adapter's model has a head around the base model
    if "." in path and shorter in part.tensors and part.library != "diffusers":
        return shorter
    longer = [f"{prefix}.{path}.weight" for prefix in _prefixes(part.tensors)]
    return next((key for key in longer if key in part.tensors), None)


def _prefixes(tensors: StoredTensors) -> set[str]:
    return {key.partition(".")[0] for key in tensors if "." in key}


def _in_order(tensors: StoredTensors, file: Path) -> list[str]:
    places = tensors.headers[file].places
    return sorted(places, key=lambda key: places[key])


# -- finding ------------------------------------------------------------------------------------------


def _by_name(name: str, path: Path) -> Path:
    """Where a name that is no path leads. Raises BaseModelError with everything that was tried."""
    if path.suffix in (_SUFFIX, *_PICKLES):
        near = suggest(path.name, [entry.name for entry in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise BaseModelError(f"base model: there is no file {name!r}{near}")
    shipped = shipped_bases()
    if name in shipped:
        return shipped[name]
    try:
        return resolve_base(name).folder
    except BaseModelError as error:
        near = suggest(name, shipped, most=1)
        if name.count("/") != 1 or name.startswith((".", "~", "/")):
            raise BaseModelError(f"{error}{near}") from None
        try:
            return find_base(name).path
        except BaseModelError:
            raise error from None


def _of_file(path: Path) -> Part:
    if path.suffix in _PICKLES:
        raise BaseModelError(
            f"base model: {path} is a pickle, which can run code when it is read; only {_SUFFIX} files are"
        )
    if path.suffix != _SUFFIX:
        raise BaseModelError(f"base model: {path} is no {_SUFFIX} file; give such a file, or a model's folder")
    tensors = StoredTensors(path)
    if not tensors:
        raise BaseModelError(f"base model: {path} holds no tensor")
    if any(".lora_" in key or key.startswith(("lora_unet_", "lora_te")) for key in tensors):
        raise BaseModelError(f"base model: {path} is an adapter; give the model that it is for")
    if any(key.startswith(_ORIGINAL) for key in tensors):
        raise BaseModelError(
            f"base model: {path} has the original Stable Diffusion layout, whose names are not those of adapters; "
            "load it with diffusers, StableDiffusionPipeline.from_single_file(file).save_pretrained(new_folder), and "
            "give the new folder"
        )
    return Part("", None, (path,), None, tensors)


def _of_pipeline(folder: Path) -> Iterator[Part]:
    index = read_json(folder / PIPELINE_INDEX)
    for name, entry in index.items():
        if not isinstance(entry, list) or len(entry) != 2 or not entry[0]:
            continue
        if (folder / name / CONFIG).is_file() and _has_weights(folder / name):
            yield _of_folder(name, folder / name, entry[1], entry[0])


def _has_weights(folder: Path) -> bool:
    return any(file.suffix in (_SUFFIX, *_PICKLES) for file in folder.iterdir())


def _of_folder(name: str, folder: Path, class_name: str | None = None, library: str | None = None) -> Part:
    if (folder / "adapter_config.json").is_file():
        raise BaseModelError(f"base model: {folder} is an adapter; give the model that it is for")
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    files, index = _weight_files(folder)
    tensors = StoredTensors(*files)
    if not tensors:
        raise BaseModelError(f"base model: {files[0]} holds no tensor")
    own = config.get("_class_name")
    class_name = class_name or own or next(iter(config.get("architectures") or ()), None)
    library = library if library in ("transformers", "diffusers") else None
    library = library or ("diffusers" if own else "transformers" if "model_type" in config else None)
    return Part(name, folder, tuple(files), index, tensors, config, class_name, library)


def _weight_files(folder: Path) -> tuple[list[Path], Path | None]:
    """The weight files of one model, and its index. Raises BaseModelError where there are none, or pickles alone."""
    for stem in _WEIGHTS:
        whole, index = folder / f"{stem}{_SUFFIX}", folder / f"{stem}{_SUFFIX}.index.json"
        if whole.is_file():
            return [whole], None
        if index.is_file():
            return (weight_files(folder) if stem == "model" else _shards(index)), index
    found = sorted(folder.glob(f"*{_SUFFIX}"))
    variants = [file for file in found if file.name.count(".") == 2]  # model.fp16.safetensors, where nothing else is
    if len(found) == 1 or len(variants) == 1:
        return [found[0] if len(found) == 1 else variants[0]], None
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    if pickles and not found:
        raise BaseModelError(
            f"base model: {folder} holds its weights only as a pickle ({pickles[0]}), which can run code when it is "
            "read; if you trust its maker, load it once with its own library, save_pretrained(new_folder), and give "
            "the new folder"
        )
    told = (
        f"several weight files and no index ({', '.join(file.name for file in found[:3])})" if found else "no weights"
    )
    raise BaseModelError(f"base model: {folder} holds {told}; model{_SUFFIX} is expected")


def _shards(index: Path) -> list[Path]:
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise BaseModelError(f"base model: {index} cannot be read as an index of weight files")
    files = [index.parent / str(name) for name in sorted(set(named.values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise BaseModelError(f"base model: {index} names {absent[0]!r}, which is not in the folder")
    return files


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of the checkpoint. Raises BaseModelError where it is none."""
    try:
        data = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BaseModelError(f"base model: {path} cannot be read as JSON ({error})") from None
    if not isinstance(data, dict):
        raise BaseModelError(f"base model: {path} holds a {type(data).__name__}, expected a JSON object")
    return data
