"""The same job as a PEFT user writes it: get_peft_model, transformers' Trainer, their defaults."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from bench.models import minilm_folder


@dataclass(frozen=True)
class JobSettings:
    """What both sides are given alike."""

    train: Path
    evaluation: Path
    epochs: int = 2
    batch_size: int = 32
    rank: int = 8
    learning_rate: float = 2e-3
    seed: int = 0


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with columns text and label."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run_trainer(settings: JobSettings, *, bf16: bool) -> nn.Module:
    """Read, tokenise, load, attach, train, evaluate and save; returns the trained model."""
    torch.manual_seed(settings.seed)
    train, evaluation = rows(settings.train), rows(settings.evaluation)
    labels = sorted({row["label"] for row in train})
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())

    def prepared(examples: Sequence[dict[str, str]]) -> Dataset:
        data = Dataset.from_list([{"text": row["text"], "label": labels.index(row["label"])} for row in examples])
        return data.map(lambda batch: tokenizer(batch["text"], truncation=True), batched=True)

    model = AutoModelForSequenceClassification.from_pretrained(minilm_folder(), num_labels=len(labels))
    config = LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules="all-linear", task_type="SEQ_CLS")
    with tempfile.TemporaryDirectory() as folder, quiet():
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            bf16=bf16,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            seed=settings.seed,
        )
        trainer = Trainer(
            model=get_peft_model(model, config),
            args=arguments,
            train_dataset=prepared(train),
            eval_dataset=prepared(evaluation),
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda result: {"accuracy": float((result[0].argmax(-1) == result[1]).mean())},
        )
        trainer.train()
        trainer.evaluate()
        trainer.save_model(folder)
    return trainer.model


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and the notes of the libraries."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    yield


def accuracy(model: nn.Module, path: Path, labels: Sequence[str]) -> float:
    """Share of right answers of a trained classifier over all rows of a file."""
    tokenizer: Any = AutoTokenizer.from_pretrained(minilm_folder())
    examples = sorted(rows(path), key=lambda row: len(row["text"]))
    right = 0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(examples), 64):
            part = examples[start : start + 64]
            batch = tokenizer([row["text"] for row in part], truncation=True, padding=True, return_tensors="pt")
            found = model(**batch).logits.argmax(-1).tolist()
            right += sum(labels[index] == row["label"] for index, row in zip(found, part, strict=True))
    return right / len(examples)
