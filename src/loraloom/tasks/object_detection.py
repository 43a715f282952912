"""Object detection: labelled boxes in a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from loraloom.data.boxes import known_labels, read_boxes, refuse_unknown
from loraloom.data.config import DataConfig
from loraloom.data.files import probe_file, read_files
from loraloom.data.pictures import PICTURES, open_picture
from loraloom.data.table import Example, Table
from loraloom.errors import ConfigError, FormatError, OutputError
from loraloom.tasks.base import (
    NOTHING_ASKED,
    AnswerOptions,
    BaseModel,
    Batch,
    Encoded,
    Feature,
    Splits,
    TaskOptions,
)
from loraloom.tasks.models.bases import resolve_base
from loraloom.tasks.splits import HELD_OUT_SPLITS, read_splits
from loraloom.tasks.vision.detection_input import (
    NONE,
    PictureCache,
    Preparation,
    Variation,
    batch_of,
    pixel_boxes,
    prepare,
)
from loraloom.tasks.vision.detection_score import MOST_BOXES, Detections, Truth, check_installed, score_boxes
from loraloom.tasks.vision.detector import adaptable, load_detector
from loraloom.tasks.vision.drawing import DrawnBox, draw_boxes

THRESHOLD = 0.5
"""Least score of a box that is told and drawn where none is asked for."""
_NOT_IDENTITY = ("file",)


Pixels = Annotated[int, Field(ge=16, le=8192)]


class ObjectDetectionOptions(TaskOptions):
    """Settings of object detection."""

    image_size: Pixels | tuple[Pixels, Pixels] | None = Field(
        default=None,
        description="Pixels of the longer side that pictures are resized to, or [height, width] of the model's "
        "input. null: what the base's preprocessor_config.json says.",
    )
    keep_aspect: bool = Field(
        default=True,
        description="Fit pictures into the model's input and pad them; false stretches them, where its size is fixed.",
    )
    flip: bool = Field(default=True, description="In training, mirror every second picture.")
    zoom: float = Field(
        default=1.25,
        ge=1,
        le=4,
        description="In training, enlarge or shrink each picture by at most this factor; boxes of which less than "
        "a fifth stays in sight are dropped. 1: never.",
    )
    colour: float = Field(
        default=0.2,
        ge=0,
        le=0.9,
        description="In training, change brightness, contrast and tint by at most this share. 0: never.",
    )


class ObjectDetection:
    """The task "object-detection"; see `loraloom.tasks.base.Task` for what each method is for."""

    name: ClassVar[str] = "object-detection"
    metric: ClassVar[str] = "map"
    higher_is_better: ClassVar[bool] = True
    shares: ClassVar[frozenset[str]] = frozenset({"map", "map50", "map75", "map_small", "map_medium", "map_large"})
    peft_type: ClassVar[str | None] = None
    asks_for: ClassVar[Literal["text", "file"]] = "file"
    answer_options: ClassVar[frozenset[str]] = frozenset({"threshold"})
    Options: ClassVar[type[TaskOptions]] = ObjectDetectionOptions

    def __init__(self, options: ObjectDetectionOptions | None = None) -> None:
        self.options = options or ObjectDetectionOptions()
        self._names: tuple[str, ...] = ()
        self._most = 0
        self._cache = PictureCache()

    @property
    def names(self) -> tuple[str, ...]:
        """The labels, known once `read` or `restore` was called; ConfigError before."""
        if not self._names:
            raise ConfigError(f"task {self.name}: its labels are not known before it has read training data")
        return self._names

    # --- examples

    def read(self, data: DataConfig, *, seed: int) -> Splits:
        """Read training and evaluation pictures; without evaluation data, set a part aside by `seed`.

        Raises DataError for anything that cannot be used, labels included that training never saw.
        """
        check_installed()
        splits, table = read_splits(
            data,
            lambda source, held_out: self._read(source, data, held_out=held_out),
            seed=seed,
            ignore=_NOT_IDENTITY,
            accept=lambda held_out: refuse_unknown(held_out, self.names),
        )
        self._most = max(len(example.values["boxes"]) for example in table.examples)
        return splits

    def _read(self, source: str, data: DataConfig, *, held_out: bool) -> Table:
        if held_out:
            return read_boxes(source, data=data, split=data.eval_split, prefer_splits=HELD_OUT_SPLITS)
        table = read_boxes(source, data=data, split=data.split)
        self._names = known_labels(table.examples)
        return table

    def read_more(self, source: str, data: DataConfig, *, labelled: bool) -> list[Example]:
        """Read further pictures: annotated ones, or for prediction any file, folder or table of pictures."""
        if not labelled:
            plain = data.model_copy(update={"where": {}})
            table = read_files(source, PICTURES, (), data=plain, split=data.eval_split, prefer_splits=HELD_OUT_SPLITS)
            return table.examples
        examples = self._read(source, data, held_out=True).examples
        refuse_unknown(examples, self.names)
        return examples

    def question(self, given: str, line: int) -> Example:
        """A picture to find boxes in."""
        return Example(probe_file(Path(given).expanduser(), PICTURES), "file", line)

    # --- model

    def load(
        self,
        base: str,
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        from_config: bool = False,
        quantize: str | None = None,
    ) -> BaseModel:
        """The base model with a class head for the labels; one that the files lack is drawn from `seed`."""
        found = resolve_base(base, from_config=from_config)
        loaded = load_detector(
            found,
            self.names,
            dtype=dtype,
            seed=seed,
            quantize=quantize,
            image_size=self.options.image_size,
            keep_aspect=self.options.keep_aspect,
        )
        notes = list(loaded.notes)
        if loaded.queries is not None and loaded.queries < self._most:
            notes.append(f"a picture has {self._most} boxes, of which the model can find {loaded.queries} at most")
        return BaseModel(
            model=loaded.model,
            processor=loaded.preparation,
            heads=loaded.heads,
            notes=notes,
            targets=tuple(adaptable(loaded.model)),
            **found.identity,
        )

    def encode(self, examples: Sequence[Example], base: BaseModel) -> Encoded:
        """Where each picture lies and what is in it; crowds are not learnt from."""
        return Encoded([self._feature(example, base.processor) for example in examples])

    def _feature(self, example: Example, preparation: Preparation) -> Feature:
        values = example.values
        size = (int(values["width"]), int(values["height"]))
        inputs: dict[str, Any] = {"file": values["file"], "size": size, "boxes": [], "labels": []}
        height, width = preparation.size(*size)
        if "boxes" not in values:
            return Feature(inputs, length=max(height, width))
        labels = [self.names.index(label) for label in values["labels"]]
        single = [number for number, crowd in enumerate(values["crowd"]) if not crowd]
        inputs["boxes"] = [values["boxes"][number] for number in single]
        inputs["labels"] = [labels[number] for number in single]
        truth = Truth(size, values["boxes"], labels, values["areas"], values["crowd"])
        return Feature(inputs, length=max(height, width), reference=truth)

    def collate(self, features: Sequence[Feature], base: BaseModel, *, training: bool = False) -> Batch:
        """pixel_values (B, 3, H, W), pixel_mask (B, H, W) where the model takes it, labels, sizes and scales (B, 2).

        See `detection_input.batch_of`. With `training`, pictures and boxes are flipped, zoomed and tinted.
        """
        own = self.options
        variation = Variation(own.flip, own.zoom, own.colour) if training else NONE
        pictures = [prepare(feature.inputs, base.processor, self._cache, variation) for feature in features]
        model: Any = base.model
        return batch_of(pictures, base.processor, model.dtype)

    # --- results

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """The model's own loss, a mean over boxes, times the number of boxes; and that number, at least 1.

        So the sum over micro-batches divided by all their boxes is the loss of the whole batch in all parts
        that the model divides by boxes: all of them where scores are sigmoids; but for the cross entropy over
        the queries, a mean of its own, in DETR and YOLOS.
        """
        with _denoising(model, batch["pixel_values"].dtype):
            loss = _finite_or_nan(model, batch)
        boxes = max(1, sum(len(one["class_labels"]) for one in batch["labels"]))
        return loss.float() * boxes, boxes

    @torch.no_grad()
    def predict(self, model: nn.Module, batch: Batch, base: BaseModel) -> list[Detections]:
        """The best MOST_BOXES boxes of each picture, whatever their score."""
        found = model(**_inputs(batch))
        boxes = pixel_boxes(found.pred_boxes.float(), batch["scales"], batch["sizes"])
        return [
            detections(logits, one, len(self.names)) for logits, one in zip(found.logits.float(), boxes, strict=True)
        ]

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits and boxes of every query (B, Q, C + 4 or C + 5), float32."""
        found = model(**_inputs(batch))
        return torch.cat([found.logits.float(), found.pred_boxes.float()], dim=-1)

    def score(self, predictions: Sequence[Detections], references: Sequence[Truth]) -> dict[str, float]:
        """COCO's mAP and its kin; see `detection_score.score_boxes`."""
        return score_boxes(predictions, references, self.names)

    def describe(self, prediction: Detections, options: AnswerOptions = NOTHING_ASKED) -> Mapping[str, Any]:
        """The boxes of at least the threshold's score, best first, each [x, y, width, height] in pixels."""
        return {
            "boxes": [
                {"label": self.names[label], "score": score, "box": [round(side, 2) for side in box]}
                for box, label, score in _told(prediction, options)
            ]
        }

    def write_file(self, prediction: Detections, example: Example, stem: Path, options: AnswerOptions) -> Path:
        """The picture as PNG with the boxes of at least the threshold's score. Raises OutputError."""
        drawn = [
            DrawnBox(box, f"{self.names[label]} {score:.2f}", label) for box, label, score in _told(prediction, options)
        ]
        path = stem.with_name(f"{stem.name}.png")
        try:
            draw_boxes(open_picture(example.values["file"]), drawn).save(path)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}") from None
        return path

    def state(self) -> dict[str, Any]:
        """Labels in their order, and how pictures are resized."""
        return {
            "labels": list(self.names),
            "image_size": self.options.image_size,
            "keep_aspect": self.options.keep_aspect,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave. Raises FormatError when it holds no list of labels."""
        labels = state.get("labels")
        if not isinstance(labels, list) or not labels or not all(isinstance(name, str) for name in labels):
            raise FormatError(f"task state: 'labels' is no list of label names but {labels!r}")
        self._names = tuple(labels)
        size = state.get("image_size")
        changed = {
            "image_size": tuple(size) if isinstance(size, list) else size,
            "keep_aspect": bool(state.get("keep_aspect", True)),
        }
        self.options = self.options.model_copy(update=changed)


def detections(logits: Tensor, boxes: Tensor, classes: int) -> Detections:
    """The best boxes of one picture from its queries' logits (Q, C or C + 1) and boxes (Q, 4) in pixels.

    With a last column for "nothing" (DETR, YOLOS), scores are a softmax and each query gives its best class.
    Without (Deformable DETR, RT-DETR …), they are sigmoids, and a query may give a box for several classes.
    """
    if logits.shape[-1] == classes + 1:
        scores, labels = logits.softmax(-1)[:, :-1].max(-1)
        queries = torch.arange(len(scores))
    else:
        scores = logits.sigmoid().flatten()
        queries, labels = torch.arange(len(scores)) // classes, torch.arange(len(scores)) % classes
    best = scores.argsort(descending=True, stable=True)[:MOST_BOXES].cpu()
    return Detections(boxes.cpu()[queries[best]].tolist(), labels.cpu()[best].tolist(), scores.cpu()[best].tolist())


def _told(prediction: Detections, options: AnswerOptions) -> list[tuple[list[float], int, float]]:
    least = THRESHOLD if options.threshold is None else options.threshold
    rows = zip(prediction.boxes, prediction.labels, prediction.scores, strict=True)
    return [row for row in rows if row[2] >= least]


def _inputs(batch: Batch) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("pixel_values", "pixel_mask") if name in batch}


def _finite_or_nan(model: nn.Module, batch: Batch) -> Tensor:
    """The model's loss; not a number where its boxes are none, of which the matching of boxes makes a ValueError."""
    try:
        loss: Tensor = model(**_inputs(batch), labels=batch["labels"]).loss
    except ValueError as error:
        if "nan" not in str(error):
            raise
        return torch.full((), math.nan, requires_grad=True)  # the loop knows what to say of it
    return loss


@contextmanager
def _denoising(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let RT-DETR and its kin learn from noisy copies of the true boxes, or keep them from it.

    They look at `training` of the outermost modules only, so that these may say so over a frozen base in
    evaluation mode; dropout and running statistics go by their own. The copies are float32 and do not mix with
    a base in another dtype.
    """
    outer: Any = getattr(model, "_orig_mod", model)  # inside of torch.compile's wrapper
    denoises = bool(getattr(getattr(outer, "config", None), "num_denoising", 0)) and torch.is_grad_enabled()
    switched = [module for module in (outer, getattr(outer, "model", None)) if denoises and module is not None]
    before = [module.training for module in switched]
    for module in switched:
        module.training = dtype == torch.float32
    try:
        yield
    finally:
        for module, training in zip(switched, before, strict=True):
            module.training = training
