"""`loraloom train`: from the words of a command to a folder, and what is told on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.commands import Call

from loraloom.cli.main import main
from loraloom.cli.progress import LiveReporter, PlainReporter
from loraloom.training.reporter import EvalEvent, RunPlan, StepEvent

FILES = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "run.json",
    "README.md",
    "log.jsonl",
    "curves.png",
}


def test_a_run_leaves_every_file_and_says_what_came_of_it(
    call: Call, train_words: list[object], tmp_path: Path
) -> None:
    outcome = call(*train_words)
    assert outcome.status == 0, outcome.err
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    for told in ("accuracy", "trained", "parameters", "MiB", str(tmp_path / "run"), "loraloom predict"):
        assert told in outcome.out
    assert "text column 'text' (detected)" in outcome.err
    assert "epoch 6.00" in outcome.err


def test_json_is_the_record_alone_on_stdout(call: Call, train_words: list[object], tmp_path: Path) -> None:
    outcome = call(*train_words, "--json")
    assert outcome.status == 0, outcome.err
    record = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    assert outcome.data == {"out": str(tmp_path / "run"), **record}
    assert outcome.data["metrics"]["trained"]["accuracy"] > outcome.data["metrics"]["base"]["accuracy"]


def test_flags_win_over_the_file_and_set_over_both(
    call: Call, tiny_base: Path, train_file: Path, tmp_path: Path
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        f"base: {tiny_base}\ndata: {{train: {train_file}}}\nout: {tmp_path / 'run'}\nepochs: 9\nseed: 9\n"
        "adapter: {rank: 9, targets: [query, value]}\nlearning_rate: 9.0e-3\nprecision: fp32\n",
        "utf-8",
    )
    words = ["train", config, "--epochs", 1, "--rank", 2, "--set", "adapter.rank=3", "--set", "warmup=0.5", "--json"]
    outcome = call(*words)
    assert outcome.status == 0, outcome.err
    settings = outcome.data["settings"]
    assert (settings["epochs"], settings["seed"], settings["warmup"]) == (1, 9, 0.5)
    assert settings["adapter"]["rank"] == 3
    assert settings["adapter"]["targets"] == ["query", "value"]
    assert outcome.data["effective"]["sites"] == 4


def test_a_dry_run_shows_the_plan_and_writes_nothing(call: Call, train_words: list[object], tmp_path: Path) -> None:
    outcome = call(*train_words, "--dry-run")
    assert outcome.status == 0, outcome.err
    assert "encoder.layer.1.attention.self.query" in outcome.out
    assert "4 × 32" in outcome.out or "32 × 32" in outcome.out
    assert "36 steps of 8" in outcome.out
    assert not (tmp_path / "run").exists()


def test_a_dry_run_has_json_too(call: Call, train_words: list[object], tmp_path: Path) -> None:
    plan = call(*train_words, "--dry-run", "--json").data
    assert plan["steps"] == 36
    assert plan["trained_parameters"] == sum(site["trained"] for site in plan["sites"])
    assert not (tmp_path / "run").exists()


def test_a_dry_run_refuses_what_a_run_would(call: Call, train_words: list[object], tmp_path: Path) -> None:
    assert call(*train_words, "--dry-run", "--exclude", "nothing_like_it").status == 2
    assert call(*train_words, "--dry-run", "--resume").status == 2


def test_full_fine_tuning_leaves_a_model(call: Call, train_words: list[object], tmp_path: Path) -> None:
    outcome = call(*train_words, "--method", "full", "--learning-rate", "1e-3", "--json")
    assert outcome.status == 0, outcome.err
    assert outcome.data["parameters"]["share"] == 1
    assert (tmp_path / "run" / "model.safetensors").is_file()
    told = call("predict", tmp_path / "run", "--text", "the soup was great", "--json")
    assert told.status == 0, told.err


def test_a_run_is_repeatable_to_the_byte(call: Call, train_words: list[object], tmp_path: Path) -> None:
    weights = []
    for name in ("run", "again"):
        words = [tmp_path / name if word == tmp_path / "run" else word for word in train_words]
        assert call(*words).status == 0
        weights.append((tmp_path / name / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_resume_needs_the_folder_alone(
    call: Call, train_words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [tmp_path / "whole" if word == tmp_path / "run" else word for word in train_words]
    assert call(*whole).status == 0

    def interrupt(self: PlainReporter, event: EvalEvent) -> None:
        if event.epoch > 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(PlainReporter, "evaluated", interrupt)
        stopped = call(*train_words)
    assert stopped.status == 130
    assert "--resume" in stopped.err
    assert call(*train_words).status == 2, "an unfinished run is not overwritten"
    resumed = call("train", "--resume", "--out", tmp_path / "run")
    assert resumed.status == 0, resumed.err
    assert "resumed after step" in resumed.err
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_resuming_a_finished_run_shows_it_again(call: Call, train_words: list[object], tmp_path: Path) -> None:
    first = call(*train_words, "--json")
    again = call("train", "--resume", "--out", tmp_path / "run", "--json")
    assert again.status == 0, again.err
    assert again.data == first.data


# --- how events look

PLAN = RunPlan("lora", "b", "cpu", "fp32", 1, 600, 200, 57, 0, 32, 1_000, 10_000)
STEP = StepEvent(12, 57, 0.6, 0.51234, 1.0, 1e-3, 312.4, 8.25, 640.2, 0.8125)


def test_plain_lines_hold_rate_time_left_memory_and_score(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = PlainReporter(every=0)
    reporter.started(PLAN)
    reporter.step(STEP)
    reporter.evaluated(EvalEvent(12, 0.6, "accuracy", 0.8125, {}, True))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "lora on b: 1,000 of 10,000 parameters train (10.00 %), 600 examples, 200 held out, 57 steps of 32, "
        "fp32 on cpu",
        "step 12/57  loss 0.5123  score 0.8125  312 examples/s  640 MiB  8.2 s left",
        "epoch 0.60, step 12: accuracy 0.8125  (best so far)",
    ]


def test_plain_lines_of_steps_are_rare(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = PlainReporter(every=60)
    for _ in range(100):
        reporter.step(STEP)
    assert capsys.readouterr().err == ""


def test_the_live_line_comes_down_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    live = LiveReporter()
    live.started(PLAN)
    live.step(STEP)
    live.stop()
    live.stop()
    assert not live._progress.live.is_started


def test_other_processes_of_a_run_keep_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["doctor", "--json"]) == 0
    assert capsys.readouterr().out == ""
