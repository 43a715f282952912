"""A task small enough to train in a second: sentences of made-up words, a bag of embeddings, two labels.

Also a program, so that tests can start runs in processes of their own, and kill them:
``python tiny_task.py CONFIG.json [--resume] [--slow SECONDS]``.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from loraloom.data.config import DataConfig
from loraloom.data.table import Example
from loraloom.errors import BaseModelError, DataError
from loraloom.tasks.base import NOTHING_ASKED, AnswerOptions, BaseModel, Batch, Encoded, Feature, Splits
from loraloom.training.config import TrainConfig
from loraloom.training.reporter import SilentReporter, StepEvent
from loraloom.training.run import train

WORDS = 120
WIDTH = 24


class TinyModel(nn.Module):
    """Embeddings, two blocks with dropout, the mean over the words, and a new head."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS + 1, WIDTH, padding_idx=0)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 48), nn.GELU(), nn.Dropout(0.1), nn.Linear(48, WIDTH))
            for _ in range(2)
        )
        self.classifier = nn.Linear(WIDTH, labels)

    def forward(self, words: Tensor) -> Tensor:
        """Logits (B, labels) of word numbers (B, T); 0 is padding."""
        x = self.embed(words)
        for block in self.blocks:
            x = x + block(x)
        mask = (words > 0).unsqueeze(-1).to(x.dtype)
        return self.classifier((x * mask).sum(1) / mask.sum(1))


class TinyTask:
    """Implements `loraloom.tasks.base.Task`."""

    name: ClassVar[str] = "tiny"
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    peft_type: ClassVar[str | None] = None
    asks_for: ClassVar[Literal["text", "file"]] = "text"
    answer_options: ClassVar[frozenset[str]] = frozenset()
    shares: ClassVar[frozenset[str]] = frozenset({"accuracy"})

    def __init__(self) -> None:
        self.labels: list[str] = []

    def read(self, data: DataConfig, *, seed: int) -> Splits:
        examples = read_examples(data.train)
        self.labels = sorted({example.values["label"] for example in examples})
        evaluation = read_examples(data.eval) if data.eval else examples[::4]
        digest = hashlib.sha256(Path(data.train).read_bytes()).hexdigest()
        return Splits(examples, evaluation, notes=["text column 'text'"], hashes={data.train: digest})

    def read_more(self, source: str, data: DataConfig, *, labelled: bool) -> list[Example]:
        return read_examples(source)

    def question(self, given: str, line: int) -> Example:
        return Example({"text": given}, "text", line)

    def load(
        self,
        base: str,
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        from_config: bool = False,
        quantize: str | None = None,
    ) -> BaseModel:
        model = TinyModel(len(self.labels))
        if base.startswith("tiny"):
            fill(model, base)
            with torch.no_grad():
                model.classifier.weight.copy_(torch.randn(len(self.labels), WIDTH, generator=generator(seed)) * 0.1)
                model.classifier.bias.zero_()
            heads, source = ("classifier",), "hub"
            fingerprint = hashlib.sha256(base.encode()).hexdigest()
        else:
            weights = Path(base) / "model.safetensors"
            if not weights.is_file():
                raise BaseModelError(f"base model '{base}' does not exist")
            model.load_state_dict(load_file(weights))
            heads, source = (), "folder"
            fingerprint = hashlib.sha256(weights.read_bytes()).hexdigest()
        return BaseModel(model.to(dtype), None, heads, base, source, fingerprint)

    def encode(self, examples: Sequence[Example], base: BaseModel) -> Encoded:
        features = [self._feature(example) for example in examples]
        return Encoded(features, truncated=sum(len(example.values["text"].split()) > 12 for example in examples))

    def _feature(self, example: Example) -> Feature:
        numbers = [int(word[1:]) for word in example.values["text"].split()][:12]
        label = example.values.get("label")
        return Feature({"words": numbers}, len(numbers), None if label is None else self.labels.index(label))

    def collate(self, features: Sequence[Feature], base: BaseModel, *, training: bool = False) -> Batch:
        longest = max(feature.length for feature in features)
        rows = [[*feature.inputs["words"], *[0] * (longest - feature.length)] for feature in features]
        batch = {"words": torch.tensor(rows)}
        if all(feature.reference is not None for feature in features):
            batch["labels"] = torch.tensor([feature.reference for feature in features])
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        labels = batch["labels"]
        return F.cross_entropy(model(batch["words"]).float(), labels, reduction="sum"), len(labels)

    def predict(self, model: nn.Module, batch: Batch, base: BaseModel) -> list[int]:
        found: list[int] = model(batch["words"]).argmax(-1).tolist()
        return found

    def score(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        hits = sum(a == b for a, b in zip(predictions, references, strict=True))
        accuracy = hits / len(references)
        return {"accuracy": accuracy, "accuracy_low": accuracy - 0.05, "accuracy_high": accuracy + 0.05}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["words"]).float()

    def describe(self, prediction: int, options: AnswerOptions = NOTHING_ASKED) -> Mapping[str, Any]:
        return {"label": self.labels[prediction]}

    def state(self) -> dict[str, Any]:
        return {"labels": self.labels}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.labels = list(state["labels"])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fill(model: nn.Module, base: str) -> None:
    """Weights that stand for a pretrained model: always the same for one name."""
    source = generator(int(hashlib.sha256(base.encode()).hexdigest()[:8], 16))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=source) * parameter.shape[-1] ** -0.5)
            elif name.endswith("bias"):
                parameter.zero_()


