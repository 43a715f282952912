"""What an adapter file is, from its header alone: quick enough to list a folder of hundreds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loraloom.errors import FormatError
from loraloom.formats.anyfile import locate_adapter, part_folders
from loraloom.formats.families import guess_family
from loraloom.formats.foreign import checked_alpha
from loraloom.formats.keys import Keys, sort_keys
from loraloom.formats.peft_config import PeftConfig
from loraloom.formats.peft_file import CONFIG_NAME, WEIGHTS_NAME, read_config
from loraloom.formats.peft_names import PREFIX
from loraloom.formats.resolving import Resolver, part_of
from loraloom.formats.tensorfile import Header, read_header, read_tensors


@dataclass(frozen=True)
class AdapterFacts:
    """An adapter file at a glance."""

    path: Path
    format: str
    """"peft", "diffusers", "kohya", "lycoris" or "loralib"."""
    kind: str | None
    """Family of the base model ("sd1", "sdxl" …), None where the file does not tell."""
    parts: tuple[str, ...]
    """Parts of a pipeline that it changes, in diffusers' names; empty for a model that is no pipeline."""
    sites: int
    """How many layers it changes."""
    rank: int
    """The largest; 0 where the file has no low-rank factors."""
    alpha: float | None
    """Of most layers; None where the file has none, which means alpha = rank."""
    size: int
    """Bytes on disk."""
    metadata: Mapping[str, str]


def describe_adapter(path: Path | str) -> AdapterFacts:
    """Look at a file or folder without reading its factors. Raises FormatError for what is no adapter."""
    source = locate_adapter(Path(path))
    if source.is_file():
        return _of_file(source)
    parts = part_folders(source)
    if not parts:
        return _of_folder(source)
    facts = [_of_folder(folder) for folder in parts.values()]
    first = facts[0]
    shapes = {f"{part}.": () for part in parts}
    return AdapterFacts(
        source,
        "peft",
        first.kind or guess_family(shapes, {}),
        tuple(parts),
        sum(fact.sites for fact in facts),
        max(fact.rank for fact in facts),
        first.alpha,
        sum(fact.size for fact in facts),
        first.metadata,
    )


def _of_folder(folder: Path) -> AdapterFacts:
    own = folder if (folder / CONFIG_NAME).is_file() else _only_child(folder)
    config = PeftConfig.of(read_config(own / CONFIG_NAME), str(own / CONFIG_NAME))
    header = read_header(own / WEIGHTS_NAME)
    paths = {key.removeprefix(PREFIX): shape for key, shape in header.shapes.items()}
    sites = [key for key in paths if key.endswith((".lora_A.weight", ".lora_embedding_A"))]
    ranks = [paths[key][0] for key in sites if paths[key]]
    return AdapterFacts(
        own,
        "peft",
        guess_family(paths, header.metadata),
        tuple(dict.fromkeys(filter(None, map(part_of, sites)))),
        len(sites),
        max(ranks, default=0),
        config.lora_alpha,
        _size(own / CONFIG_NAME, own / WEIGHTS_NAME),
        header.metadata,
    )


def _only_child(folder: Path) -> Path:
    children = sorted(child for child in folder.iterdir() if (child / CONFIG_NAME).is_file())
    if len(children) != 1:
        raise FormatError(f"{folder} holds several adapters ({', '.join(c.name for c in children)}): name one of them")
    return children[0]


def _of_file(file: Path) -> AdapterFacts:
    header = read_header(file)
    keys = sort_keys(header.shapes, file)
    roles = {role for layer in keys.layers.values() for role in layer}
    lycoris = any(role.startswith(("hada", "lokr", "mid", "ia3", "diff", "oft")) for role in roles)
    return AdapterFacts(
        file,
        "lycoris" if lycoris and keys.format == "kohya" else keys.format,
        guess_family(header.shapes, header.metadata),
        _parts(keys),
        len(keys.layers),
        _rank(keys, header),
        _alpha(keys, file),
        _size(file),
        header.metadata,
    )


def _parts(keys: Keys) -> tuple[str, ...]:
    resolver = Resolver()
    paths = [path for layer in keys.layers for path in (resolver.kohya(layer) if keys.format == "kohya" else [layer])]
    return tuple(dict.fromkeys(filter(None, map(part_of, paths))))


def _rank(keys: Keys, header: Header) -> int:
    names = [layer[role] for layer in keys.layers.values() for role in ("A", "lookup A", "hada_w1_b") if role in layer]
    return max((header.shapes[name][0] for name in names if header.shapes[name]), default=0)


def _alpha(keys: Keys, file: Path) -> float | None:
    """Of the first layer that has one: alphas are a few bytes each, and mostly alike."""
    name = next((layer["alpha"] for layer in keys.layers.values() if "alpha" in layer), None)
    if name is None:
        return None
    try:
        return checked_alpha(read_tensors(file, [name])[0][name])
    except ValueError as error:
        raise FormatError(f"{file}: {name!r}: {error}") from None


def _size(*files: Path) -> int:
    return sum(file.stat().st_size for file in files)
