"""The tokenizer of a text-to-image base by itself: for counting, without loading a model."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from loraloom.errors import BaseModelError
from loraloom.tasks.diffusion.places import find_base
from loraloom.tasks.models.bases import ResolvedBase
from loraloom.tasks.models.loading import load_tokenizer

_FOLDER = "tokenizer"


def load_prompt_tokenizer(base: str) -> PreTrainedTokenizerBase:
    """The first tokenizer of a base: CLIP's, in Stable Diffusion, SDXL, SD 3 and Flux alike.

    Raises BaseModelError where the base is not there, or is a single file, which holds none.
    """
    place = find_base(base)
    folder = place.path / _FOLDER
    if not folder.is_dir():
        raise BaseModelError(f"base model {base!r}: {place.path} holds no tokenizer; a diffusers folder is expected")
    return load_tokenizer(ResolvedBase(base, folder, place.source, ""))
