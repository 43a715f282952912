"""What belongs to a merged checkpoint beside its weights: config, index, tokenizer, a model card, a run record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraloom.compose.checkpoint.opened import CONFIG, Checkpoint, Part
from loraloom.compose.checkpoint.streaming import copy_file, write_pieces
from loraloom.compose.merge.changes import ChangePlan, Fitted
from loraloom.compose.merge.fitting import label_settings
from loraloom.compose.merge.shards import ShardWriter
from loraloom.compose.sources import Source
from loraloom.tasks.diffusion.places import INDEX as PIPELINE_INDEX
from loraloom.training.output import RECORD_NAME

CARD = "README.md"
_KEPT = (".json", ".txt", ".model", ".tiktoken", ".jinja", ".py", ".spm", ".vocab", ".bpe", ".md", "")
"""Endings of the files that belong to a model: settings, vocabularies, code, licences."""
_NOT_KEPT = (CARD, RECORD_NAME, "adapter_config.json", "trainer_state.json")
_OTHER_WEIGHTS = (".bin", ".onnx", ".h5", ".msgpack", ".gguf", ".ckpt", ".pt", ".pth", ".xml", ".tflite", ".ot")
_RECORDED = ("format", "task", "metric", "shares", "task_state", "settings", "precision", "versions", "data")

Place = Callable[[str], Path]


@dataclass(frozen=True)
class Papers:
    """Files beside the weights: those taken over, and those made anew, by their names below the target."""

    copied: Mapping[str, Path]
    made: Mapping[str, bytes]

    def write(self, place: Place) -> list[str]:
        """Write them all; returns their names."""
        for name, source in self.copied.items():
            place(name).parent.mkdir(parents=True, exist_ok=True)
            copy_file(source, place(name))
        for name, data in self.made.items():
            place(name).parent.mkdir(parents=True, exist_ok=True)
            write_pieces(place(name), [data])
        return [*self.copied, *self.made]


def papers_of(
    checkpoint: Checkpoint,
    plan: ChangePlan,
    fitted: Sequence[Fitted],
    sources: Sequence[Source],
    writer: ShardWriter,
    out: Path,
) -> Papers:
    """The papers of a merged checkpoint."""
    made: dict[str, bytes] = {}
    for part in checkpoint.parts:
        folder = "" if part.folder in (None, checkpoint.path) else f"{part.name}/"
        changed = merged_config(part, plan, sources, writer)
        if changed != part.config:
            made[f"{folder}{CONFIG}"] = _json(changed)
        if part.index is not None:
            made[f"{folder}{part.index.name}"] = _json(_index(part, writer))
    made[CARD] = _card(checkpoint, fitted, plan, writer, out).encode()
    record = _record(checkpoint, fitted, sources, plan)
    if record is not None:
        made[RECORD_NAME] = _json(record)
    weights = {writer.name_of(file) for file in writer.files}
    others = {} if checkpoint.path.is_file() else dict(_others(checkpoint))
    return Papers({name: file for name, file in others.items() if name not in made.keys() | weights}, made)


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _others(checkpoint: Checkpoint) -> Iterator[tuple[str, Path]]:
    """The files of the base that belong to the model and are no weights."""
    root = checkpoint.path
    folders = [root]
    if checkpoint.form == "pipeline":
        named = json.loads((root / PIPELINE_INDEX).read_text("utf-8"))
        folders += [root / name for name in named if (root / name).is_dir()]
    else:
        folders += [child for child in sorted(root.iterdir()) if child.is_dir() and not _of_other_runtime(child)]
    for folder in folders:
        for file in sorted(folder.iterdir()):
            name = file.relative_to(root).as_posix()
            if file.is_file() and file.suffix in _KEPT and name not in _NOT_KEPT and not file.name.startswith("."):
                yield name, file


def _of_other_runtime(folder: Path) -> bool:
    """Whether a subfolder holds weights, of another runtime or another model, or nothing to look at."""
    return folder.name.startswith(".") or any(
        file.suffix in (*_OTHER_WEIGHTS, ".safetensors") for file in folder.iterdir()
    )


# -- config and index ---------------------------------------------------------------------------------


def merged_config(part: Part, plan: ChangePlan, sources: Sequence[Source], writer: ShardWriter) -> dict[str, Any]:
    """The config.json of a part as it is after the merge."""
    config = dict(part.config)
    config.pop("quantization_config", None)
    if part.library != "transformers":
        return config
    if writer.dtype_name is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = writer.dtype_name
    if plan.untied:
        config["tie_word_embeddings"] = False
    if plan.heads and plan.skeleton.class_name:
        config["architectures"] = [plan.skeleton.class_name]
        labels = label_settings(sources, part.config)
        config |= {key: {str(k): v for k, v in value.items()} for key, value in labels.items()}
        if labels and "Classification" in plan.skeleton.class_name:
            config["problem_type"] = "single_label_classification"
    return config


def _index(part: Part, writer: ShardWriter) -> dict[str, Any]:
    assert part.index is not None
    index: dict[str, Any] = json.loads(part.index.read_text("utf-8"))
    index["metadata"] = {**(index.get("metadata") or {}), "total_size": writer.part_size(part)}
    index["weight_map"] = writer.weight_map(part)
    return index


# -- the record of a run ------------------------------------------------------------------------------


def _record(
    checkpoint: Checkpoint, fitted: Sequence[Fitted], sources: Sequence[Source], plan: ChangePlan
) -> dict[str, Any] | None:
    """A run.json by which `predict` and `evaluate` take the folder; None where no run of ours is behind an adapter.

    It tells what a model is for and how its data are read, not scores: those were the adapter's over its base.
    """
    holders = [source for source in sources if source.rest and source.record] or [one for one in sources if one.record]
    if checkpoint.form != "transformers" or not holders:
        return None
    record = holders[0].record or {}
    kept = {key: record[key] for key in _RECORDED if key in record}
    base = {**(record.get("base") or {}), "name": checkpoint.name}
    merged = {
        "base": checkpoint.name,
        "adapters": [{"name": one.name, **one.weighted.to_json()} for one in fitted],
        "heads": sorted(plan.heads),
    }
    return {**kept, "method": "full", "base": base, "merged": merged}


# -- the model card -----------------------------------------------------------------------------------


def _card(checkpoint: Checkpoint, fitted: Sequence[Fitted], plan: ChangePlan, writer: ShardWriter, out: Path) -> str:
    library = "diffusers" if checkpoint.form in ("pipeline", "diffusers") else "transformers"
    rows = "\n".join(f"| `{one.name}` | {_weight_words(one)} |" for one in fitted)
    rounding = writer.rounding
    heads = f"\n\nTaken over whole: {', '.join(f'`{path}`' for path in sorted(plan.heads))}." if plan.heads else ""
    return f"""---
