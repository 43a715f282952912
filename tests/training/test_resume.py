"""Killed at any moment, a run resumes and ends in the same bytes as one that was never stopped."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from killable import exit_status, start
from tiny_task import TinyTask, result_bytes, tiny_config

from loraloom.errors import ConfigError
from loraloom.training import loop as loop_module
from loraloom.training.checkpoint import complete_checkpoints, newest_checkpoint
from loraloom.training.config import TrainConfig
from loraloom.training.log import read_log
from loraloom.training.run import train

SETTINGS = {"epochs": 3, "checkpoint_every": 4, "evaluate_every": 6, "adapter__dropout": 0.2, "base_dropout": True}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert exit_status(tiny_config(folder, **SETTINGS).settings(), False) == 0
    return folder


def resumed(whole: Path, name: str) -> tuple[dict[str, Any], Path]:
    """Settings of the same run for another folder."""
    out = whole / name
    return {**tiny_config(whole, **SETTINGS).settings(), "out": str(out)}, out


def check_same(whole: Path, out: Path) -> None:
    assert result_bytes(out) == result_bytes(whole / "out")
    assert read_log(out / "log.jsonl") == read_log(whole / "out" / "log.jsonl")
    assert {path.name for path in out.iterdir()} == {path.name for path in (whole / "out").iterdir()}
    records = [json.loads((folder / "run.json").read_text()) for folder in (out, whole / "out")]
    for key in ("metrics", "evidence", "effective", "parameters", "data", "task_state"):
        assert records[0][key] == records[1][key], key


@pytest.mark.parametrize("touch", [1, 2, 3, 6, 9, 13, 17, 24, 40, 55, 70, 78, 84, 88, 92, 96])
def test_killed_at_any_touch_of_the_disk(whole: Path, touch: int) -> None:
    settings, out = resumed(whole, f"touch-{touch}")
    code = exit_status(settings, False, touch)
    if code == 0:
        pytest.skip(f"the run touches the disk less than {touch} times")
    assert code == -signal.SIGKILL
    if (out / "run.json").exists():
        assert result_bytes(out) == result_bytes(whole / "out")
    assert exit_status(settings, True) == 0
    check_same(whole, out)


def test_killed_again_and_again_at_random_moments(whole: Path) -> None:
    settings, out = resumed(whole, "random")
    began = time.perf_counter()
    assert exit_status(settings, False) == 0
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    draw = random.Random(os.getpid())
    kills = 0
    for _ in range(40):
        process = start(settings, True)
        # A run that goes on has less to do: mostly the middle of one is hit.
        process.join(draw.uniform(0.05, 0.8) * seconds / (1 + kills / 4))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0 and not kills:  # it was through before it was hit: the machine is quicker now
            shutil.rmtree(out)
            seconds /= 2
        elif process.exitcode == 0 or kills == 6:
            break
    assert exit_status(settings, True) == 0
    assert kills > 0
    check_same(whole, out)


def test_a_program_killed_in_the_middle_of_its_steps(tmp_path: Path) -> None:
    """The same through whole programs, killed from outside after a step was told."""
    settings = {"max_steps": 12, "checkpoint_every": 3, "adapter__dropout": 0.2}
    train_in_order(tiny_config(tmp_path, **settings))
    config = tiny_config(tmp_path, **settings, out=str(tmp_path / "killed"))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.settings()))
    command = [sys.executable, str(Path(__file__).parent / "tiny_task.py"), str(path)]
    with subprocess.Popen([*command, "--slow", "0.05"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "step 8\n" in process.stdout
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert newest_checkpoint(tmp_path / "killed" / "checkpoints").step == 6  # type: ignore[union-attr]
    train_in_order(config, resume=True)
    assert result_bytes(tmp_path / "killed") == result_bytes(tmp_path / "out")


def train_in_order(config: TrainConfig, resume: bool = False) -> None:
    """In a process with one thread, like the program that is killed."""
    assert exit_status(config.settings(), resume) == 0


def interrupted(folder: Path, **settings: Any) -> TrainConfig:
    """A run that has checkpoints and was stopped."""
    config = tiny_config(folder, checkpoint_every=4, max_steps=12, **settings)

    class Stop(TinyTask):
        calls = 0

        def loss(self, *arguments: Any) -> Any:
            Stop.calls += 1
            if Stop.calls > 9:
                raise KeyboardInterrupt
            return super().loss(*arguments)

    with pytest.raises(KeyboardInterrupt):
        train(config, Stop())
    return config


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_interrupted_run_goes_on_from_its_newest_checkpoint(tmp_path: Path, method: str) -> None:
    settings = {"method": method, "learning_rate": 3e-3}
    config = interrupted(tmp_path, **settings)
    (tmp_path / "out" / "checkpoints" / ".step-00000012.partial").mkdir()
    names = [path.name for path in complete_checkpoints(tmp_path / "out" / "checkpoints")]
    assert names == ["step-00000004", "step-00000008"]
    result = train(config, TinyTask(), resume=True)
    assert "resumed after step 8" in result.notes
    whole = tiny_config(tmp_path, checkpoint_every=4, max_steps=12, out=str(tmp_path / "whole"), **settings)
    train(whole, TinyTask())
    assert result_bytes(tmp_path / "out") == result_bytes(tmp_path / "whole")
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_resume_with_other_settings_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    interrupted(tmp_path)
    before = sorted(path for path in (tmp_path / "out").rglob("*"))
    other = tiny_config(tmp_path, checkpoint_every=4, max_steps=12, learning_rate=0.5, adapter__rank=2)
    with pytest.raises(ConfigError, match=r"'adapter.rank' \(8 → 2\), 'learning_rate' \(0.02 → 0.5\)"):
        train(other, TinyTask(), resume=True)
    assert sorted(path for path in (tmp_path / "out").rglob("*")) == before
    train(tiny_config(tmp_path, checkpoint_every=2, keep_checkpoints=5, max_steps=12), TinyTask(), resume=True)


def test_a_resume_over_other_data_is_refused(tmp_path: Path) -> None:
    config = interrupted(tmp_path)
    with Path(config.data.train).open("a") as file:
        file.write("odd\tw1 w3\n")
    with pytest.raises(ConfigError, match="the files of 'data' are not those it was begun with"):
        train(config, TinyTask(), resume=True)


def test_a_finished_run_is_returned_and_a_missing_one_begun(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, max_steps=4)
    begun = train(config, TinyTask(), resume=True)
    before = result_bytes(tmp_path / "out")
    again = train(config, TinyTask(), resume=True)
    assert again.record["metrics"] == begun.record["metrics"]
    assert again.metrics == begun.metrics
    assert result_bytes(tmp_path / "out") == before
    with pytest.raises(ConfigError, match="'max_steps' "):
        train(tiny_config(tmp_path, max_steps=5), TinyTask(), resume=True)


def test_early_stopping_holds_across_a_resume(tmp_path: Path) -> None:
    """Stopped exactly when the patience had run out: no further step may be done."""

    class Worse(TinyTask):
        left = 3

        def score(self, predictions: Any, references: Any) -> dict[str, float]:
            Worse.left -= 1
            return {"accuracy": 0.5}

        def outputs(self, *arguments: Any) -> Any:
            if Worse.left == 0:
                Worse.left = -1
                raise KeyboardInterrupt
            return super().outputs(*arguments)

    config = tiny_config(tmp_path, epochs=5, patience=1)
    with pytest.raises(KeyboardInterrupt):
        train(config, Worse())
    result = train(config, Worse(), resume=True)
    assert (result.record["training"]["steps"], result.record["training"]["best_step"]) == (20, 10)
    assert result.record["training"]["stopped_early"]


def test_time_alone_brings_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100_000, 250))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    saved = []
    monkeypatch.setattr(loop_module, "save_checkpoint", lambda folder, checkpoint, keep: saved.append(checkpoint.step))
    train(tiny_config(tmp_path, epochs=1), TinyTask())
    assert saved == [3, 6, 9]
