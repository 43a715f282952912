"""Adapters opened to be mixed or compared: brought to the same names and shapes of layers, for one base.

A PEFT folder stays on the disk and is read layer by layer; the file of another program is read as a whole.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraloom.errors import FormatError, one_error
from loraloom.formats.anyfile import locate_adapter, part_folders, read_any
from loraloom.formats.facts import AdapterFacts, describe_adapter
from loraloom.formats.peft_file import AdapterFile, read_folder
from loraloom.formats.peft_names import PREFIX
from loraloom.formats.resolving import canonical, part_of
from loraloom.formats.stored import StoredTensors
from loraloom.formats.updates import Update, updates_of
from loraloom.training.output import RECORD_NAME

_UNET = re.compile(r"(?:(?:down|up)_blocks\.\d|mid_block\.|conv_in$|conv_out$|time_embedding\.|add_embedding\.)")
_TRANSFORMER = re.compile(r"(?:single_)?transformer_blocks\.\d")
_ATTENTION_OUT = re.compile(r"(?P<attention>.+)\.base_layer\.out_proj")
_FACTOR = re.compile(r"(?P<path>.+)\.lora_(?P<role>[AB])\.weight")
_MOST = 5


class Sites(Mapping[str, Update]):
    """The updates of one adapter by the names that all opened adapters share, each read when it is asked for."""

    def __init__(self, file: AdapterFile, magnitudes: bool = False) -> None:
        self.file = file
        self._held = frozenset(file.tensors)
        found, rest = updates_of(file, magnitudes=magnitudes)
        self._own: Mapping[str, Update] = found
        self._outer, self.rest = _attention_outputs(file, rest)
        self._names: dict[str, str] = {path: path for path in (*found, *self._outer)}
        self._dims: dict[str, int] = {}

    def __getitem__(self, path: str) -> Update:
        own = self._names[path]
        update = self._attention_output(own) if own in self._outer else self._own[own]
        return replace(_of_dims(update, self._dims.get(path)), path=path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, path: object) -> bool:  # the mapping's own way would read the factors
        return path in self._names

    def own_name(self, path: str) -> str:
        """The layer's name in the file itself."""
        return self._names[path]

    def shape(self, path: str) -> tuple[int, ...]:
        """(out, in, k…) of a layer, of an embedding (dim, number), without reading its factors."""
        a, b = self._factor_shapes(self._names[path])
        shape = (b[0], *a[1:])
        dims = self._dims.get(path, len(shape))
        return (*shape[:2], *(1,) * (dims - 2)) if all(size == 1 for size in shape[2:]) else shape

    def rank(self, path: str) -> int:
        """R of a layer, without reading its factors."""
        return self._factor_shapes(self._names[path])[0][0]

    def groups(self, path: str) -> int:
        """Into how many groups a convolution's B divides the rank, without reading it."""
        a, b = self._factor_shapes(self._names[path])
        return a[0] // b[1] if len(b) > 2 and b[1] else 1

    def is_lookup(self, path: str) -> bool:
        """Whether a layer is an embedding."""
        return f"{PREFIX}{self._names[path]}.lora_embedding_A" in self._held

    def is_biased(self, path: str) -> bool:
        """Whether a layer's update adds a bias as well."""
        return f"{PREFIX}{self._names[path]}.lora_B.bias" in self._held

    def rename(self, names: Mapping[str, str]) -> None:
        """Call layers by other names from now on: file's own name → new name."""
        self._names = {names[own]: own for own in self._names.values()}

    def with_dims(self, dims: Mapping[str, int]) -> None:
        """Give layers whose factors may be those of a linear layer or of a 1×1 convolution this many dimensions."""
        self._dims = {path: count for path, count in dims.items() if path in self._names}

    def _factor_shapes(self, own: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        keys = self._keys(own)
        tensors = self.file.tensors
        if isinstance(tensors, StoredTensors):
            return tensors.shape(keys[0]), tensors.shape(keys[1])
        return tuple(tensors[keys[0]].shape), tuple(tensors[keys[1]].shape)

    def _keys(self, own: str) -> tuple[str, str]:
        stem = PREFIX + own
        if f"{stem}.lora_A.weight" in self._held:
            return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"
        return f"{stem}.lora_embedding_A", f"{stem}.lora_embedding_B"

    def _attention_output(self, own: str) -> Update:
        """The out_proj of an attention, which has the attention's own rank and alpha."""
        a, b = (self.file.tensors[key] for key in self._keys(own))
        return Update(own, a, b, self.file.peft.scale(self._outer[own]) * int(a.shape[0]))


def _attention_outputs(file: AdapterFile, rest: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """PEFT's layers inside a wrapped attention → the attention, and the keys that are still left."""
    roles: dict[str, set[str]] = {}
    for key in rest:
        match = _FACTOR.fullmatch(key.removeprefix(PREFIX)) if key.startswith(PREFIX) else None
        if match and _ATTENTION_OUT.fullmatch(match["path"]):
            roles.setdefault(match["path"], set()).add(match["role"])
    paths = [path for path, found in roles.items() if found == {"A", "B"}]
    taken = {f"{PREFIX}{path}.lora_{role}.weight" for path in paths for role in "AB"}
    attentions = {path: path.removesuffix(".base_layer.out_proj") for path in paths}
    return attentions, [key for key in rest if key not in taken]


def _of_dims(update: Update, dims: int | None) -> Update:
    """The factors of a 1×1 convolution as a linear layer's, or the other way round."""
    if dims is None or dims == update.a.dim():
        return update
    ones = (1,) * (dims - 2)
    a, b = update.a.flatten(1), update.b.flatten(1)
    return replace(update, a=a.reshape(*a.shape, *ones), b=b.reshape(*b.shape, *ones))


@dataclass(frozen=True, eq=False)
class Source:
    """One adapter, opened."""

    path: Path
    """As it was given."""
    name: str
    """Short, and not that of another."""
    file: AdapterFile
    """Its tensors stay on the disk where it is a PEFT folder."""
    updates: Sites
    facts: AdapterFacts
    record: dict[str, Any] | None
    """The run.json beside it, None where there is none."""

    @property
    def rest(self) -> list[str]:
        """Keys of what is no update: heads, biases …"""
        return self.updates.rest

    @property
    def rank(self) -> int:
        """The largest of any layer."""
        return max((self.updates.rank(path) for path in self.updates), default=0)

    @property
    def dtype(self) -> torch.dtype | None:
        """Of all factors, None where they have several."""
        return one_dtype([self])

    @property
    def single_folder(self) -> bool:
        """Whether it is one PEFT folder, so that its names are those of the model that it was made on."""
        return isinstance(self.file.tensors, StoredTensors)

    @property
    def fingerprint(self) -> str | None:
        """sha256 of the base's weights that it was trained over, where its run.json tells."""
        base = (self.record or {}).get("base")
        return base.get("fingerprint") if isinstance(base, dict) else None


def open_adapters(paths: Sequence[Path], *, magnitudes: bool = False) -> list[Source]:
    """Open adapter files and folders of any programs, all for one base, and give their layers the same names.

    DoRA adapters are refused, unless the caller deals with `magnitudes`: theirs are no sums of updates. Raises
    FormatError for what is no adapter, or damaged, and, naming both, for adapters of different bases: by the weights
    that their run.json names, by the family that their files speak of, by the shapes of layers of one name.
    """
    names = short_names(paths)
    sources = [_opened(path, name, magnitudes) for path, name in zip(paths, names, strict=True)]
    _check_bases(sources)
    _share_names(sources)
    _share_shapes(sources)
    return sources


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart; a number behind the same one given again."""
    places = [path.resolve().with_suffix("") if path.suffix == ".safetensors" else path.resolve() for path in paths]
    different = set(places)

    def shown(place: Path) -> str:
        for count in range(1, len(place.parts)):
            end = place.parts[-count:]
            if sum(other.parts[-count:] == end for other in different) == 1:
                return "/".join(end)
        return str(place)

    seen: Counter[str] = Counter()
    names = []
    for name in map(shown, places):
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


def _opened(path: Path, name: str, magnitudes: bool) -> Source:
    record = _record(path)
    if record is not None and record.get("method") == "full":
        raise FormatError(f"'{path}' is a model trained in full, which has no adapter: make one of it by extract")
    place = locate_adapter(path)
    stored = place.is_dir() and not part_folders(place)
    file = read_folder(place, stored=True) if stored else read_any(place)
    return Source(path, name, file, Sites(file, magnitudes), describe_adapter(path), record)


def _record(path: Path) -> dict[str, Any] | None:
    """The run.json beside an adapter. Raises FormatError where it cannot be read."""
    place = (path if path.is_dir() else path.parent) / RECORD_NAME
    if not place.is_file():
        return None
    try:
        record = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"'{place}' cannot be read: {error}") from None
    if not isinstance(record, dict):
        raise FormatError(f"'{place}' holds a {type(record).__name__}, expected a JSON object")
    return record


# -- one base -----------------------------------------------------------------------------------------


def _check_bases(sources: Sequence[Source]) -> None:
    _agree(sources, lambda source: source.fingerprint, "was trained over a base of sha256 {:.12}…")
    _agree(sources, lambda source: source.facts.kind, "is for {}")
    _agree(sources, _scope, "is for {}")


def _scope(source: Source) -> str | None:
    """Whether an adapter is for a pipeline that makes pictures; None where its names are those of CLIP alone, which is
    a model of its own and a pipeline's part."""
    paths = list(source.updates)
    if any(part_of(path) or _UNET.match(path) or _TRANSFORMER.match(path) for path in paths):
        return "a pipeline that makes pictures"
    return None if any(path.startswith("text_model.") for path in paths) else "a model of another kind"


def _agree(sources: Sequence[Source], told: Callable[[Source], str | None], words: str) -> None:
    """Raise FormatError where two adapters tell different things of their base."""
    known = [(source, value) for source in sources if (value := told(source)) is not None]
    for source, value in known[1:]:
        first, expected = known[0]
        if value != expected:
            raise FormatError(
                f"{first.name!r} {words.format(expected)}, {source.name!r} {words.format(value)}: adapters of "
                "different bases cannot be used together"
            )


# -- the same names -----------------------------------------------------------------------------------


def _share_names(sources: Sequence[Source]) -> None:
    """The files' own names where all have the same; else the names that every program's files can be brought to."""
    known = [{own: shared_name(own, source.updates) for own in source.updates} for source in sources]
    spellings: dict[str, set[str]] = {}
    for names in known:
        for own, shared in names.items():
            spellings.setdefault(shared, set()).add(own)
    one_program = all(source.single_folder for source in sources)
    if one_program and all(len(own) == 1 for own in spellings.values()):
        return
    for source, names in zip(sources, known, strict=True):
        if len(set(names.values())) < len(names):
            twice = next(name for name, count in Counter(names.values()).items() if count > 1)
            raise FormatError(f"{source.name!r} has the layer {twice!r} twice, under different names")
        source.updates.rename(names)


def shared_name(path: str, layers: Mapping[str, object]) -> str:
    """A layer's name with the part of the pipeline in front, and CLIP's layers below `text_model`."""
    if part_of(path):
        return canonical(path)
    if any(_TRANSFORMER.match(layer) for layer in layers) and not any(_UNET.match(layer) for layer in layers):
        return f"transformer.{path}"
    return f"unet.{path}" if any(_UNET.match(layer) for layer in layers) else path


def _share_shapes(sources: Sequence[Source]) -> None:
    """Give what one program writes as a 1×1 convolution and another as a linear layer one shape; refuse others."""
    shapes: dict[str, tuple[Source, tuple[int, ...]]] = {}
    dims: dict[str, int] = {}
    faults: list[str] = []
    for source in sources:
        for path in source.updates:
            shape = source.updates.shape(path)
            first, expected = shapes.setdefault(path, (source, shape))
            if _bare(shape) != _bare(expected):
                faults.append(f"{path!r} is {expected} in {first.name!r} and {shape} in {source.name!r}")
            elif len(shape) != len(expected):
                dims[path] = max(len(shape), len(expected), dims.get(path, 0))
    if faults:
        told = faults[:_MOST] + ([f"and {len(faults) - _MOST} more"] if len(faults) > _MOST else [])
        raise one_error(FormatError, "adapters of different bases cannot be used together", told)
    for source in sources:
        source.updates.with_dims(dims)


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the ones of a 1×1 convolution."""
    return shape[:2] if all(size == 1 for size in shape[2:]) else shape


def one_dtype(sources: Sequence[Source]) -> torch.dtype | None:
    """The dtype that all factors of all these adapters have, None where they have several. Nothing is read."""
    found = {dtype for source in sources for key, dtype in _dtypes(source.file.tensors) if ".lora_" in key}
    return found.pop() if len(found) == 1 else None


def _dtypes(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, torch.dtype]]:
    if isinstance(tensors, StoredTensors):
        yield from ((key, tensors.dtype(key)) for key in tensors)
    else:
        yield from ((key, tensor.dtype) for key, tensor in tensors.items())