library_name: {library}
tags:
- loraloom
- merge
---

# {out.name}

`{checkpoint.name}` with LoRA adapters folded into its weights: W' = W + Σ weight · ΔW.

| adapter | weight |
|---|---|
{rows}

{len(writer.written)} of {writer.count} tensors were changed; the others are the base's to the bit{_conversion(writer)}.
Rounding to {writer.dtype_words or "the files' dtype"} took {rounding.of_update:.2g} of the update's size \
({rounding.of_weight:.2g} of the weights'). Before this folder got its name, every changed layer was read back and held
against base and adapters.{heads}

To take an adapter out again, merge it with the opposite weight, `loraloom merge THIS_FOLDER ADAPTER:-1 --out …`: that
gives the base's weights up to two roundings, not to the bit.

{_use(checkpoint)}
"""


def _conversion(writer: ShardWriter) -> str:
    return "" if writer.dtype_name is None else f", but for the dtype, {writer.dtype_name}"


def _weight_words(one: Fitted) -> str:
    blocks = ", ".join(f"{name} × {factor:g}" for name, factor in one.weighted.blocks.items())
    return f"{one.weighted.weight:g}" + (f" ({blocks})" if blocks else "")


def _use(checkpoint: Checkpoint) -> str:
    if checkpoint.form == "pipeline":
        return 'Use it as any base: `loraloom generate --base THIS_FOLDER --prompt "…"`, or with diffusers.'
    return "Use it as any base, or load it with its library."
