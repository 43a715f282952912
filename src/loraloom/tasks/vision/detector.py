"""A base model that finds boxes: loaded with transformers, its heads found, kept or drawn, its pictures' size known."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import AutoModelForObjectDetection, PreTrainedConfig, PreTrainedModel
from transformers.loss import loss_for_object_detection
from transformers.models.auto import image_processing_auto

from loraloom.adapters.targets import OUTPUT_HEADS
from loraloom.errors import BaseModelError
from loraloom.tasks.models.bases import ResolvedBase
from loraloom.tasks.models.loading import (
    LoadedModel,
    check_backbone,
    draw_heads,
    known_labels,
    load_config,
    load_model,
    same_labels,
    set_labels,
    silent,
    some,
)
from loraloom.tasks.vision.detection_input import IMAGENET_MEAN, IMAGENET_STD, Preparation, Size, read_settings

MASKED = frozenset({"detr", "conditional_detr", "deformable_detr", "dab-detr", "table-transformer"})
"""Model types that are told by pixel_mask which part of their input is picture; others see the padding too."""
PRIOR = 0.01
"""Score that a new head gives at first to every box where scores are sigmoids (Lin et al. 2017, 1708.02002, §4.1)."""
_WHAT = "object detection model"
_AUTO: Any = AutoModelForObjectDetection


@dataclass(frozen=True)
class Detector:
    """A model that gives logits (B, Q, C or C + 1) and pred_boxes (B, Q, 4) for Q queries."""

    model: PreTrainedModel
    preparation: Preparation
    heads: tuple[str, ...]
    """Paths of the modules to train as a whole."""
    queries: int | None
    """How many boxes it can find in one picture, where its configuration says so."""
    notes: list[str]


def load_detector(
    base: ResolvedBase,
    labels: Sequence[str],
    *,
    dtype: torch.dtype,
    seed: int,
    quantize: str | None = None,
    image_size: int | Size | None = None,
    keep_aspect: bool = True,
) -> Detector:
    """Load `base` for finding things of `labels`; a class head that its files lack is drawn from `seed`.

    `image_size` is the longer side that pictures are resized to, or height and width of the model's input.
    The loss is computed in float32 whatever the model's dtype. Raises BaseModelError when the files are no
    detector, or are incomplete.
    """
    config = load_config(base)
    known = known_labels(config, "ForObjectDetection")
    preparation = preparation_of(base, config, image_size, keep_aspect)
    if getattr(config, "anchor_image_size", None):
        config.anchor_image_size = None  # anchors for one size only: computed for any when it is None
    if getattr(config, "backbone_config", None) is not None:
        config._attn_implementation = "eager"  # convolutional backbones refuse to be told of any other for the whole
    set_labels(config, labels)
    modules = label_modules(base, config)
    loaded = load_model(
        _AUTO,
        base,
        _WHAT,
        config=config,
        dtype=dtype,
        seed=seed,
        quantize=quantize,
        keep_whole=modules,
    )
    check_backbone(loaded, base, heads=[*modules, *_box_modules(loaded.model)])
    heads, note = _heads(loaded, known, labels, modules, seed)
    _compute_loss_in_float32(loaded.model)
    queries = getattr(config, "num_queries", None) or getattr(config, "num_detection_tokens", None)
    notes = [note, _size_note(preparation)]
    if dtype != torch.float32 and getattr(config, "num_denoising", None):
        notes.append("over a base that is not in float32, noisy copies of the boxes are not learnt from; see precision")
    return Detector(loaded.model, preparation, tuple(heads), queries, notes)


# --- heads


def label_modules(base: ResolvedBase, config: PreTrainedConfig) -> list[str]:
    """Paths of the modules whose shapes follow the number of labels, found by comparing two models without weights."""
    wider = copy.deepcopy(config)
    set_labels(wider, [*(config.id2label or {}).values(), ""])
    one, other = (_shapes(base, each) for each in (config, wider))
    return list(dict.fromkeys(key.rpartition(".")[0] for key, shape in one.items() if other.get(key) != shape))


def _shapes(base: ResolvedBase, config: PreTrainedConfig) -> dict[str, torch.Size]:
    try:
        with silent(), torch.device("meta"):
            model = _AUTO.from_config(copy.deepcopy(config))
    except Exception as error:  # anything, by what is amiss in the configuration
        reason = " ".join(str(error).split())[:300]
        raise BaseModelError(f"base model {base.name!r}: it cannot be an {_WHAT} ({reason})") from error
    return {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}


def _box_modules(model: nn.Module) -> list[str]:
    """Paths of the modules that predict boxes."""
    names = ("bbox_predictor", "bbox_embed", "enc_bbox_head")
    return [path for path, _ in model.named_modules() if path.rpartition(".")[2] in names]


def adaptable(model: nn.Module) -> list[str]:
    """Paths of the linear and convolutional layers but for output heads, and for weights that two layers share.

    Deformable DETR shares its box predictors between decoder layers, and an update of one is none of the other.
    """
    users = Counter(
        id(parameter) for _, module in model.named_modules() for parameter in module.parameters(recurse=False)
    )
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and users[id(module.weight)] == 1
        and not any(part in OUTPUT_HEADS for part in path.split("."))
    ]


def _heads(
    loaded: LoadedModel,
    known: Sequence[str],
    labels: Sequence[str],
    modules: Sequence[str],
    seed: int,
) -> tuple[list[str], str]:
    """Paths of the heads to train, after those that are missing or for other labels were drawn; and a note."""
    model = loaded.model
    if loaded.random:
        return [], f"every weight was drawn from seed {seed}: there is a configuration alone"
    order = None if loaded.missing else same_labels(known, labels)
    tops = list(dict.fromkeys(_top(model, path) for path in modules))
    if order is not None:
        _reorder(model, modules, order)
        return tops, f"the checkpoint's head ({some(tops)}) is for these labels and was kept"
    new = list(dict.fromkeys([*modules, *(key.rpartition(".")[0] for key in sorted(loaded.missing))]))
    draw_heads(model, new, seed)
    _start_low(model, modules, len(labels))
    replaced = f"; the checkpoint's own is for {len(known)} other labels ({some(known)})" if known else ""
    note = f"new head ({some(new)}) for {len(labels)} labels, drawn from seed {seed}{replaced}"
    return list(dict.fromkeys(_top(model, path) for path in new)), note


def _top(model: PreTrainedModel, path: str) -> str:
    """The whole head that a layer of it belongs to: classifiers may have several layers, and stand in lists."""
    first, second = f"{path}.".split(".")[:2]
    if first == model.base_model_prefix or first == path:
        return path
    return f"{first}.{second}" if isinstance(model.get_submodule(first), nn.ModuleList) else first


def _start_low(model: nn.Module, modules: Sequence[str], labels: int) -> None:
    """Let new sigmoid scores begin at PRIOR: else the many queries that find nothing swamp the first steps."""
    for path in modules:
        module: Any = model.get_submodule(path)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight.data[module.padding_idx].zero_()
        bias = getattr(module, "bias", None)
        if bias is not None and len(bias) == labels:
            bias.data.fill_(-math.log((1 - PRIOR) / PRIOR))


def _reorder(model: nn.Module, modules: Sequence[str], order: Sequence[int]) -> None:
    """Put rows of the class heads in our order; a last row for "nothing" stays the last."""
    for path in modules:
        for tensor in model.get_submodule(path).parameters():
            rows = [*order, *range(len(order), len(tensor))]
            tensor.data.copy_(tensor.data[rows])


# --- loss


class Float32Loss:
    """A model's own loss on float32 outputs, alone with this process's boxes."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss

    def __call__(self, logits: torch.Tensor, labels: Any, device: Any, *rest: Any, **more: Any) -> Any:
        rest, more = _float32(list(rest)), _float32(more)
        with torch.autocast(logits.device.type, enabled=False), _one_process():
            return self.loss(logits.float(), labels, device, *rest, **more)


