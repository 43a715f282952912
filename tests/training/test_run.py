"""Whole runs of the tiny task: what they write, what they tell, and what they leave behind when they fail."""

from __future__ import annotations

import errno
import functools
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_task import TinyTask, result_bytes, tiny_config
from torch import Tensor, nn

from loraloom.errors import ConfigError, DataError, MissingExtraError, OutputError, TargetError, TrainingError
from loraloom.tasks.base import Batch
from loraloom.training import log as log_module
from loraloom.training import prepare as prepare_module
from loraloom.training import results as results_module
from loraloom.training.checkpoint import complete_checkpoints
from loraloom.training.log import read_log
from loraloom.training.reporter import EvalEvent, RunPlan, RunResult, SilentReporter, StepEvent
from loraloom.training.run import train

PNG = b"\x89PNG\r\n\x1a\n"


class Listener(SilentReporter):
    def __init__(self) -> None:
        self.plans: list[RunPlan] = []
        self.notes: list[str] = []
        self.steps: list[StepEvent] = []
        self.evaluations: list[EvalEvent] = []
        self.results: list[RunResult] = []
        self.started, self.note, self.finished = self.plans.append, self.notes.append, self.results.append
        self.step, self.evaluated = self.steps.append, self.evaluations.append


def test_a_run_learns_and_its_folder_is_complete(tmp_path: Path, pictures: None) -> None:
    listener = Listener()
    result = train(tiny_config(tmp_path, epochs=6), TinyTask(), reporter=listener)
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "run.json",
        "README.md",
        "log.jsonl",
        "curves.png",
    }
    assert (out / "curves.png").read_bytes().startswith(PNG)
    record = json.loads((out / "run.json").read_text())
    assert record == result.record
    assert result.metrics["accuracy"] > result.base_metrics["accuracy"] + 0.1
    _check_log(out, record)
    _check_record(record, out)
    _check_events(listener, result)
    _check_card(out, record)


def _check_log(out: Path, record: dict[str, Any]) -> None:
    entries = read_log(out / "log.jsonl")
    steps = [entry for entry in entries if entry["kind"] == "step"]
    evaluations = [entry for entry in entries if entry["kind"] == "evaluation"]
    assert [entry["step"] for entry in steps] == list(range(1, 61))
    assert {"loss", "grad_norm", "learning_rate", "epoch"} <= steps[0].keys()
    assert [entry["step"] for entry in evaluations] == [10, 20, 30, 40, 50, 60]
    best = max(evaluations, key=lambda entry: (entry["accuracy"], -entry["step"]))
    assert record["training"]["best_step"] == best["step"]
    assert record["metrics"]["trained"]["accuracy"] == best["accuracy"]


def _check_record(record: dict[str, Any], out: Path) -> None:
    assert record["base"] == {
        "name": "tiny-base",
        "source": "hub",
        "fingerprint": record["base"]["fingerprint"],
        "heads": ["classifier"],
    }
    assert [len(digest) for digest in record["data"]["sha256"].values()] == [64]
    assert record["effective"]["rank"] == [8]
    assert record["effective"]["alpha"] == [16.0]
    assert record["effective"]["scale"] == [2.0]
    assert record["effective"]["learning_rate"] == {"A": 0.02, "B": 0.02, "head": 0.02}
    assert record["parameters"]["trained"] == 4 * 8 * (24 + 48) + 24 * 2 + 2
    assert record["result_bytes"] == (out / "adapter_model.safetensors").stat().st_size
    assert record["evidence"]["patterns"] == [{"pattern": "all-linear", "sites": 4, "parameters": 2304}]
    assert all(site["relative"] > 0.01 for site in record["evidence"]["sites"])
    assert record["evidence"]["output_change"] > 0.1
    assert record["versions"]["torch"] == torch.__version__
    assert record["settings"]["epochs"] == 6
    assert record["task_state"] == {"labels": ["even", "odd"]}
    assert record["training"]["seconds"]["training"] > 0


def _check_events(listener: Listener, result: RunResult) -> None:
    (plan,) = listener.plans
    assert (plan.steps, plan.first_step, plan.train_examples, plan.evaluation_examples) == (60, 0, 160, 60)
    assert [site["kind"] for site in plan.sites] == ["linear"] * 4 + ["head"]
    assert [event.step for event in listener.steps] == list(range(1, 61))
    last = listener.steps[-1]
    assert last.examples_per_second > 0
    assert last.seconds_left == 0
    assert last.memory_mib > 50
    assert last.score == listener.evaluations[-2].score
    assert [event.best for event in listener.evaluations].count(True) >= 1
    assert listener.results == [result]
    assert listener.notes == result.notes == ["text column 'text'"]


