"""A base that begins as a configuration: a pipeline folder without weights, whose parts are drawn from a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from loraloom.errors import BaseModelError, suggest
from loraloom.tasks.diffusion.base import PIPELINES, Diffusion, _diffusers
from loraloom.tasks.diffusion.places import read_index
from loraloom.tasks.models.bases import fingerprint
from loraloom.tasks.models.loading import silent

_HELPERS = ("scheduler", "tokenizer")


def draw_diffusion(folder: str, *, seed: int) -> tuple[Diffusion, str]:
    """A pipeline of random weights, and its fingerprint: that of its configurations and the seed.

    The folder holds a model_index.json and, for each part, a config.json; tokenizers and scheduler are read as
    they are. Raises BaseModelError for whatever is missing there.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        near = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
        raise BaseModelError(
            f"base_config: {folder!r} is no folder with a model_index.json and the configurations of a pipeline"
            f"{suggest(path.name, near)}"
        )
    index = read_index(path)
    name = index["_class_name"]
    if name not in PIPELINES:
        raise BaseModelError(f"base_config: the pipeline is a {name}; one of {', '.join(PIPELINES)} is expected")
    parts = {
        part: entry for part, entry in index.items() if isinstance(entry, list) and entry[0] and part not in _LEFT_OUT
    }
    with silent(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = {part: _part(path, part, *entry) for part, entry in sorted(parts.items())}
    absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    settings = absent if name == "StableDiffusionPipeline" else {}
    pipeline = getattr(_diffusers(), name)(**made, **settings)
    files = sorted(path.glob("*/*.json"))
    diffusion = Diffusion.of(pipeline, name=folder)
    return diffusion, f"{fingerprint(files)[:56]}{seed:08x}"


_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")


def _part(folder: Path, part: str, library: str, name: str) -> Any:
    """One part of a pipeline. Raises BaseModelError naming it."""
    try:
        kind = getattr(transformers if library == "transformers" else _diffusers(), name)
        if part.startswith(_HELPERS):
            return kind.from_pretrained(str(folder / part), local_files_only=True)
        if library == "transformers":
            return kind(kind.config_class.from_pretrained(str(folder / part), local_files_only=True)).eval()
        return kind.from_config(kind.load_config(str(folder / part), local_files_only=True)).eval()
    except Exception as error:  # anything from KeyError to OSError, by what is amiss in the files
        reason = " ".join(str(error).split())[:300]
        raise BaseModelError(f"base_config: {folder / part} makes no {name} ({reason})") from error
