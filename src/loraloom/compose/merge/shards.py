"""The weight files of a merged checkpoint: the base's own files again, one by one, with the tensors that changed.

Files in which nothing changes are copied as they are, and so are unchanged tensors of the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from loraloom.compose.checkpoint import Part
from loraloom.compose.checkpoint.dense import Dense
from loraloom.compose.checkpoint.streaming import (
    Made,
    Piece,
    Span,
    copy_file,
    in_file_order,
    side_by_side,
    write_pieces,
)
from loraloom.compose.merge.changes import Change, ChangePlan
from loraloom.compose.merge.probe import Answers, Probe, may_note, probe
from loraloom.compose.merge.rows import HeldRows, Rounding, Rows, Watch, changed_blocks, matrix_shape, stored_rows
from loraloom.errors import FormatError
from loraloom.formats.stored import StoredTensors
from loraloom.formats.tensorfile import Buffer, Outline, header_bytes, tensor_bytes

Place = Callable[[str], Path]


@dataclass
class Written:
    """One tensor that an adapter changes, and what came of it."""

    name: str
    """In the checkpoint; of a pipeline with the part in front."""
    kind: str
    """"update", "whole" (a head, a bias), or "copy" (of a weight that was shared)."""
    sites: tuple[str, ...]
    rank: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    rounding: Rounding = field(default_factory=Rounding)
    probe: Probe | None = None
    same: bool | None = None
    """Of a tensor that is replaced: whether the file holds it to the bit."""
    new: bool = False

    @property
    def holds(self) -> bool:
        """Whether what is in the file is what was meant."""
        return bool(self.same) if self.probe is None else self.probe.holds

    @property
    def moved(self) -> bool:
        """Whether it is another than the base's."""
        return self.new or (self.rounding.update > 0 if self.probe is None else self.probe.moved > 0)

    def to_json(self) -> dict[str, object]:
        """As JSON data."""
        found = self.probe
        return {
            "name": self.name,
            "kind": self.kind,
            "sites": list(self.sites),
            "rank": self.rank,
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
            "rounding_of_update": self.rounding.of_update,
            "rounding_of_weight": self.rounding.of_weight,
            "update_norm": self.rounding.update**0.5,
            "weight_norm": self.rounding.weight**0.5,
            "probe": None if found is None else {"difference": found.difference, "limit": found.limit},
            "holds": self.holds,
        }


