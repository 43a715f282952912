"""The row of docs/results.md on a slice: a base that read some Austen, adapted to some Shakespeare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT

from loraloom.tasks import create_task
from loraloom.tasks.base import AnswerOptions
from loraloom.training.config import load_config
from loraloom.training.restore import open_run
from loraloom.training.run import train
from loraloom.training.use import evaluate

SLICE = {"epochs": 1, "batch_size": 8, "data.limit": 150, "data.eval_limit": 30, "precision": "fp32"}
NOVEL = "../shared/data/causal_lm/pride_and_prejudice/test.jsonl"


def run(name: str, out: Path, **settings: Any) -> dict[str, dict[str, float]]:
    config = load_config(ROOT / f"examples/causal_lm/{name}.yaml", {**SLICE, **settings, "out": str(out)})
    record = train(config, create_task(config.task, **config.task_options)).record
    return dict(record["metrics"])


def test_an_adapter_takes_an_austen_model_towards_shakespeare(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    made = run("base", tmp_path / "base")
    assert made["trained"]["perplexity"] < 0.5 * made["base"]["perplexity"]
    more = {"data.limit": 400, "epochs": 2}
    adapted = run("lora", tmp_path / "lora", base=str(tmp_path / "base"), **more)
    assert adapted["trained"]["perplexity"] < 0.8 * adapted["base"]["perplexity"]

    opened = open_run(tmp_path / "lora", create_task)
    novel = tmp_path / "novel.jsonl"
    novel.write_text("".join((ROOT / NOVEL).read_text("utf-8").splitlines(keepends=True)[:40]), "utf-8")
    forgotten, known = evaluate(opened, str(novel)), evaluate(opened, str(novel), without_adapter=True)
    assert forgotten["tokens"] == known["tokens"] > 1000
    assert forgotten["perplexity"] != known["perplexity"]
    task, base = opened.task, opened.base
    feature = task.encode([task.question("ROMEO:", 1)], base).features[0]
    options = AnswerOptions(max_new_tokens=10, temperature=0.8, seed=1)
    assert task.answer(opened.callable, [feature], base, options)[0].tokens > 0  # type: ignore[attr-defined]
