"""A trained adapter once more, as other programs read it: diffusers, kohya's tools, and embedding folders."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from loraloom.adapters import AdapterSet
from loraloom.errors import FormatError
from loraloom.formats.anyfile import DIFFUSERS_NAME
from loraloom.formats.diffusers_write import diffusers_metadata, diffusers_tensors
from loraloom.formats.export import pure_updates, save_diffusers, save_kohya
from loraloom.formats.kohya import kohya_metadata, kohya_tensors
from loraloom.formats.peft_file import AdapterFile
from loraloom.formats.peft_write import PeftWriter
from loraloom.formats.tensorfile import tensor_pieces, write_together
from loraloom.formats.updates import Update
from loraloom.tasks.diffusion.bench import Bench
from loraloom.tasks.diffusion.model import EMBEDDING

_EMBEDDING_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""What SDXL's embedding files call the two encoders."""


def write_exports(
    bench: Bench, adapters: AdapterSet, name: str, folder: Path, title: str, *, kohya: bool
) -> tuple[list[Path], list[str]]:
    """Write what other programs read of an adapter; returns the files, and a sentence for each that cannot be.

    A trained run is not to be lost over a copy of its result: what such a file cannot hold is told, not raised.
    """
    kind = bench.diffusion.kind
    facts = {
        "ss_output_name": title,
        "ss_resolution": f"({bench.latents.size[0]}, {bench.latents.size[1]})",
        "modelspec.title": title,
        "modelspec.prediction_type": bench.objective.prediction,
    }
    written: list[Path] = []
    notes: list[str] = []
    wanted: dict[Path, Callable[[Path], None]] = {}
    if adapters.plan(name).sites:
        wanted[folder / DIFFUSERS_NAME] = lambda path: _save_diffusers(adapters, name, path, kind)
        if kohya:
            wanted[folder / f"{title}.safetensors"] = lambda path: _save_kohya(adapters, name, path, kind, facts)
    for path, save in wanted.items():
        try:
            save(path)
            written.append(path)
        except FormatError as error:
            notes.append(f"{path.name} was not written for other programs: {error}")
    if bench.texts.vectors is not None:
        written.append(folder / f"{file_name(str(bench.texts.word))}.safetensors")
        _write(written[-1], embedding_tensors(bench), {"name": str(bench.texts.word)})
    return written, notes


def _save_diffusers(adapters: AdapterSet, name: str, path: Path, kind: str) -> None:
    if not _has_word(adapters, name):
        save_diffusers(adapters, name, path, kind=kind, dtype=None)
        return
    tensors = diffusers_tensors(_updates(adapters, name).values(), kind, None)
    _write(path, tensors, diffusers_metadata(kind, None))


def _save_kohya(adapters: AdapterSet, name: str, path: Path, kind: str, facts: Mapping[str, str]) -> None:
    if not _has_word(adapters, name):
        save_kohya(adapters, name, path, kind=kind, dtype=None, metadata=facts)
        return
    tensors = kohya_tensors(_updates(adapters, name).values(), kind, None)
    _write(path, tensors, kohya_metadata(tensors, kind, facts))


def _has_word(adapters: AdapterSet, name: str) -> bool:
    return any(copied.module == EMBEDDING for copied in adapters.plan(name).copies)


def _updates(adapters: AdapterSet, name: str) -> Mapping[str, Update]:
    """The low-rank updates of an adapter that was trained with a new word, whose vectors have a file of their own."""
    writer = PeftWriter(adapters, name)
    tensors = {key: tensor for key, tensor in writer.tensors().items() if f".{EMBEDDING}." not in key}
    return pure_updates(AdapterFile(writer.config(None, None), tensors, {}, Path(f"adapter {name!r}")))


def embedding_tensors(bench: Bench) -> dict[str, Tensor]:
    """A learnt word as embedding files have it: "emb_params" (n, D), or of SDXL "clip_l" and "clip_g"."""
    assert bench.texts.vectors is not None
    vectors = {name: tensor.detach() for name, tensor in bench.texts.vectors().items()}
    if len(vectors) == 1:
        return {"emb_params": next(iter(vectors.values()))}
    return {_EMBEDDING_KEYS[name]: tensor for name, tensor in vectors.items()}


def file_name(word: str) -> str:
    """A word as a file's name, by which programs find it in prompts.

    >>> file_name("<my cat>")
    'my-cat'
    """
    return re.sub(r"[^\w.-]+", "-", word).strip("-.") or "embedding"


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    write_together({path: tensor_pieces(tensors, metadata)})