def _compute_loss_in_float32(model: Any) -> None:
    model.loss_function = Float32Loss(model.loss_function)


def _float32(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _float32(each) for name, each in value.items()}
    return type(value)(map(_float32, value)) if isinstance(value, list | tuple) else value


@contextmanager
def _one_process() -> Iterator[None]:
    """Keep the losses of the DETR family from averaging their number of boxes over the processes.

    The loop adds up losses and boxes itself; and a process with one micro-batch more would wait forever.
    """
    module: Any = loss_for_object_detection
    if not PartialState._shared_state or PartialState().num_processes == 1:
        yield
        return
    asked, module.is_accelerate_available = module.is_accelerate_available, lambda: False
    try:
        yield
    finally:
        module.is_accelerate_available = asked


# --- size of pictures


def preparation_of(
    base: ResolvedBase, config: PreTrainedConfig, image_size: int | Size | None, keep_aspect: bool
) -> Preparation:
    """How this base's pictures are prepared, by the setting, its preprocessor_config.json, or its family's habit."""
    raw = read_settings(base.folder)
    masked = config.model_type in MASKED
    shortest, longest, canvas = _limits(raw, config, image_size, masked)
    if not masked:
        canvas = _rounded(canvas or _square(longest or shortest), config)
    raw.setdefault("image_processor_type", _processor_type(config))
    normal = raw.get("do_normalize", True)
    return Preparation(
        shortest=shortest if masked else None,
        longest=longest if masked else None,
        canvas=canvas,
        masked=masked,
        keep_aspect=keep_aspect,
        scale=float(raw.get("rescale_factor", 1 / 255)) if raw.get("do_rescale", True) else 1.0,
        mean=tuple(raw.get("image_mean", IMAGENET_MEAN)) if normal else (0.0, 0.0, 0.0),
        std=tuple(raw.get("image_std", IMAGENET_STD)) if normal else (1.0, 1.0, 1.0),
        raw=raw,
    )


