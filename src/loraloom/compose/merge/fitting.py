"""Adapters held against a checkpoint: which class of model they were made for, and that everything has its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loraloom.compose.checkpoint import Part
from loraloom.compose.checkpoint.dense import Dense
from loraloom.compose.checkpoint.layout import (
    AUTO_BY_TASK,
    AUTO_CLASSES,
    Hints,
    Skeleton,
    class_skeleton,
    key_skeleton,
    of_parts,
)
from loraloom.compose.merge.changes import Fitted, fit_adapter
from loraloom.compose.sources import Source
from loraloom.compose.weights import Weighted
from loraloom.errors import FormatError
from loraloom.formats.keys import PARTS
from loraloom.formats.peft_names import PREFIX

_CLASSIFIERS = ("classifier", "score")


def fit_all(dense: Dense, adapters: Sequence[Weighted], sources: Sequence[Source]) -> tuple[Skeleton, list[Fitted]]:
    """The model that all adapters fit, and the adapters on it.

    The adapters' own word goes first (PEFT's task, the labels of a run), then the checkpoint's, then every class that
    transformers has for such a config. Raises FormatError, with the faults of the class that is nearest.
    """
    nearest: FormatError | None = None
    for skeleton in _candidates(dense, sources):
        try:
            fitted = [
                fit_adapter(skeleton, weighted, source.name, dense.tensors)
                for weighted, source in zip(adapters, sources, strict=True)
            ]
        except FormatError as error:
            if nearest is None or _faults(error) < _faults(nearest):
                nearest = error
            continue
        return skeleton, fitted
    assert nearest is not None
    raise nearest


def _faults(error: FormatError) -> int:
    return str(error).count("\n")


def _candidates(dense: Dense, sources: Sequence[Source]) -> Iterator[Skeleton]:
    checkpoint = dense.checkpoint
    if checkpoint.form == "pipeline":
        ordered = sorted(checkpoint.parts, key=lambda part: PARTS.index(part.name) if part.name in PARTS else 99)
        yield of_parts({part.name: _of_class(dense, part) for part in ordered if part.name in PARTS})
        return
    part = checkpoint.parts[0]
    if part.library == "transformers":
        yield from _of_transformers(dense, part, sources)
    elif part.library == "diffusers":
        yield _of_class(dense, part)
    if part.library != "diffusers":
        yield key_skeleton(dense.parts[part.name], _hints(sources))


def _of_class(dense: Dense, part: Part) -> Skeleton:
    tensors = dense.parts[part.name]
    made = class_skeleton(part.config, part.class_name, part.library, tensors) if part.library else None
    return made or key_skeleton(tensors)


def _of_transformers(dense: Dense, part: Part, sources: Sequence[Source]) -> Iterator[Skeleton]:
    config = {**part.config, **label_settings(sources, part.config)}
    tasks = [AUTO_BY_TASK.get(str(source.file.config.get("task_type"))) for source in sources]
    seen: set[str | None] = set()
    for name in dict.fromkeys([*filter(None, tasks), part.class_name, *AUTO_CLASSES]):
        skeleton = class_skeleton(config, name, "transformers", dense.parts[part.name])
        if skeleton is not None and skeleton.class_name not in seen:
            seen.add(skeleton.class_name)
            yield skeleton


def label_settings(sources: Sequence[Source], config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config is to say of labels, for the first adapter with a classifier; empty where it says so already."""
    for source in sources:
        labels = ((source.record or {}).get("task_state") or {}).get("labels")
        width = _head_width(source)
        if isinstance(labels, list) and labels and source.rest:
            return _labels([str(label) for label in labels])
        if width is not None and width != len(config.get("id2label") or (0, 1)):
            return _labels([f"LABEL_{number}" for number in range(width)])
    return {}


def _labels(names: Sequence[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def _head_width(source: Source) -> int | None:
    """How many labels an adapter's classifier tells apart."""
    heads: Mapping[str, Any] = source.file.tensors
    for key in sorted(source.rest, reverse=True):  # out_proj goes before dense
        path = key.removeprefix(PREFIX).split(".")
        if path[0] in _CLASSIFIERS and path[-1] == "weight" and heads[key].dim() == 2:
            return int(heads[key].shape[0])
    return None


def _hints(sources: Sequence[Source]) -> Hints:
    """What the adapters tell of layers whose class nobody knows."""
    lookups, groups = set(), {}
    for source in sources:
        for path in source.updates:
            update = source.updates[path]
            if update.lookup:
                lookups.add(path)
            elif update.groups > 1:
                groups[path] = update.groups
    transposed = any(bool(source.file.config.get("fan_in_fan_out")) for source in sources)
    return Hints(frozenset(lookups), groups, transposed)
