"""Bases whose linear layers hold their weights in eight or four bits, by transformers' own settings.

| how  | by                              | a weight becomes                                                     |
|------|---------------------------------|----------------------------------------------------------------------|
| int8 | torchao, else bitsandbytes      | a whole number of eight bits, times a scale per row                  |
| int4 | torchao                         | one of sixteen evenly spaced values, times a scale per 32 neighbours |
| nf4  | bitsandbytes                    | one of sixteen values spaced as a normal distribution is (QLoRA,     |
|      |                                 | arXiv 2305.14314, §3), times a scale per 64 neighbours               |

Heads, output layers, embeddings and routers stay as they are. torchao keeps an int4 value in a byte of its
own wherever it runs, so that int4 shows what four bits do to a score and saves no more than int8 does.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import nn
from transformers import BitsAndBytesConfig, TorchAoConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from loraloom.adapters.quantized import is_quantized
from loraloom.errors import ConfigError, MissingExtraError, suggest

WAYS = ("int8", "int4", "nf4")
"""What `quantize` may say."""

_INT4_GROUP = 32
_DEVICES = ("cpu", "cuda")
_WHOLE = (
    *("classifier", "pre_classifier", "class_labels_classifier", "score", "head", "classification_head", "cls"),
    *("pooler", "qa_outputs", "lm_head", "output_projection", "embed_out", "proj_out", "embed_tokens", "shared"),
    *("class_embed", "bbox_embed", "bbox_predictor", "enc_score_head", "enc_bbox_head"),
    *("feat_out", "prob_out", "projector", "router", "gate"),
)
"""Last words of the paths of modules that are heads, output layers, or choose among experts."""


def quantization_settings(
    how: str, dtype: torch.dtype, device: torch.device | None = None, *, keep_whole: Sequence[str] = ()
) -> QuantizationConfigMixin:
    """transformers' settings for holding linear layers as `how` says and computing in `dtype`.

    For `from_pretrained(quantization_config=…)`; `device` is where the model will run, None for the CPU or
    CUDA. `keep_whole` names modules, by path or last word, that stay as they are beside heads and output
    layers. Raises ConfigError for a word that is none of WAYS or a device on which it cannot be had,
    MissingExtraError where the library for it is not installed.
    """
    if how not in WAYS:
        raise ConfigError(f"quantize: {how!r} is unknown, {', '.join(WAYS)} can be used{suggest(how, WAYS)}")
    if device is not None and device.type not in _DEVICES:
        raise ConfigError(f"quantize: {how!r} cannot be had on {device.type}; take device: cpu, or no quantize")
    if dtype not in (torch.float32, torch.bfloat16):
        raise ConfigError(f"quantize: {how!r} computes in float32 or bfloat16, not in {str(dtype)[6:]}")
    whole = modules_to_not_convert(keep_whole)
    if how == "nf4":
        return _nf4(dtype, whole)
    return _integers(how, whole)


def modules_to_not_convert(more: Iterable[str] = ()) -> list[str]:
    """Patterns, as transformers matches them, of the modules that keep their weights; `more` are added to ours."""
    # transformers reads them as regular expressions from the start of a path up to a dot or its end.
    return [rf"(.*\.)?{name}" for name in dict.fromkeys((*_WHOLE, *more))]


def quantized_layers(model: nn.Module, how: str) -> str:
    """A sentence on what of a loaded model is quantised.

    Raises ConfigError where nothing is, or where the library computes something else than it was given.
    """
    linear = {path: module for path, module in model.named_modules() if _multiplies(module)}
    quantized = {path: module for path, module in linear.items() if is_quantized(_weight(module))}
    if not quantized:
        other = "nf4" if how != "nf4" else "no quantize"
        found = sorted({type(module).__name__ for module in linear.values()}) or ["none"]
        raise ConfigError(
            f"quantize: {how!r} fits no layer of {type(model).__name__}, whose linear layers are "
            f"{', '.join(found)}; take {other}"
        )
    _check_blocks(quantized, how)
    note = f"{len(quantized)} of {len(linear)} linear layers hold their weights as {how}"
    return f"{note}; torchao keeps each of them in a byte" if how == "int4" else note


def _check_blocks(quantized: dict[str, nn.Module], how: str) -> None:
    """On a CPU bitsandbytes writes a weight out row by row, though its blocks run on from one row to the next."""
    for path, module in quantized.items():
        state = getattr(_weight(module), "quant_state", None)
        if state is None or _weight(module).device.type != "cpu":
            continue
        width, block = int(state.shape[1]), int(state.blocksize)
        if width % block:
            raise ConfigError(
                f"quantize: {how!r} on a CPU needs widths that are multiples of {block}, but {path!r} takes "
                f"{width} numbers; take int8"
            )


def _multiplies(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _weight(module: nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _integers(how: str, whole: list[str]) -> QuantizationConfigMixin:
    torchao = _library("torchao.quantization")
    if torchao is None and how == "int4":
        raise _missing(how, "torchao")
    if torchao is None:
        if _bitsandbytes() is None:
            raise _missing(how, "torchao or bitsandbytes")
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)  # type: ignore[no-untyped-call]
    if how == "int8":
        ints = torchao.Int8WeightOnlyConfig()
    else:
        groups = importlib.import_module("torchao.quantization.granularity").PerGroup(_INT4_GROUP)
        ints = torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=groups)  # type: ignore[attr-defined]
    return TorchAoConfig(ints, modules_to_not_convert=whole)


def _nf4(dtype: torch.dtype, whole: list[str]) -> QuantizationConfigMixin:
    if _bitsandbytes() is None:
        raise _missing("nf4", "bitsandbytes")
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=whole,
    )


def _missing(how: str, libraries: str) -> MissingExtraError:
    return MissingExtraError(f'quantize: {how!r} needs {libraries}: pip install "loraloom[quantize]"')


def _bitsandbytes() -> ModuleType | None:
    """bitsandbytes, with layers whose gradients are whole; None where it is not installed or does not load."""
    library = _library("bitsandbytes")
    if library is not None:
        # On processors with bf16 arithmetic its 4-bit layers repack themselves at their first call in evaluation,
        # for a product that passes no gradient on: every adapter before such a layer would silently not learn.
        layers = importlib.import_module("bitsandbytes.nn.modules")
        setattr(layers, "has_avx512bf16", lambda: False)  # noqa: B010 no such attribute for a type checker
    return library


def _library(name: str) -> ModuleType | None:
    with _quiet():
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError):  # not installed, or built for another machine
            return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Both libraries tell at their import of kernels for other machines, which concerns nobody here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