def _check_card(out: Path, record: dict[str, Any]) -> None:
    _, front, body = (out / "README.md").read_text().split("---\n", 2)
    data = yaml.safe_load(front)
    assert (data["library_name"], data["base_model"]) == ("peft", "tiny-base")
    assert f"{record['metrics']['trained']['accuracy']:.4f}" in body
    assert "loraloom predict" in body
    assert str(out) not in body


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("a", "b", "c")]
    for out, seed in zip(outs, (3, 3, 4), strict=True):
        torch.rand(3)  # What was drawn before must not matter.
        train(tiny_config(tmp_path, out=str(out), seed=seed, adapter__dropout=0.2), TinyTask())
    first, second, other = (result_bytes(out) for out in outs)
    assert first == second != other


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_full_fine_tuning(tmp_path: Path, precision: str) -> None:
    listener = Listener()
    config = tiny_config(tmp_path, method="full", learning_rate=3e-3, epochs=4, precision=precision)
    result = train(config, TinyTask(), reporter=listener)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert result.metrics["accuracy"] > result.base_metrics["accuracy"]
    assert result.record["parameters"]["share"] == 1.0
    assert result.record["evidence"]["relative_change_max"] > 0
    assert result.record["effective"] == {"learning_rate": {"weight": 3e-3, "head": 3e-3}}
    assert result.record["precision"] == precision
    assert "method 'full' does not use the setting 'adapter'" in listener.notes


def test_over_a_bf16_base_both_scores_are_stated(tmp_path: Path) -> None:
    result = train(tiny_config(tmp_path, precision="bf16", epochs=3), TinyTask())
    metrics = result.record["metrics"]
    assert abs(metrics["trained"]["accuracy"] - metrics["trained_over_fp32_base"]["accuracy"]) < 0.2
    told = f"accuracy is {metrics['trained']['accuracy']:.4f} over the bf16 base and "
    assert any(note.startswith(told) and note.endswith("over the fp32 base") for note in result.notes)
    config = tiny_config(tmp_path, precision="bf16", compare_precision=False, out=str(tmp_path / "other"))
    assert "trained_over_fp32_base" not in train(config, TinyTask()).record["metrics"]


class Scripted(TinyTask):
    """Gives the scores of a list, one per evaluation, the first for the base model."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = iter(scores)

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": next(self.scores)}


def test_the_best_is_kept_the_first_of_equals_and_patience_ends_the_run(tmp_path: Path) -> None:
    scores = [0.1, 0.2, 0.6, 0.6, 0.5, 0.55, 0.9]
    config = tiny_config(tmp_path, epochs=6, evaluate_every=5, patience=3)
    result = train(config, Scripted(scores))
    training = result.record["training"]
    assert (training["best_step"], training["steps"], training["stopped_early"]) == (10, 25, True)
    assert result.metrics == {"accuracy": 0.6}
    # What is saved is the state after step 10: the same as of a run that ends there, at the same rates.
    short = tiny_config(tmp_path, epochs=6, evaluate_every=5, patience=1, out=str(tmp_path / "short"))
    train(short, Scripted([0.1, 0.2, 0.6, 0.5]))
    assert result_bytes(tmp_path / "short") == result_bytes(tmp_path / "out")


class Lower(Scripted):
    higher_is_better = False


def test_a_score_may_be_better_when_lower(tmp_path: Path) -> None:
    result = train(tiny_config(tmp_path, epochs=3), Lower([0.9, 0.5, 0.3, 0.4]))
    assert result.record["training"]["best_step"] == 20


def test_the_last_step_is_always_evaluated(tmp_path: Path) -> None:
    listener = Listener()
    train(tiny_config(tmp_path, max_steps=7, evaluate_every=4), TinyTask(), reporter=listener)
    assert [event.step for event in listener.evaluations] == [4, 7]


def test_truncated_examples_are_counted_and_said(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    words = " ".join(["w1"] * 20)
    with Path(config.data.train).open("a") as file:
        file.write(f"odd\t{words}\nodd\t{words}\n")
    result = train(config, TinyTask())
    assert "2 of 162 train examples were longer than the model takes and were cut" in result.notes
    assert result.record["data"]["truncated"] == {"train": 2, "evaluation": 0}


class Compiled(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, *arguments: Any) -> Any:
        self.calls += 1
        return self.model(*arguments)


def test_a_compiled_model_is_the_one_that_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Compiled] = []

    def compiled(model: nn.Module, *, dynamic: bool) -> Compiled:
        made.append(Compiled(model))
        return made[-1]

    monkeypatch.setattr(prepare_module.torch, "compile", compiled)
    train(tiny_config(tmp_path, out=str(tmp_path / "compiled"), compile=True, max_steps=3), TinyTask())
    assert len(made) == 1
    assert made[0].calls > 3
    train(tiny_config(tmp_path, max_steps=3), TinyTask())
    assert result_bytes(tmp_path / "compiled") == result_bytes(tmp_path / "out")


def test_tensorboard_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tmp_path, tensorboard=True, max_steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(log_module.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=r"pip install 'loraloom\[tensorboard\]'"):
            train(config, TinyTask())
    assert not (tmp_path / "out").exists()
    if importlib.util.find_spec("tensorboard") is not None:
        train(config, TinyTask())
        assert any((tmp_path / "out" / "tensorboard").iterdir())


# --- what goes wrong


def broken_data(folder: Path) -> None:
    (folder / "train.tsv").unlink()


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"adapter__targets": "quary"}, TargetError, "quary"),
        ({"adapter__layers": [7]}, ConfigError, "block 7"),
        ({"data": {"train": "absent.tsv"}}, DataError, r"absent\.tsv"),
    ],
)
def test_a_mistake_before_the_first_step_leaves_no_folder(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        train(tiny_config(tmp_path, **settings), TinyTask())
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(OutputError, match=r"out: '.*' is not empty"):
            train(tiny_config(tmp_path), TinyTask(), resume=resume)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    with pytest.raises(OutputError, match="is a file, a folder is needed"):
        train(tiny_config(tmp_path, out=str(out / "mine.txt" / "below")), TinyTask())
    (out / "mine.txt").unlink()
    train(tiny_config(tmp_path), TinyTask())


class Poisoned(TinyTask):
    """The loss becomes NaN after some calls."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        loss, items = super().loss(model, batch)
        self.left -= 1
        return (loss * float("nan") if self.left < 0 else loss), items


