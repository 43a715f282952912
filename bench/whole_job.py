"""The whole job, from files to an adapter on disk: 4,000 short sentences × 2 epochs, MiniLM, rank 8, batch 32.

Loraloom as `loraloom train` runs it, with its scores before and after, its proof and its model card, against
PEFT with transformers' Trainer at its defaults, in fp32 and with bf16=True; the learning rate is the same.
The sentences are those of banking77 (77 intents) in ../shared/data, or of any two CSV files with columns
text and label. The score is taken outside the timing, over the whole test file, in fp32 on every side.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.models import MINILM, minilm_classifier
from bench.trainer_job import JobSettings, accuracy, rows, run_trainer
from loraloom.formats.peft import load_adapter
from loraloom.tasks import create_task
from loraloom.training.config import load_config
from loraloom.training.run import train

DATA = Path(__file__).parents[2] / "shared" / "data" / "text_classification" / "banking77"
SENTENCES, HELD_OUT = 4000, 1000


def sample(source: Path, target: Path, count: int, seed: int = 0) -> Path:
    """A seeded sample of a CSV file's rows, as a file."""
    chosen = random.Random(seed).sample(rows(source), count)
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(chosen)
    return target


def run_loraloom(settings: JobSettings, out: Path, precision: str = "auto") -> Path:
    """Train by the library's own run, with its defaults; returns the adapter folder."""
    overrides: dict[str, Any] = {
        "base": MINILM,
        "data.train": str(settings.train),
        "data.eval": str(settings.evaluation),
        "out": str(out),
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "adapter.rank": settings.rank,
        "learning_rate": settings.learning_rate,
        "seed": settings.seed,
        "precision": precision,
    }
    config = load_config(None, overrides)
    train(config, create_task(config.task))
    return out


def measure(rounds: int = 1, data: Path = DATA) -> dict[str, Any]:
    """Seconds and accuracy of every side, one run of each per round in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = JobSettings(
            train=sample(data / "train.csv", folder / "train.csv", SENTENCES),
            evaluation=sample(data / "test.csv", folder / "test.csv", HELD_OUT),
        )
        labels = sorted({row["label"] for row in rows(settings.train)})
        scored: dict[str, float] = {}
        seconds: dict[str, list[float]] = {"loraloom": [], "trainer fp32": [], "trainer bf16": []}
        for turn in range(rounds):
            out = folder / f"run-{turn}"
            sides: dict[str, Callable[[], Any]] = {
                "loraloom": lambda out=out: run_loraloom(settings, out),
                "trainer fp32": lambda: run_trainer(settings, bf16=False),
                "trainer bf16": lambda: run_trainer(settings, bf16=True),
            }
            for side, run in sides.items():
                start = time.perf_counter()
                result = run()
                seconds[side].append(time.perf_counter() - start)
                if side not in scored:
                    model, order = _loaded(result) if side == "loraloom" else (result, labels)
                    scored[side] = accuracy(model, data / "test.csv", order)
        medians = {side: statistics.median(times) for side, times in seconds.items()}
        return {"seconds": medians, "accuracy": scored}


def _loaded(folder: Path) -> tuple[Any, list[str]]:
    """The trained model in fp32, and its labels in the order of its outputs."""
    labels = json.loads((folder / "run.json").read_text("utf-8"))["task_state"]["labels"]
    model = minilm_classifier(len(labels))
    load_adapter(model, folder)
    return model, labels


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DATA, help="a folder with train.csv and test.csv")
    arguments = parser.parse_args()
    found = measure(arguments.rounds, arguments.data)
    for side, value in found["seconds"].items():
        print(f"{value:7.1f} s  accuracy {found['accuracy'][side]:.4f}  {side}")
