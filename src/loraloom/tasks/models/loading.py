"""Loading a transformers model for a task: its parts, its new heads, and one sentence for whatever is amiss."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from loraloom.errors import BaseModelError
from loraloom.tasks.models.attention import use_float32_attention
from loraloom.tasks.models.bases import ResolvedBase
from loraloom.tasks.models.quantized import quantization_settings, quantized_layers

_transformers_logging: Any = logging


@dataclass(frozen=True)
class LoadedModel:
    """A model as its files hold it, and which of its tensors they do not hold."""

    model: PreTrainedModel
    missing: frozenset[str]
    """Names of tensors that were absent or of another shape: a new head's, else `check_backbone` complains."""
    random: bool = False
    """Whether every weight was drawn, there being a configuration alone."""
    notes: tuple[str, ...] = ()
    """What of it is quantised."""


def load_config(base: ResolvedBase) -> PreTrainedConfig:
    """The base's configuration. Raises BaseModelError."""
    config: PreTrainedConfig = load_part(AutoConfig, base, "configuration")
    return config


def load_tokenizer(base: ResolvedBase) -> PreTrainedTokenizerBase:
    """The base's tokenizer. Raises BaseModelError when its files are absent or unfit."""
    tokenizer: PreTrainedTokenizerBase = load_part(AutoTokenizer, base, "tokenizer")
    files = sorted(set(tokenizer.vocab_files_names.values()))
    if files and not any((base.folder / file).is_file() for file in files):
        raise BaseModelError(
            f"base model {base.name!r}: {base.folder} holds no vocabulary, {' or '.join(files)} is expected"
        )
    return tokenizer


def has_tokenizer(base: ResolvedBase) -> bool:
    """Whether a tokenizer's files lie in the base's folder; beside a bare configuration there may be none."""
    names = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "source.spm")
    return any((base.folder / name).is_file() for name in (*names, "sentencepiece.bpe.model", "spm_char.model"))


def load_part(loader: Any, base: ResolvedBase, part: str, **settings: Any) -> Any:
    """What `loader`, an Auto class, makes of the base's folder; `part` is its name for sentences.

    Raises BaseModelError, one sentence for whatever the loader raises.
    """
    try:
        with silent():
            return loader.from_pretrained(base.folder, local_files_only=True, **settings)
    except Exception as error:  # anything from KeyError to RuntimeError, by what is amiss in the files
        raise _unloadable(base, part, error) from error


def _unloadable(base: ResolvedBase, part: str, error: Exception) -> BaseModelError:
    reason = " ".join(str(error).split())[:300]
    return BaseModelError(f"base model {base.name!r}: its {part} cannot be loaded from {base.folder} ({reason})")