def test_a_loss_that_is_nan_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 4: the loss is nan; lower learning_rate"):
        train(tiny_config(tmp_path), Poisoned(3))
    assert not (tmp_path / "out").exists()
    with pytest.raises(TrainingError, match="the steps before are kept in"):
        train(tiny_config(tmp_path, checkpoint_every=2), Poisoned(5))
    assert [path.name for path in complete_checkpoints(tmp_path / "out" / "checkpoints")] == [
        "step-00000002",
        "step-00000004",
    ]


def test_an_exploding_loss_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="lower learning_rate"):
        train(tiny_config(tmp_path, learning_rate=9.0, lr_ratio=100, epochs=20, max_grad_norm=None), TinyTask())
    assert not (tmp_path / "out").exists()


def test_a_run_in_which_nothing_moved_fails(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nothing was learnt: every update ΔW is zero"):
        train(tiny_config(tmp_path, learning_rate=1e-60, checkpoint_every=2), TinyTask())
    assert not (tmp_path / "out").exists()
    with pytest.raises(TrainingError, match="nothing was learnt"):
        train(tiny_config(tmp_path, learning_rate=1e-30, method="full"), TinyTask())
    assert not (tmp_path / "out").exists()


class Deaf(TinyTask):
    """Outputs that no weight can change."""

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().outputs(model, batch) * 0


def test_outputs_that_do_not_change_fail_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the outputs for 60 held-out examples are those of the base"):
        train(tiny_config(tmp_path), Deaf())


def test_layers_that_did_not_change_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = results_module.site_changes

    def one_still(*arguments: Any) -> list[dict[str, Any]]:
        rows = original(*arguments)
        return [{**rows[0], "change": 0.0}, *rows[1:]]

    monkeypatch.setattr(results_module, "site_changes", one_still)
    result = train(tiny_config(tmp_path), TinyTask())
    assert "1 of 4 layers did not change at all, e.g. 'blocks.0.1'" in result.notes


def failing_after(calls: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """`real`, until the disk is full after some calls."""
    left = iter(range(calls))

    def call(*arguments: Any, **named: Any) -> Any:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **named)

    return functools.wraps(real)(call)


@pytest.mark.parametrize("after", [0, 1, 2, 4])
def test_a_disk_that_is_full_from_the_start_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing_after(after, os.fsync))
    with pytest.raises(OutputError, match="no space is left on the disk") as error:
        train(tiny_config(tmp_path, max_steps=4, checkpoint_every=2), TinyTask())
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_at_the_end_leaves_a_run_that_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_config(tmp_path, max_steps=6, checkpoint_every=2, out=str(tmp_path / "whole"))
    train(whole, TinyTask())
    config = tiny_config(tmp_path, max_steps=6, checkpoint_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(results_module, "write_json", failing_after(0, results_module.write_json))
        with pytest.raises(OutputError, match="no space is left"):
            train(config, TinyTask())
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"run-state.json", "log.jsonl", "checkpoints"}
    with pytest.raises(OutputError, match="holds a run that was not finished; go on with --resume"):
        train(config, TinyTask())
    train(config, TinyTask(), resume=True)
    assert result_bytes(out) == result_bytes(tmp_path / "whole")
