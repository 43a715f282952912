"""Where the files of a text-to-image base lie: shipped with the package, a folder, one file, the cache, the Hub.

Nothing is loaded here; what is found is checked to be safetensors, whole, and a pipeline.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants as hub_constants
from huggingface_hub.errors import HFValidationError

from loraloom.errors import BaseModelError, suggest
from loraloom.tasks.models.bases import HUB_TIMEOUT, check_whole

SHIPPED = Path(__file__).resolve().parents[2] / "imaging"
"""The folder whose subfolders with a model_index.json are bases of the package; each goes by its folder's name."""

INDEX = "model_index.json"
PARTS_WITHOUT_WEIGHTS = ("scheduler", "tokenizer", "feature_extractor", "image_processor", "safety_checker")
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
HUB_FILES = ["*.json", "*.txt", "*.model", "*/*.safetensors"]
HUB_NOT_FILES = ["safety_checker/*", "image_encoder/*", "*non_ema*", "*.onnx*", "*openvino*", "*flax*"]


@dataclass(frozen=True)
class BasePlace:
    """A base that was found and whose files have been looked at."""

    name: str
    """As the user gave it."""
    path: Path
    """A folder with a model_index.json, or one .safetensors file."""
    source: str
    """"package", "folder", "file", "cache" or "hub"."""
    weights: tuple[Path, ...]
    """Its safetensors files, in the order of their names."""
    variant: str | None = None
    """"fp16" where the folder holds its weights under such names alone."""


def shipped_bases() -> dict[str, Path]:
    """The bases that come with the package, by short name."""
    return {index.parent.name: index.parent for index in sorted(SHIPPED.glob(f"*/{INDEX}"))}


def find_base(name: str) -> BasePlace:
    """Find a text-to-image base: a path, a short name of the package, the Hugging Face cache, then the Hub.

    Raises BaseModelError, which says everything that was tried, where it is nowhere, holds pickles alone, is
    damaged, or is no pipeline.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(name, path, "folder")
    if path.is_file() or path.suffix in (".safetensors", *PICKLE_SUFFIXES):
        return _single(name, path)
    shipped = shipped_bases()
    if name in shipped:
        return _folder(name, shipped[name], "package")
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        raise BaseModelError(f"base model: there is no folder, file or short name {name!r}{_near(name, path)}")
    return _from_hub(name)


def _single(name: str, path: Path) -> BasePlace:
    if not path.is_file():
        raise BaseModelError(f"base model: there is no file {name!r}{_near(name, path)}")
    if path.suffix in PICKLE_SUFFIXES:
        raise BaseModelError(
            f"base model: {path} is a pickle, which can run code when it is read; take the .safetensors file that its "
            "maker offers beside it"
        )
    check_whole(path)
    return BasePlace(name, path, "file", (path,))


def _folder(name: str, folder: Path, source: str) -> BasePlace:
    index = read_index(folder)
    weights, variants = [], set()
    for part, entry in index.items():
        if isinstance(entry, list) and entry[0] and not part.startswith(PARTS_WITHOUT_WEIGHTS):
            found, variant = _part_weights(folder / part)
            weights += found
            variants.add(variant)
    for file in weights:
        check_whole(file)
    return BasePlace(name, folder, source, tuple(weights), "fp16" if "fp16" in variants else None)


def read_index(folder: Path) -> dict[str, Any]:
    """A pipeline folder's model_index.json. Raises BaseModelError where there is none, or one of another kind."""
    file = folder / INDEX
    if not file.is_file():
        what = "an adapter" if (folder / "adapter_config.json").is_file() else "no text-to-image pipeline"
        raise BaseModelError(f"base model: {folder} is {what}: it has no {INDEX}")
    try:
        index = json.loads(file.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise BaseModelError(f"base model: {file} cannot be read as JSON ({error})") from error
    if not isinstance(index, dict) or "_class_name" not in index:
        raise BaseModelError(f"base model: {file} names no pipeline class ('_class_name')")
    return index


def _part_weights(folder: Path) -> tuple[list[Path], str | None]:
    """The safetensors files of one part, and the variant that they are, if any."""
    files = sorted(folder.glob("*.safetensors"))
    plain = [file for file in files if len(file.suffixes) == 1]
    half = [file for file in files if file.name.count(".fp16") == 1]
    if plain or half:
        return (plain, None) if plain else (half, "fp16")
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise BaseModelError(
            f"base model: {folder} holds its weights only as a pickle ({pickles[0]}), which can run code when it is "
            "read; if you trust its maker, convert it once with diffusers, pipeline.save_pretrained(new_folder), and "
            "give the new folder"
        )
    raise BaseModelError(f"base model: {folder} holds no weights, a .safetensors file is expected")


def _from_hub(name: str) -> BasePlace:
    try:
        cached = huggingface_hub.try_to_load_from_cache(name, INDEX)
    except HFValidationError as error:
        raise BaseModelError(
            f"base model: {name!r} is neither a folder here nor a name that the Hub can have (owner/name)"
        ) from error
    tried = [f"the Hugging Face cache ({hub_constants.HF_HUB_CACHE}) does not hold it"]
    if isinstance(cached, str):
        try:
            return _folder(name, Path(cached).parent, "cache")
        except BaseModelError as error:
            tried = [f"the copy in the Hugging Face cache cannot be used ({error})"]
    if hub_constants.HF_HUB_OFFLINE:
        tried.append("the Hub was not asked because HF_HUB_OFFLINE is set")
    else:
        try:
            return _folder(name, _download(name), "hub")
        except OSError as error:
            tried.append(f"the Hub did not give it ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
    raise BaseModelError(f"base model {name!r} was not found: {', '.join(tried)}{_near(name, Path(name))}")


def _download(name: str) -> Path:
    folder = huggingface_hub.snapshot_download(
        name, allow_patterns=HUB_FILES, ignore_patterns=HUB_NOT_FILES, etag_timeout=HUB_TIMEOUT
    )
    return Path(folder)


def _near(name: str, path: Path) -> str:
    """Short names and neighbours on the disk that are spelt nearly so, as a hint or ``""``."""
    near = suggest(name, shipped_bases())
    if near or not path.parent.is_dir():
        return near
    return suggest(path.name, sorted(entry.name for entry in path.parent.iterdir()))