def _limits(
    raw: Mapping[str, Any], config: PreTrainedConfig, image_size: int | Size | None, masked: bool
) -> tuple[int | None, int | None, Size | None]:
    """Shortest side, longest side, and canvas (height, width)."""
    if image_size is not None:
        return (None, image_size, None) if isinstance(image_size, int) else (None, None, image_size)
    size = raw.get("size")
    if isinstance(size, int):
        return size, int(raw.get("max_size") or 1333), None
    if isinstance(size, Mapping):
        return _limits_of(size, raw)
    own = getattr(config, "image_size", None)
    if own:
        return None, None, (own, own) if isinstance(own, int) else (int(own[0]), int(own[1]))
    return (800, 1333, None) if masked else (None, None, (640, 640))


def _limits_of(size: Mapping[str, int], raw: Mapping[str, Any]) -> tuple[int | None, int | None, Size | None]:
    """As `_limits`, of the words that processors use."""
    padded = raw.get("pad_size") if raw.get("do_pad") else None
    if padded or "height" in size:
        given = padded or size
        return None, None, (int(given["height"]), int(given["width"]))
    if "max_height" in size:
        sides = int(size["max_height"]), int(size["max_width"])
        return (None, sides[0], None) if sides[0] == sides[1] else (None, None, sides)
    return size.get("shortest_edge"), size.get("longest_edge"), None


def _square(side: int | None) -> Size:
    return (side or 640, side or 640)


def _rounded(canvas: Size, config: PreTrainedConfig) -> Size:
    """A canvas that the model's strides or patches divide."""
    strides = getattr(config, "feat_strides", None) or [getattr(config, "patch_size", None) or 32]
    unit = max(int(stride) for stride in strides)
    return math.ceil(canvas[0] / unit) * unit, math.ceil(canvas[1] / unit) * unit


def _processor_type(config: PreTrainedConfig) -> str:
    """The name that transformers' own image processor for this family goes by."""
    known: Any = image_processing_auto
    names = known.IMAGE_PROCESSOR_MAPPING_NAMES.get(config.model_type) or {}
    return str(names.get("torchvision") or "DetrImageProcessor")


def _size_note(preparation: Preparation) -> str:
    if preparation.canvas is not None:
        how = "fitted into" if preparation.keep_aspect else "stretched to"
        return f"pictures are {how} {preparation.canvas[1]} x {preparation.canvas[0]} pixels"
    sides = [
        f"{pixels} pixels on the {side} side"
        for side, pixels in (("shorter", preparation.shortest), ("longer", preparation.longest))
        if pixels
    ]
    return f"pictures are resized to at most {' and '.join(sides)}"
