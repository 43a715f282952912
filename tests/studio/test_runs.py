"""Training runs as processes of their own: started, watched, stopped, taken up again, and kept inside."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.cli.commands import make_tiny_base, sentences, write_csv

from loraloom.errors import ConfigError, OutputError
from loraloom.studio.places import Places
from loraloom.studio.runs import Runs, RunStatus, last_sentence

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def runs(places: Places, tmp_path: Path) -> Runs:
    """Runs whose program is a stand-in that writes the files of a run, without the seconds of the real one."""
    (tmp_path / "data" / "bert").mkdir()
    (tmp_path / "data" / "train.csv").write_text("text,label\n")
    return stand_in(places, tmp_path)


def stand_in(places: Places, start: Path) -> Runs:
    return Runs(places, start=start, program=(sys.executable, "-S", str(Path(__file__).with_name("stand_in.py"))))


def settings(**changes: object) -> str:
    data = {"train": "data/train.csv", "eval": "data/train.csv"}
    fast = {"epochs": 2, "batch_size": 8, "precision": "fp32", "adapter": {"rank": 2}}
    return yaml.safe_dump({"base": "data/bert", "data": data, "out": "one", **fast, **changes})


def until(check: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.1)


def test_a_real_run_is_started_shown_and_finished(places: Places, tmp_path: Path) -> None:
    make_tiny_base(tmp_path / "data" / "bert", seed=0)
    write_csv(tmp_path / "data" / "train.csv", sentences(48))
    runs = Runs(places, start=tmp_path)
    assert runs.check(settings()).startswith("the settings are sound")
    assert runs.start(settings()) == "one"
    assert runs.running() == "one"
    with pytest.raises(ConfigError, match="'one' is training; stop it first"):
        runs.start(settings(out="two"))
    until(lambda: runs.status("one").state != "running", 170)
    done = runs.status("one")
    assert done.state == "finished", done.tail
    assert (done.step, done.steps) == (12, 12) and done.sentence == "one is finished"
    assert {entry["kind"] for entry in done.entries} == {"step", "evaluation"}
    assert runs.names() == ["one"] and runs.running() is None
    with pytest.raises(OutputError, match="is not empty"):
        runs.start(settings())
    with pytest.raises(ConfigError, match="'one' is not running"):
        runs.stop("one")


def test_a_run_is_stopped_by_its_number_and_taken_up_again(runs: Runs, places: Places, tmp_path: Path) -> None:
    runs.start(settings())
    until(lambda: runs.status("one").step > 2)
    assert runs.status("one").state == "running" and runs.status("one").steps == 500
    again = stand_in(places, tmp_path)  # a studio that was opened anew finds it
    assert again.running() == "one"
    again.stop("one")
    until(lambda: runs.status("one").state != "running")
    stopped = runs.status("one")
    assert stopped.state == "stopped" and "Go on" in stopped.sentence, stopped.tail
    assert "interrupted" in stopped.tail
    runs.start(runs.settings("one"), resume=True)
    until(lambda: "resumed" in runs.status("one").tail)
    runs.stop("one")
    until(lambda: runs.running() is None)


def test_a_run_that_does_not_listen_is_ended_all_the_same(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraloom.studio.runs._GRACE", 0.3)
    runs.start(settings(seed=666))
    until(lambda: runs.status("one").step > 2)
    runs.stop("one")
    until(lambda: runs.running() is None, 10)


def test_a_run_that_fails_says_why(runs: Runs) -> None:
    runs.start(settings(seed=13))
    until(lambda: runs.status("one").state != "running")
    failed = runs.status("one")
    assert failed.state == "failed" and failed.sentence == "one failed: data/train.csv: it has no rows"
    assert runs.names() == ["one"], "a run that left nothing behind can still be read about"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"out": "../one"}, "no plain name"),
        ({"out": "/tmp/one"}, "no plain name"),
        ({"out": ".studio"}, "no plain name"),
        ({"data": {"train": "/etc/passwd"}}, "data.train: '/etc/passwd' lies outside"),
        ({"base": "../bert"}, "base: '../bert' lies outside"),
        ({"base": None, "base_config": "/etc", "method": "full"}, "base_config: '/etc' lies outside"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_settings_that_reach_outside_or_are_wrong_start_nothing(
    runs: Runs, places: Places, changes: dict[str, object], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        runs.start(settings(**changes))
    assert not places.runs.exists()


def test_another_process_under_the_same_number_is_left_alone(runs: Runs, places: Places) -> None:
    (places.runs / ".studio").mkdir(parents=True)
    note = places.runs / ".studio" / "one.json"
    for content in (
        json.dumps({"pid": os.getpid(), "born": 1.0}),
        "{",
        "[]",
        "{}",
        json.dumps({"pid": "x", "born": 1}),
    ):
        note.write_text(content)
        assert runs.running() is None
        with pytest.raises(ConfigError, match="is not running"):
            runs.stop("one")


@pytest.mark.parametrize("name", ["../x", "/etc", "", ".studio"])
def test_names_of_runs_stay_inside(runs: Runs, name: str) -> None:
    for use in (runs.status, runs.stop, runs.settings, runs.folder):
        with pytest.raises(ConfigError):
            use(name)


def test_sentences() -> None:
    def status(**changes: object) -> RunStatus:
        return RunStatus(**{**{"name": "a", "state": "running", "step": 3, "steps": 9, "seconds_left": "2 min",
                               "entries": [], "tail": ""}, **changes})  # type: ignore[arg-type]  # fmt: skip

    assert status().sentence == "a is running: step 3 of 9, 2 min left"
    assert status(step=0, steps=None, seconds_left="").sentence == "a is running: reading its data"
    assert status(state="stopped").sentence.startswith("a was stopped at step 3 of 9; Go on")
    assert status(state="failed", tail="x\nloraloom: no file\n\n").sentence == "a failed: no file"
    assert last_sentence("") == "it printed nothing"
