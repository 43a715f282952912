"""The row of docs/results.md on a slice: a base that read some short sentences, adapted to some longer ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import ROOT

pytest.importorskip("sacrebleu", reason="translations are scored with sacrebleu")

from loraloom.tasks import create_task
from loraloom.tasks.base import AnswerOptions
from loraloom.training.config import load_config
from loraloom.training.restore import Opened, open_run
from loraloom.training.run import train

SLICE = {"data.limit": 640, "data.eval_limit": 48, "epochs": 3, "batch_size": 32, "warmup": 0.1, "precision": "fp32"}


def run(name: str, out: Path, **settings: Any) -> dict[str, Any]:
    config = load_config(ROOT / f"examples/translation/{name}.yaml", {**SLICE, **settings, "out": str(out)})
    return dict(train(config, create_task(config.task, **config.task_options)).record)


@torch.no_grad()
def held_out_losses(opened: Opened) -> tuple[float, float]:
    """Cross entropy per token on longer sentences that nobody trained on, without and with the adapter.

    After so short a training hardly a word is right: chrF would be a matter of luck.
    """
    assert opened.adapters is not None
    examples = opened.task.read_more("../shared/data/translation/tatoeba_en_nl/test.csv", opened.data, labelled=True)
    batch = opened.collate(opened.task.encode(examples[:64], opened.base).features)
    with opened.adapters.disable():
        before, items = opened.task.loss(opened.callable, batch)
    after, _ = opened.task.loss(opened.callable, batch)
    return float(before) / items, float(after) / items


def test_an_adapter_takes_short_sentences_to_longer_ones(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    made = run("base", tmp_path / "base")["metrics"]
    assert made["trained"]["chrf"] > made["base"]["chrf"]
    record = run("lora", tmp_path / "lora", base=str(tmp_path / "base"), **{"data.limit": 480, "epochs": 2})
    assert record["task_state"]["signatures"]["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0")

    opened = open_run(tmp_path / "lora", create_task)
    opened.data_changes = {"words": "7-"}
    before, after = held_out_losses(opened)
    assert after < 0.97 * before
    features = opened.task.encode([opened.task.question("I have never seen such a house before.", 1)], opened.base)
    options = AnswerOptions(beams=3, max_new_tokens=20)
    answers = opened.task.answer(opened.callable, features.features, opened.base, options)  # type: ignore[attr-defined]
    assert opened.task.describe(answers[0])["translation"]
