"""What the tests of the command line share: outcomes, sentences, a base model of a few kilobytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from loraloom.cli.main import main

GOOD = ("lovely", "great", "warm", "kind", "superb")
BAD = ("awful", "dreadful", "cold", "rude", "broken")
THINGS = ("soup", "film", "room", "parcel", "screen", "waiter", "plot", "bed", "driver", "menu")


@dataclass(frozen=True)
class Outcome:
    """What one call of the command line came to."""

    status: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """The one JSON object on stdout."""
        return json.loads(self.out)


Call = Callable[..., Outcome]


def sentences(count: int) -> list[tuple[str, str]]:
    """Made-up reviews that one word decides, in a fixed order."""
    rows = []
    for index in range(count):
        thing, label = THINGS[index % len(THINGS)], ("positive", "negative")[index % 2]
        word = (GOOD if index % 2 == 0 else BAD)[(index // 2) % 5]
        rows.append((f"the {thing} number {index} was {word}", label))
    return rows


def write_csv(path: Path, rows: list[tuple[str, str]], *, header: str = "text,label", delimiter: str = ",") -> Path:
    lines = [header, *(f"{text}{delimiter}{label}" for text, label in rows)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def caller(capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs `loraloom WORDS…` in this process."""

    def run(*words: object) -> Outcome:
        status = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Outcome(status, out, err)

    return run


def make_tiny_base(folder: Path, *, seed: int) -> Path:
    folder.mkdir(parents=True)
    words = ["the", "number", "was", "of", "day", *GOOD, *BAD, *THINGS, *map(str, range(48))]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(
            BertConfig(
                vocab_size=len(vocabulary),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=24,
            )
        )
    model.save_pretrained(folder)
    BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)}).save_pretrained(folder)
    return folder
