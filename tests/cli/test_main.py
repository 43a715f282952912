"""The verbs, the error border and what an import costs."""

from __future__ import annotations

import errno
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.commands import Call

import loraloom
from loraloom import errors
from loraloom.cli import doctor
from loraloom.cli.main import VERBS

HEAVY = ("torch", "transformers", "datasets", "accelerate", "sklearn", "matplotlib")


def _raising(error: BaseException):
    def examine():
        raise error

    return examine


def test_help_names_every_verb(call: Call) -> None:
    outcome = call("--help")
    assert outcome.status == 0
    for verb, summary in VERBS.items():
        assert f"  {verb} " in outcome.out
        assert summary.split()[0] in outcome.out


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_says_what_its_summary_says_and_has_json(verb: str, call: Call) -> None:
    outcome = call(verb, "--help")
    assert outcome.status == 0
    assert getattr(importlib.import_module(f"loraloom.cli.{verb}"), verb).__doc__.startswith(VERBS[verb])
    assert "--json" in outcome.out
    assert "--debug" in outcome.out


def _imported_by(*words: str) -> set[str]:
    code = (
        "import sys; from loraloom.cli.main import main; status = main(sys.argv[1:]); "
        "print('\\n' + ' '.join(sys.modules)); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_nothing_heavy() -> None:
    assert _imported_by("--help").isdisjoint({*HEAVY, "pydantic", "rich", "yaml"})


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_imports_nothing_heavy(verb: str) -> None:
    assert _imported_by(verb, "--help").isdisjoint(HEAVY)


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import loraloom; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = {name for name in done.stdout.split() if name.startswith("loraloom")}
    assert ours == {"loraloom"}
    assert set(done.stdout.split()).isdisjoint({*HEAVY, "pydantic", "safetensors"})


def test_version(call: Call) -> None:
    assert call("--version").out == f"loraloom {loraloom.__version__}\n"


def test_python_m_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "loraloom", "trian"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'train'?" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian"], "there is no verb 'trian'; did you mean 'train'?"),
        (["--vresion"], "there is no option --vresion; did you mean '--version'?"),
        (["train", "--rnak", "4"], "there is no option --rnak; did you mean '--rank'?"),
        (["train", "--rank"], "--rank"),
        (["train"], "--base and --data and --out are missing"),
        (["train", "--set", "rank"], "not of the form key=value"),
        (["evaluate"], "DIR"),
        (["predict", "somewhere", "--batch-size", "0"], "--batch-size"),
        (["doctor", "surplus"], "surplus"),
    ],
)
def test_a_slip_at_the_prompt_is_one_sentence(words: list[str], told: str, call: Call) -> None:
    outcome = call(*words)
    assert outcome.status == 2
    assert outcome.out == ""
    assert told in outcome.err
    assert len(outcome.err.splitlines()) == 1


ENDS = [
    (errors.DataError("train.csv:3: no label"), 2, "train.csv:3: no label"),
    (errors.OutputError("out: it is not empty"), 2, "out: it is not empty"),
    (OSError(errno.ENOSPC, "No space left on device", "x.bin"), 2, "no space is left on the disk x.bin"),
    (PermissionError(errno.EACCES, "Permission denied", "x.bin"), 2, "no permission to use the file x.bin"),
    (RuntimeError("two\nlines"), 1, "failed with RuntimeError: two lines (--debug shows the traceback)"),
    (KeyboardInterrupt(), 130, "interrupted"),
]


@pytest.mark.parametrize(("error", "status", "told"), ENDS)
def test_every_error_ends_in_a_status_and_a_sentence(
    error: BaseException, status: int, told: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "examine", _raising(error))
    outcome = call("doctor")
    assert outcome.status == status
    assert outcome.out == ""
    assert outcome.err.splitlines() == [f"loraloom: {told}"] or told in outcome.err


def test_an_error_is_an_object_with_json(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", _raising(errors.ConfigError("rank is 0")))
    outcome = call("doctor", "--json")
    assert outcome.status == 2
    assert outcome.data == {"error": {"kind": "ConfigError", "message": "rank is 0"}}
    assert "Traceback" not in outcome.err


def test_debug_shows_the_traceback(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", _raising(RuntimeError("deep down")))
    assert "Traceback" in call("doctor", "--debug").err
    assert "Traceback" not in call("doctor").err


def test_an_interrupted_training_says_how_to_go_on(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    train = importlib.import_module("loraloom.cli.train")
    monkeypatch.setattr(train, "load_config", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    outcome = call("train", "--base", "b", "--data", "d", "--out", "o")
    assert outcome.status == 130
    assert "--resume" in outcome.err


def test_a_closed_pipe_is_no_failure() -> None:
    words = [sys.executable, "-m", "loraloom", "train", "--reference"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_doctor_reports_every_part(call: Call) -> None:
    outcome = call("doctor", "--json")
    assert outcome.status == 0
    assert set(outcome.data) >= {"system", "libraries", "devices", "arithmetic", "resources", "extras", "problems"}
    assert outcome.data["extras"]["demo"]["install"] == 'pip install "loraloom[demo]"'
    assert "torch" in call("doctor").out


def test_doctor_names_what_is_missing(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in {"rich", "tensorboard"} else found(name))
    report = call("doctor", "--json").data
    assert report["problems"][0] == "rich is missing: pip install rich"
    assert report["extras"]["tensorboard"]["installed"] is None


def test_json_output_is_json_even_for_numbers_that_are_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    from loraloom.cli.output import emit

    emit({"a": float("nan"), "b": [float("inf"), 1.5], "c": Path("x")})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": "x"}
