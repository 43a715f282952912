"""A base model with a classification head: loaded with transformers, its head found, kept or newly drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from loraloom.errors import BaseModelError
from loraloom.tasks.attention import use_float32_attention
from loraloom.tasks.bases import ResolvedBase
from loraloom.tasks.tokens import use_padding

_transformers_logging: Any = logging
_PARTS = {AutoConfig: "configuration", AutoTokenizer: "tokenizer"}


@dataclass(frozen=True)
class Classifier:
    """A model that gives logits (B, number of labels), and what is new in it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    heads: tuple[str, ...]
    """Paths of the modules to train as a whole, e.g. ("classifier",)."""
    notes: list[str]


def load_classifier(base: ResolvedBase, labels: Sequence[str], *, dtype: torch.dtype, seed: int) -> Classifier:
    """Load `base` for telling `labels` apart; a head that the files do not have is drawn from `seed`.

    The global random state is left as it was. Raises BaseModelError when the files are no model that can
    classify text, or are incomplete.
    """
    with _silent(), torch.random.fork_rng(devices=[]):
        config = _load(AutoConfig, base)
        known = _known_labels(config)
        _set_labels(config, labels)
        model, report = _load(
            AutoModelForSequenceClassification,
            base,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        tokenizer = _load(AutoTokenizer, base)
    _check_vocabulary(tokenizer, base)
    missing = set(report["missing_keys"]) | {mismatch[0] for mismatch in report["mismatched_keys"]}
    _check_backbone(model, missing, base)
    use_padding(tokenizer, model)
    use_float32_attention(model)
    if not missing and (order := _same_labels(known, labels)) is not None:
        heads = _own_modules(model)
        _reorder(model, heads, order)
        notes = [f"the checkpoint's head ({', '.join(heads)}) is for these labels and was kept"]
    else:
        heads, notes = _new_heads(model, missing, known, seed)
    return Classifier(model, tokenizer, tuple(heads), notes)


def _load(loader: Any, base: ResolvedBase, **settings: Any) -> Any:
    """What `loader` makes of the base's folder, with whatever it raises told as one sentence."""
    try:
        return loader.from_pretrained(base.folder, local_files_only=True, **settings)
    except Exception as error:  # anything from KeyError to RuntimeError, by what is amiss in the files
        part = _PARTS.get(loader, "text classification model")
        reason = " ".join(str(error).split())[:300]
        raise BaseModelError(
            f"base model {base.name!r}: its {part} cannot be loaded from {base.folder} ({reason})"
        ) from error


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, base: ResolvedBase) -> None:
    """Raise BaseModelError when the tokenizer's files are absent: transformers makes one without words then."""
    files = sorted(set(tokenizer.vocab_files_names.values()))
    if files and not any((base.folder / file).is_file() for file in files):
        raise BaseModelError(
            f"base model {base.name!r}: {base.folder} holds no vocabulary, {' or '.join(files)} is expected"
        )


@contextmanager
def _silent() -> Iterator[None]:
    """Keep transformers' load report and progress bar to itself: the notes say what matters of it."""
    level = _transformers_logging.get_verbosity()
    bar = _transformers_logging.is_progress_bar_enabled()
    _transformers_logging.set_verbosity_error()
    _transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        _transformers_logging.set_verbosity(level)
        if bar:
            _transformers_logging.enable_progress_bar()


def _known_labels(config: PreTrainedConfig) -> list[str]:
    """The labels that the files were trained on; empty when they are no classifier's."""
    classifies = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    names: dict[Any, str] = dict(config.id2label or {})
    return [names[index] for index in sorted(names)] if classifies else []


def _set_labels(config: PreTrainedConfig, labels: Sequence[str]) -> None:
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    if hasattr(config, "use_cache"):
        config.use_cache = False  # decoders would fill a cache of keys and values that nobody reads


def _check_backbone(model: PreTrainedModel, missing: Iterable[str], base: ResolvedBase) -> None:
    """Raise BaseModelError when a tensor is missing that is neither a head's nor a pooler's."""
    lost = sorted(key for key in missing if _head_of(model, key) is None)
    if lost:
        raise BaseModelError(
            f"base model {base.name!r}: {base.folder} lacks or misshapes {len(lost)} of the tensors that "
            f"{type(model).__name__} needs ({_some(lost)}); its config.json belongs to other weights"
        )


def _new_heads(
    model: PreTrainedModel, missing: Iterable[str], known: Sequence[str], seed: int
) -> tuple[list[str], list[str]]:
    """Draw the heads that hold `missing` tensors; without any, the last layer, which is for other labels.

    Returns the paths of all heads and what to tell of them. A checkpoint that was a classifier has its whole
    head trained further, also the parts that are not new.
    """
    width = len(model.config.id2label or ())
    own = _own_modules(model)
    new = {head for key in missing if (head := _head_of(model, key))}
    new = new or {path for path in own if _has_width(model.get_submodule(path), width)}
    heads = [path for path, _ in model.named_modules() if path in new or (known and path in own)]
    draw_heads(model, sorted(new), seed)
    note = f"new head ({', '.join(sorted(new))}) for {width} labels, drawn from seed {seed}"
    replaced = f"; the checkpoint's own is for {len(known)} other labels ({_some(known)})" if known else ""
    return heads, [note + replaced]


def draw_heads(model: nn.Module, heads: Sequence[str], seed: int) -> None:
    """Fill whole modules anew from `seed`: matrices from N(0, initializer_range²), norms 1, biases 0.

    That is what transformers does for nearly every head; drawing here, in float32 and from a generator of
    its own, gives the same head whatever the precision of the model and whatever was drawn before.
    """
    spread = getattr(getattr(model, "config", None), "initializer_range", None) or 0.02
    generator = torch.Generator().manual_seed(seed)
    for head in heads:
        for name, tensor in model.get_submodule(head).named_parameters():
            if tensor.dim() > 1:
                tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * spread)
            else:
                tensor.data.fill_(0.0 if name.endswith("bias") else 1.0)


def _head_of(model: PreTrainedModel, key: str) -> str | None:
    """The head of a tensor: a child of the model, or a pooler of its backbone; None when it is in neither."""
    first, second = f"{key}.".split(".")[:2]
    if first != model.base_model_prefix:
        return first if isinstance(getattr(model, first, None), nn.Module) else None
    return f"{first}.{second}" if "pool" in second else None


def _own_modules(model: PreTrainedModel) -> list[str]:
    """The children of the model that have parameters and are not the backbone."""
    return [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and next(child.parameters(), None) is not None
    ]


def _has_width(module: nn.Module, width: int) -> bool:
    return any(tensor.shape[:1] == (width,) for tensor in module.parameters())


def _same_labels(known: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """Where each of `labels` stands in `known`, None when these are not the same labels."""
    theirs, ours = [_plain(label) for label in known], [_plain(label) for label in labels]
    if sorted(theirs) != sorted(ours) or len(set(ours)) != len(ours):
        return None
    return [theirs.index(label) for label in ours]


def _plain(label: str) -> str:
    """A label for comparison: transformers calls nameless ones LABEL_0, LABEL_1, …"""
    return label.strip().lower().removeprefix("label_")


def _reorder(model: nn.Module, heads: Sequence[str], order: Sequence[int]) -> None:
    """Put the rows of the last layer, one per label, in our order."""
    for head in heads:
        for tensor in model.get_submodule(head).parameters():
            if tensor.shape[:1] == (len(order),):
                tensor.data.copy_(tensor.data[list(order)])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