def read_examples(path: str) -> list[Example]:
    """Lines of "label<tab>words"."""
    if not Path(path).exists():
        raise DataError(f"data file '{path}' does not exist")
    rows = [line.split("\t") for line in Path(path).read_text().splitlines()]
    return [Example({"label": row[0], "text": row[1]}, path, number) for number, row in enumerate(rows, start=1)]


def write_examples(path: Path, count: int, seed: int = 0) -> Path:
    """Sentences of 2 to 12 words; odd words speak for one label, even words for the other."""
    draw = random.Random(seed)
    lines = []
    for _ in range(count):
        words = [draw.randint(1, WORDS) for _ in range(draw.randint(2, 12))]
        odd = sum(word % 2 for word in words)
        label = "odd" if odd * 2 > len(words) else "even"
        lines.append(f"{label}\t{' '.join(f'w{word}' for word in words)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def tiny_config(folder: Path, **settings: Any) -> TrainConfig:
    """A run of a second or less, with its data in `folder`; settings by dotted key."""
    for name, count, seed in (("train.tsv", 160, 1), ("eval.tsv", 60, 2)):
        if not (folder / name).exists():
            write_examples(folder / name, count, seed)
    nested: dict[str, Any] = {
        "task": "tiny",
        "base": "tiny-base",
        "data": {"train": str(folder / "train.tsv"), "eval": str(folder / "eval.tsv")},
        "out": str(folder / "out"),
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 0.02,
        "precision": "fp32",
        "adapter": {},
    }
    for key, value in settings.items():
        place, *below = key.split("__")
        if below:
            nested[place] = {**nested[place], below[0]: value}
        else:
            nested[place] = value
    return TrainConfig.model_validate(nested)


def result_bytes(out: Path) -> bytes:
    """The adapter's file of a finished run: of a save, or of the weights if the whole model was trained."""
    adapter = out / "adapter_model.safetensors"
    return (adapter if adapter.exists() else out / "model.safetensors").read_bytes()


class Slow(SilentReporter):
    """Takes its time at every step, and says on standard output that a step was done."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def step(self, event: StepEvent) -> None:
        print(f"step {event.step}", flush=True)
        time.sleep(self.seconds)


def state_bytes(model: nn.Module) -> bytes:
    """All weights of a model as bytes."""
    return save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    settings = json.loads(Path(sys.argv[1]).read_text())
    slow = float(sys.argv[sys.argv.index("--slow") + 1]) if "--slow" in sys.argv else 0.0
    train(TrainConfig.model_validate(settings), TinyTask(), reporter=Slow(slow), resume="--resume" in sys.argv)
