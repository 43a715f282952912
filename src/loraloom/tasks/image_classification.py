"""Image classification: one of several labels for a picture."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForImageClassification

from loraloom.data.config import DataConfig
from loraloom.data.files import probe_file, read_files
from loraloom.data.labels import Labels
from loraloom.data.pictures import PICTURES, frames_note
from loraloom.data.table import Example, Role, Table
from loraloom.errors import ConfigError, DataError, FormatError
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
from loraloom.tasks.intervals import macro_f1_interval, wilson_interval
from loraloom.tasks.models.bases import ResolvedBase, resolve_base
from loraloom.tasks.models.classifier import load_classifier
from loraloom.tasks.models.loading import load_config
from loraloom.tasks.splits import HELD_OUT_SPLITS, read_splits
from loraloom.tasks.vision.augmentation import STRENGTHS, Augment, augment
from loraloom.tasks.vision.confusion import confusion, draw_confusion
from loraloom.tasks.vision.image_processing import PictureProcessor, PictureStore, Resize, read_processor

LABEL = Role("label", ("label", "labels", "class", "category", "target", "breed", "species"), "label")
TOP_K = 5
"""How many labels a prediction tells unless asked for more or fewer."""

_Side = Annotated[int, Field(ge=8, le=4096)]
_NO_TEXT = (LABEL.name, "file")  # pictures are the same by the hash of their bytes alone


class ImageClassificationOptions(TaskOptions):
    """Settings of image classification."""

    image_size: _Side | tuple[_Side, _Side] | None = Field(
        default=None, description="Pixels of a side of the model's input, or [height, width]. null: as the base says."
    )
    resize: Resize = Field(
        default="crop",
        description="How pictures come to that size: 'crop' (middle of the picture), 'pad' (all of it, with borders), "
        "or 'stretch' (all of it, its aspect changed).",
    )
    augment: Augment = Field(
        default="light",
        description="How training pictures are varied: 'none', 'light' (crops of 70 % or more of the area, colours) or "
        "'strong' (crops of 40 % or more, turns, stronger colours, erased patches).",
    )
    flip: bool = Field(
        default=False,
        description="Mirror half of the training pictures left to right. Off by default: for digits, text, hands or "
        "traffic signs a mirrored picture shows something else.",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the target that is spread over all labels, 0 to below 1."
    )
    cache_gib: float = Field(
        default=1.0, ge=0, description="Memory for decoded pictures, in GiB; those beyond are decoded at every use."
    )

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) as given, None when left to the base."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size


class Prediction(NamedTuple):
    """What the model says of one picture."""

    label: int
    """The class number with the highest probability."""
    probabilities: list[float]
    """One per class, in the order of the labels; they sum to 1."""


class ImageClassification:
    """The task "image-classification"; see `loraloom.tasks.base.Task` for what each method is for."""

    name: ClassVar[str] = "image-classification"
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    peft_type: ClassVar[str | None] = None
    asks_for: ClassVar[Literal["text", "file"]] = "file"
    answer_options: ClassVar[frozenset[str]] = frozenset({"top_k"})
    shares: ClassVar[frozenset[str]] = frozenset({"accuracy", "macro_f1"})
    Options: ClassVar[type[TaskOptions]] = ImageClassificationOptions

    def __init__(self, options: ImageClassificationOptions | None = None) -> None:
        self.options = options or ImageClassificationOptions()
        self._labels: Labels | None = None
        self._columns: dict[str, str] = {}
        self._processor: PictureProcessor | None = None
        self._restored: PictureProcessor | None = None
        self._store = PictureStore(int(self.options.cache_gib * 2**30))
        self._settings: dict[str, bool] = {}

    @property
    def labels(self) -> Labels:
        """The classes, known once `read` or `restore` was called; ConfigError before."""
        if self._labels is None:
            raise ConfigError(f"task {self.name}: its labels are not known before it has read training data")
        return self._labels

    # --- examples

    def read(self, data: DataConfig, *, seed: int) -> Splits:
        """Read training and evaluation pictures; without an evaluation folder, set a part aside by `seed`.

        Raises DataError for anything that cannot be used: pictures by their names, labels that training
        never saw.
        """
        splits, table = read_splits(
            data,
            lambda source, held_out: self._read(source, data, held_out=held_out),
            seed=seed,
            stratify_by=LABEL.name,
            ignore=_NO_TEXT,
            accept=self._accept,
        )
        both = {example.values["file"]: example.values for example in (*splits.train, *splits.evaluation)}
        found = [self.labels.count_note(table.examples), *self.labels.notes(), *frames_note(both)]
        return replace(splits, notes=[*splits.notes, *found])

    def read_more(self, source: str, data: DataConfig, *, labelled: bool) -> list[Example]:
        """Read a further folder, table or picture; the columns that training read are looked for first."""
        examples = self._read_further(source, data, labelled=labelled).examples
        if labelled:
            self.labels.encode(examples)
        return examples

    def question(self, given: str, line: int) -> Example:
        """A picture to classify, by its path."""
        return Example(probe_file(Path(given).expanduser(), PICTURES), given, line)

    def _accept(self, held_out: Sequence[Example]) -> None:
        self.labels.encode(held_out)  # raises for a label that training never saw

    def _read(self, source: str, data: DataConfig, *, held_out: bool) -> Table:
        if held_out:
            return self._read_further(source, data, labelled=True)
        table = read_files(source, PICTURES, (LABEL,), data=data, split=data.split)
        self._labels = Labels.from_examples(table.examples, column=table.columns[LABEL.name])
        self._columns = dict(table.columns)
        return table

    def _read_further(self, source: str, data: DataConfig, *, labelled: bool) -> Table:
        known = (self._columns[LABEL.name],) if LABEL.name in self._columns else ()
        role = Role(LABEL.name, (*known, *LABEL.candidates), LABEL.kind)
        return read_files(
            source,
            PICTURES,
            (role,) if labelled else (),
            data=data if labelled else data.model_copy(update={"where": {}}),
            split=data.eval_split,
            prefer_splits=HELD_OUT_SPLITS,
        )

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
        """Load `base` with a head for the labels; one that its files do not hold is drawn by `seed`."""
        found = resolve_base(base, from_config=from_config)
        processor, notes = self._processor_of(found)
        loaded = load_classifier(
            AutoModelForImageClassification,
            found,
            self.labels.names,
            "image classification model",
            dtype=dtype,
            seed=seed,
            quantize=quantize,
        )
        self._processor = processor
        self._settings, resized = _position_settings(loaded.model, processor)
        convolutions = convolution_targets(loaded.model, loaded.heads)
        return BaseModel(
            model=loaded.model,
            processor=processor,
            heads=loaded.heads,
            notes=[*loaded.notes, *notes, *resized],
            targets=convolutions or "all-linear",
            **found.identity,
        )

    def _processor_of(self, base: ResolvedBase) -> tuple[PictureProcessor, list[str]]:
        """How pictures are prepared: as when the adapter was trained, or by the base's files and the options."""
        if self._restored is not None:
            return self._restored, []
        return read_processor(base.folder, config=load_config(base), size=self.options.size, resize=self.options.resize)

    # --- batches

    def encode(self, examples: Sequence[Example], base: BaseModel) -> Encoded:
        """The file that each example is decoded from, and its class number where it has a label."""
        numbers = iter(self.labels.encode([example for example in examples if LABEL.name in example.values]))
        return Encoded(
            [
                Feature(
                    inputs={"file": example.values["file"]},
                    length=1,  # every picture comes to the same size
                    reference=next(numbers) if LABEL.name in example.values else None,
                )
                for example in examples
            ]
        )

    def collate(self, features: Sequence[Feature], base: BaseModel, *, training: bool = False) -> Batch:
        """pixel_values (B, C, H, W) in the model's precision; labels (B,) if all are known.

        With `training`, pictures are varied as the options say.
        """
        processor: PictureProcessor = base.processor
        strength = STRENGTHS[self.options.augment] if training else STRENGTHS["none"]
        height, width = processor.fitted_size(strength.margin)
        fitted = self._store.rows(
            [feature.inputs["file"] for feature in features],
            f"{height}x{width}",
            lambda picture: processor.fit(picture, margin=strength.margin),
        )
        values = augment(
            torch.from_numpy(fitted),
            (processor.height, processor.width),
            strength,
            flip=training and self.options.flip,
            fill=torch.tensor(processor.fill),
        )
        pixels = processor.normalise(values).to(getattr(base.model, "dtype", torch.float32))
        batch: Batch = {"pixel_values": pixels}
        labels = [feature.reference for feature in features]
        if None not in labels:
            batch["labels"] = torch.tensor(labels)
        return batch

    # --- results

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Cross entropy summed over the batch, a float32 scalar whatever the model's precision; and B."""
        labels = batch["labels"]
        logits = self._logits(model, batch)
        smoothing = self.options.label_smoothing
        return functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing), len(labels)

    @torch.no_grad()
    def predict(self, model: nn.Module, batch: Batch, base: BaseModel) -> list[Prediction]:
        """The most probable label of each row, and the probabilities of all."""
        probabilities = self._logits(model, batch).softmax(-1)
        labels = probabilities.argmax(-1).tolist()
        return [Prediction(*row) for row in zip(labels, probabilities.tolist(), strict=True)]

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits (B, number of labels), float32, without a gradient."""
        return self._logits(model, batch)

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits (B, number of labels) in float32."""
        logits: Tensor = model(pixel_values=batch["pixel_values"], **self._settings).logits
        return logits.float()

    def score(self, predictions: Sequence[Prediction], references: Sequence[int]) -> dict[str, float]:
        """Accuracy (Wilson interval), macro-F1 (bootstrap interval, always the same draws), and n.

        Macro-F1 is the mean over the labels that occur among predictions or references. Raises DataError
        when there is nothing to score.
        """
        if not references:
            raise DataError("evaluation: there are no pictures to score")
        predicted = [prediction.label for prediction in predictions]
        hits = int(np.equal(predicted, references).sum())
        low, high = wilson_interval(hits, len(references))
        f1_low, f1_high = macro_f1_interval(predicted, references)
        return {
            "accuracy": hits / len(references),
            "accuracy_low": low,
            "accuracy_high": high,
            "macro_f1": float(f1_score(references, predicted, average="macro", zero_division=0)),
            "macro_f1_low": f1_low,
            "macro_f1_high": f1_high,
            "n": float(len(references)),
        }

    def draw_scores(self, predictions: Sequence[Prediction], references: Sequence[int], folder: Path) -> list[Path]:
        """The confusion matrix, as confusion.png."""
        predicted = [prediction.label for prediction in predictions]
        counts = confusion(predicted, references, len(self.labels))
        return [draw_confusion(folder / "confusion.png", counts, self.labels.names)]

    def describe(self, prediction: Prediction, options: AnswerOptions = NOTHING_ASKED) -> Mapping[str, Any]:
        """The label's name, its probability as "score", and the "scores" of the `top_k` most probable by name."""
        names, shares = self.labels.names, prediction.probabilities
        best = sorted(range(len(names)), key=lambda number: -shares[number])[: options.top_k or TOP_K]
        return {
            "label": names[prediction.label],
            "score": shares[prediction.label],
            "scores": {names[number]: shares[number] for number in best},
        }

    def state(self) -> dict[str, Any]:
        """Labels in their order, the columns that training read, and how pictures were prepared."""
        return {
            "labels": list(self.labels.names),
            "columns": dict(self._columns),
            "pictures": None if self._processor is None else self._processor.settings(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave. Raises FormatError when it holds no labels, or pictures' settings amiss."""
        labels = state.get("labels")
        if not isinstance(labels, list) or len(labels) < 2 or not all(isinstance(name, str) for name in labels):
            raise FormatError(f"task state: 'labels' is no list of at least two label names but {labels!r}")
        pictures = state.get("pictures")
        try:
            self._restored = None if pictures is None else PictureProcessor.of_settings(pictures)
        except (TypeError, AttributeError):
            raise FormatError(f"task state: 'pictures' does not say how pictures are prepared: {pictures!r}") from None
        self._processor = self._restored
        self._labels = Labels(tuple(labels))
        self._columns = dict(state.get("columns") or {})


def convolution_targets(model: nn.Module, heads: Sequence[str]) -> tuple[str, ...]:
    """What to adapt in a model whose only linear layers are its head's, e.g. a ResNet: its convolutions.

    Their names where these mean nothing else ("convolution"), else their paths; empty for a model with linear
    layers, where 'all-linear' is right. Depthwise convolutions are left out: their few weights are no matrix.
    """
    inner = [
        (path, module)
        for path, module in model.named_modules()
        if not any(path == head or path.startswith(f"{head}.") for head in heads)
    ]
    if any(isinstance(module, nn.Linear | nn.MultiheadAttention) for _, module in inner):
        return ()
    paths = [path for path, module in inner if isinstance(module, nn.Conv2d) and module.groups == 1]
    names = sorted({path.rpartition(".")[2] for path in paths})
    meant = [path for path, _ in inner if path.rpartition(".")[2] in names]
    plain = meant == paths and not any(name.isdigit() for name in names)
    return tuple(names if plain else paths)


def _position_settings(model: Any, processor: PictureProcessor) -> tuple[dict[str, bool], list[str]]:
    """What the model's forward is told, and a note, where its positions were learnt at another size."""
    own = getattr(model.config, "image_size", None)
    height, width = (own, own) if isinstance(own, int) else tuple(own or (processor.height, processor.width))
    if (height, width) == (processor.height, processor.width):
        return {}, []
    if "interpolate_pos_encoding" not in inspect.signature(type(model).forward).parameters:
        return {}, []
    told = (
        f"the base saw pictures of {width} x {height} pixels, here they are {processor.width} x {processor.height}: "
        "its position embeddings are interpolated"
    )
    return {"interpolate_pos_encoding": True}, [told]