def load_model(
    auto: Any,
    base: ResolvedBase,
    what: str,
    *,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    seed: int,
    quantize: str | None = None,
    keep_whole: Sequence[str] = (),
) -> LoadedModel:
    """The model of class `auto` over the base's weights, or, of a bare configuration, over drawn ones.

    `what` is its name for sentences, e.g. "text classification model". `quantize` holds linear layers in
    fewer bits, but for the modules `keep_whole`. The global random state is left as it was. Raises
    BaseModelError, ConfigError for a quantisation that cannot be had here.
    """
    with silent(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if base.random:
            model = _drawn(auto, base, what, config, dtype)
            missing: set[str] = set()
        else:
            settings: dict[str, Any] = {"ignore_mismatched_sizes": True, "output_loading_info": True}
            if quantize is not None:
                settings["quantization_config"] = quantization_settings(quantize, dtype, keep_whole=keep_whole)
            model, report = load_part(auto, base, what, config=config, dtype=dtype, use_safetensors=True, **settings)
            missing = set(report["missing_keys"]) | {mismatch[0] for mismatch in report["mismatched_keys"]}
    use_float32_attention(model)
    notes = () if quantize is None or base.random else (quantized_layers(model, quantize),)
    return LoadedModel(model.eval(), frozenset(missing), base.random, notes)


def _drawn(auto: Any, base: ResolvedBase, what: str, config: PreTrainedConfig, dtype: torch.dtype) -> Any:
    try:
        return auto.from_config(config, dtype=dtype)
    except Exception as error:  # as in load_part
        raise _unloadable(base, what, error) from error


@contextmanager
def silent() -> Iterator[None]:
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


# --- heads


def check_backbone(loaded: LoadedModel, base: ResolvedBase, *, heads: Collection[str] = ()) -> None:
    """Raise BaseModelError when a tensor is missing that is neither a head's nor a pooler's.

    `heads` names modules that count as heads although they lie inside of the backbone.
    """
    model = loaded.model
    lost = sorted(key for key in loaded.missing if head_of(model, key, heads) is None)
    if lost:
        raise BaseModelError(
            f"base model {base.name!r}: {base.folder} lacks or misshapes {len(lost)} of the tensors that "
            f"{type(model).__name__} needs ({some(lost)}); its config.json belongs to other weights"
        )


def head_of(model: PreTrainedModel, key: str, heads: Collection[str] = ()) -> str | None:
    """The head of a tensor: one of `heads`, a child of the model, or a pooler of its backbone; else None."""
    for head in heads:
        if key.startswith(f"{head}."):
            return head
    first, second = f"{key}.".split(".")[:2]
    if first != model.base_model_prefix:
        return first if isinstance(getattr(model, first, None), nn.Module) else None
    return f"{first}.{second}" if "pool" in second else None


def own_modules(model: PreTrainedModel) -> list[str]:
    """The children of the model that have parameters and are not the backbone."""
    return [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and next(child.parameters(), None) is not None
    ]


def label_heads(loaded: LoadedModel, known: Sequence[str], width: int, seed: int) -> tuple[list[str], list[str]]:
    """Draw the heads that hold missing tensors; without any, the last layer, which is for other labels.

    `known` are the labels of the checkpoint, empty when it is no classifier's; `width` is how many the new
    head tells apart. Returns the paths of all heads and what to tell of them. A checkpoint that was a
    classifier has its whole head trained further, also the parts that are not new. A model that was drawn as
    a whole has none.
    """
    model = loaded.model
    if loaded.random:
        return [], [f"every weight was drawn from seed {seed}: there is a configuration alone"]
    own = own_modules(model)
    new = {head for key in loaded.missing if (head := head_of(model, key))}
    new = new or {path for path in own if _has_width(model.get_submodule(path), width)}
    heads = [path for path, _ in model.named_modules() if path in new or (known and path in own)]
    draw_heads(model, sorted(new), seed)
    note = f"new head ({', '.join(sorted(new))}) for {width} labels, drawn from seed {seed}"
    replaced = f"; the checkpoint's own is for {len(known)} other labels ({some(known)})" if known else ""
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


def known_labels(config: PreTrainedConfig, kind: str) -> list[str]:
    """The labels that the files were trained on; empty when the name of their model's class has no `kind` in it."""
    # In the middle of it: DeiT's is …ForImageClassificationWithTeacher.
    classifies = any(kind in name for name in config.architectures or ())
    names: dict[Any, str] = dict(config.id2label or {})
    return [names[index] for index in sorted(names)] if classifies else []


def set_labels(config: PreTrainedConfig, labels: Sequence[str]) -> None:
    """Let a configuration be for these labels, in this order."""
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    if hasattr(config, "use_cache"):
        config.use_cache = False  # decoders would fill a cache of keys and values that nobody reads


def same_labels(known: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """Where each of `labels` stands in `known`, None when these are not the same labels."""
    theirs, ours = [_plain(label) for label in known], [_plain(label) for label in labels]
    if sorted(theirs) != sorted(ours) or len(set(ours)) != len(ours):
        return None
    return [theirs.index(label) for label in ours]


def reorder(model: nn.Module, heads: Iterable[str], order: Sequence[int]) -> None:
    """Put the rows of the last layer, one per label, in our order."""
    for head in heads:
        for tensor in model.get_submodule(head).parameters():
            if tensor.shape[:1] == (len(order),):
                tensor.data.copy_(tensor.data[list(order)])


def _has_width(module: nn.Module, width: int) -> bool:
    return any(tensor.shape[:1] == (width,) for tensor in module.parameters())


def _plain(label: str) -> str:
    """A label for comparison: transformers calls nameless ones LABEL_0, LABEL_1, …"""
    return label.strip().lower().removeprefix("label_")


def some(names: Sequence[str]) -> str:
    """The first three of many names."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