class ShardWriter:
    """Writes the weight files of a plan, measures what is rounded, and reads back what was written.

    `dtype` is for every floating-point tensor, None keeps each one's own; `single` where the target is one file.
    """

    def __init__(self, dense: Dense, plan: ChangePlan, dtype: torch.dtype | None, single: bool = False) -> None:
        self._dense, self._plan, self._dtype, self._single = dense, plan, dtype, single
        self._tensors = dense.tensors
        self.files = {file: (part, self._names(part, file)) for part in dense.checkpoint.parts for file in part.files}
        self.written = {name: self._entry(name, change) for name, change in plan.changes.items()}
        self._converted: dict[str, Rounding] = {}
        self._answers: dict[str, Answers] = {}

    # -- what is to be written ----------------------------------------------------------------------

    def _names(self, part: Part, file: Path) -> list[str]:
        """The tensors of a file, by their full names; new ones go into the last file of their part."""
        names = [part.prefix + key for key in self._dense.parts[part.name] if part.tensors.files[key] == file]
        if file == part.files[-1]:
            names += [name for name in self._plan.changes if name not in self._tensors and self._owner(name) is part]
        return names

    def _owner(self, name: str) -> Part:
        parts = self._dense.checkpoint.parts
        return next((part for part in parts if part.name and name.startswith(part.prefix)), parts[0])

    def _entry(self, name: str, change: Change) -> Written:
        kind = "whole" if change.value is not None else "update" if change.patches or change.dense else "copy"
        dtype, shape = self._outline(name)
        sites = tuple(dict.fromkeys(change.sites))
        return Written(name, kind, sites, change.rank, shape, dtype, new=name not in self._tensors)

    def _outline(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Dtype and shape that a tensor is written in."""
        change = self._plan.changes.get(name)
        source = name if change is None else change.source
        own = self._usual(self._owner(name)) if source is None else self._tensors.dtype(source)
        dtype = self._dtype if self._dtype is not None and own.is_floating_point else own
        if change is not None and change.value is not None:
            return dtype, tuple(change.value.shape)
        return dtype, self._tensors.shape(str(source))

    def _usual(self, part: Part) -> torch.dtype:
        """The floating-point dtype that most numbers of a part are in."""
        counts: Counter[torch.dtype] = Counter()
        own = self._dense.parts[part.name]
        for key in own:
            if own.dtype(key).is_floating_point:
                counts[own.dtype(key)] += prod(own.shape(key))
        return counts.most_common(1)[0][0]

    def _stays(self, name: str) -> bool:
        """Whether a tensor is written byte by byte as it is."""
        unpacked = self._tensors.place(name) is not None if name in self._tensors else False
        return name not in self._plan.changes and unpacked and self._outline(name)[0] == self._tensors.dtype(name)

    @property
    def count(self) -> int:
        """How many tensors the checkpoint has."""
        return sum(len(names) for _, names in self.files.values())

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(self.part_size(part) for part in self._dense.checkpoint.parts)

    def part_size(self, part: Part) -> int:
        """Bytes of a part's tensors."""
        outlines = [self._outline(name) for own, names in self.files.values() if own is part for name in names]
        return sum(prod(shape) * dtype.itemsize for dtype, shape in outlines)

    @property
    def rounding(self) -> Rounding:
        """Of all updates."""
        total = Rounding()
        for one in self.written.values():
            if one.kind == "update":
                total.add(one.rounding)
        return total

    @property
    def conversion(self) -> Rounding:
        """Of the tensors that no adapter changes, where they are written in another dtype."""
        total = Rounding()
        for one in self._converted.values():
            total.add(one)
        return total

    @property
    def dtype_name(self) -> str | None:
        """The dtype that was asked for, None where each tensor keeps its own."""
        return None if self._dtype is None else str(self._dtype).removeprefix("torch.")

    @property
    def dtype_words(self) -> str:
        """The dtypes that updates are rounded to."""
        names = {str(one.dtype).removeprefix("torch.") for one in self.written.values() if one.kind == "update"}
        return " and ".join(sorted(names))

    def weight_map(self, part: Part) -> dict[str, str]:
        """The part's tensors and the files they are in, as an index tells them."""
        return {
            name.removeprefix(part.prefix): file.name
            for file, (own, names) in self.files.items()
            if own is part
            for name in sorted(names)
        }

    # -- writing ------------------------------------------------------------------------------------

    def write(self, place: Place) -> list[str]:
        """Write every weight file; `place` tells where a file of the target is drafted. Returns their names there."""
        for file, (part, names) in self.files.items():
            drafted = place(self.name_of(file))
            drafted.parent.mkdir(parents=True, exist_ok=True)
            if all(map(self._stays, names)) and len(names) == len(part.tensors.headers[file].shapes):
                copy_file(file, drafted)
            else:
                write_pieces(drafted, self._pieces(part, file, names))
        return [self.name_of(file) for file in self.files]

    def name_of(self, file: Path) -> str:
        """A weight file's name below the target; "" where the target is that file."""
        root = self._dense.checkpoint.path
        if self._single:
            return ""
        return file.name if root.is_file() else file.relative_to(root).as_posix()

    def _pieces(self, part: Part, file: Path, names: list[str]) -> Iterator[Piece]:
        outline: Outline = {name.removeprefix(part.prefix): self._outline(name) for name in names}
        order = in_file_order(outline)
        yield header_bytes(outline, part.tensors.headers[file].metadata, order)
        for key in order:
            name = part.prefix + key
            place = self._tensors.place(name) if name in self._tensors else None
            if place is not None and self._stays(name):
                yield Span(*place)
            else:
                dtype, shape = outline[key]
                yield Made(prod(shape) * dtype.itemsize, partial(self._changed, name))

    def _changed(self, name: str) -> Iterator[Buffer]:
        change = self._plan.changes.get(name) or Change(name)
        dtype = self._outline(name)[0]
        rounding = self.written[name].rounding if name in self.written else self._converted.setdefault(name, Rounding())
        if change.value is not None:
            value = self._value(name, change.value, dtype)
            yield tensor_bytes(value)
            return
        assert change.source is not None
        if not self._tensors.dtype(change.source).is_floating_point:
            yield tensor_bytes(self._tensors[change.source])
            return
        dense = None if change.dense is None else change.dense()
        with ExitStack() as stack:
            source = self._rows(stack, change)
            watch = self._watch(name, source, dtype)
            for block in changed_blocks(source, change.patches, dense, dtype, rounding, watch):
                yield tensor_bytes(block)
        if not rounding.error < torch.inf:
            raise FormatError(f"tensor {name!r} would hold values that {str(dtype)[6:]} has no number for")

    def _watch(self, name: str, source: Rows, dtype: torch.dtype) -> Watch | None:
        """Notes what the base answers to the probe, where the rows that pass tell it finely enough."""
        if name not in self.written or not may_note(source.dtype, dtype):
            return None
        self._answers[name] = Answers(name, source.rows, source.columns)
        return self._answers[name].note

    def _value(self, name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
        """What takes a tensor's place, in the dtype that is written."""
        rounded = value.to(dtype)
        if not bool(torch.isfinite(rounded).all()):
            raise FormatError(f"tensor {name!r} would hold values that {str(dtype)[6:]} has no number for")
        rounding, whole = self.written[name].rounding, value.double()
        rounding.error += float((rounded.double() - whole).square().sum())
        rounding.weight += float(whole.square().sum())
        known = name in self._tensors and self._tensors.shape(name) == tuple(value.shape)
        base = self._tensors[name].double() if known else torch.zeros_like(whole)
        rounding.update += float((whole - base).square().sum())
        return rounded

    def _rows(self, stack: ExitStack, change: Change) -> Rows:
        """The rows that a change starts from."""
        source = str(change.source)
        place = self._tensors.place(source)
        if place is None:
            return HeldRows(self._tensors[source], change.patches)
        matrix = matrix_shape(self._tensors.shape(source), change.patches)
        return stack.enter_context(stored_rows(place, self._tensors.dtype(source), matrix))

    # -- checking -----------------------------------------------------------------------------------

    def check(self, place: Place) -> None:
        """Read every changed tensor from what was written, and hold it against base and adapters."""
        with side_by_side() as pool:
            tasks = []
            for file, (part, names) in self.files.items():
                stored = StoredTensors(place(self.name_of(file)))
                tasks += [
                    pool.submit(self._check, self.written[name], stored, name.removeprefix(part.prefix))
                    for name in names
                    if name in self.written
                ]
            for task in tasks:
                task.result()

    def _check(self, entry: Written, stored: StoredTensors, key: str) -> None:
        change, answers = self._plan.changes[entry.name], self._answers.get(entry.name)
        if change.value is not None:
            entry.same = torch.equal(stored[key], change.value.to(entry.dtype))
            return
        (file,) = stored.headers
        place = (file, *stored.headers[file].places[key])
        with ExitStack() as stack:
            source = self._rows(stack, change)
            written = stack.enter_context(stored_rows(place, stored.dtype(key), (source.rows, source.columns)))
            dense = None if change.dense is None else change.dense()
            size = (entry.rounding.weight + entry.rounding.update) ** 0.5
            entry.probe = probe(entry.name, source, written, size, change.patches, dense, answers)
