"""`loraloom demo`: its folder, its verdict, and the whole of it on a base of a few kilobytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.commands import Call

from loraloom.cli import side_by_side
from loraloom.errors import ConfigError, MissingExtraError, OutputError
from loraloom.imaging.showcase import SheetResult


def _record(accuracy: float, low: float, high: float) -> dict[str, Any]:
    def scores(value: float, low: float, high: float) -> dict[str, float]:
        names = ("accuracy", "macro_f1")
        return {f"{name}{end}": x for name in names for end, x in (("", value), ("_low", low), ("_high", high))}

    return {
        "base": {"name": side_by_side.BASE},
        "data": {"train_examples": 720, "evaluation_examples": 240},
        "metrics": {"base": scores(0.5, 0.44, 0.56), "trained": scores(accuracy, low, high)},
        "parameters": {"trained": 300_000, "share": 0.015},
        "result_bytes": 1_400_000,
        "training": {"seconds": {"training": 20.5}},
        "memory_mib": {"peak_above_base": 300.0},
        "settings": {"learning_rate": 1e-3},
        "precision": "fp32",
    }


@pytest.fixture
def demo_of(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The demo with made-up runs of a given score."""

    def sheet(folder: Path) -> SheetResult:
        return SheetResult(folder / "sheet.png", 9.5, 18)

    def run(*score: float, json_wanted: bool = False, paints=sheet):
        monkeypatch.setattr(side_by_side, "_train", lambda *given: _record(*score))
        told = [{"text": "fine", "label": "positive", "score": 0.9}]
        monkeypatch.setattr(side_by_side, "_predictions", lambda folder: told)
        monkeypatch.setattr(side_by_side, "scene_sheet", paints)
        return call("demo", "--out", tmp_path / "demo", *(["--json"] if json_wanted else []))

    return run


def test_a_clear_gain_is_a_success(demo_of, tmp_path: Path) -> None:
    outcome = demo_of(0.85, 0.80, 0.89)
    assert outcome.status == 0
    for told in ("LoRA", "full fine-tuning", "85.0 % (80.0–89.0)", "300,000", "1.50 %", "1.3 MiB", "20.5 s", "300 MiB"):
        assert told in outcome.out
    assert f"the adapter lies in {tmp_path / 'demo' / 'lora'}" in outcome.out
    assert f"18 pictures by three weighted adapters, 9.5 s: {tmp_path / 'demo' / 'sheet.png'}" in outcome.out
    assert "next: loraloom predict" in outcome.out


def test_without_the_library_that_paints_the_rest_is_told(demo_of) -> None:
    def missing(folder: Path) -> SheetResult:
        raise MissingExtraError("pictures are made by diffusers")

    outcome = demo_of(0.85, 0.80, 0.89, paints=missing)
    assert outcome.status == 0
    assert "no sheet of pictures was made: pictures are made by diffusers" in outcome.out


def test_a_gain_within_chance_is_none(demo_of) -> None:
    outcome = demo_of(0.58, 0.52, 0.64, json_wanted=True)
    assert outcome.status == 1
    assert outcome.data["success"] is False
    assert "NOT clearly better" in demo_of(0.58, 0.52, 0.64).out


def test_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    folder = side_by_side.demo_folder(str(tmp_path / "demo"))
    (folder / "lora").mkdir()
    (folder / "lora" / "run.json").write_text("{}")
    side_by_side.demo_folder(str(folder))
    assert [path.name for path in folder.iterdir()] == [side_by_side.MARKER]


@pytest.mark.parametrize("marker", [None, "{}", "no JSON", '{"loraloom": "something else"}'])
def test_a_folder_of_someone_else_is_refused(marker: str | None, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    if marker is not None:
        (tmp_path / side_by_side.MARKER).write_text(marker)
    with pytest.raises(OutputError, match="not an earlier demo's"):
        side_by_side.demo_folder(str(tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_demo_that_something_was_put_into_is_refused(tmp_path: Path) -> None:
    folder = side_by_side.demo_folder(str(tmp_path / "demo"))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not an earlier demo's"):
        side_by_side.demo_folder(str(folder))
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        side_by_side.demo_folder(str(tmp_path / "demo"))


def test_an_error_of_a_training_process_is_told_as_its_own() -> None:
    told = json.dumps({"error": {"kind": "ConfigError", "message": "rank is 0"}})
    assert isinstance(side_by_side._child_error(told, 2), ConfigError)
    assert isinstance(
        side_by_side._child_error(json.dumps({"error": {"kind": "KeyError", "message": "x"}}), 1), RuntimeError
    )
    assert "status -9" in str(side_by_side._child_error("", -9))


def test_the_whole_demo(
    call: Call,
    tiny_base: Path,
    train_file: Path,
    eval_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(side_by_side, "BASE", str(tiny_base))
    monkeypatch.setattr(side_by_side, "TRAIN", str(train_file))
    monkeypatch.setattr(side_by_side, "TEST", str(eval_file))
    monkeypatch.setattr(side_by_side, "RATES", {"lora": "1e-2", "full": "2e-3"})
    outcome = call("demo", "--out", tmp_path / "demo", "--epochs", 30, "--json")
    assert outcome.status == 0, outcome.err
    assert [row["name"] for row in outcome.data["rows"]] == ["base", "lora", "full"]
    assert Path(outcome.data["adapter"], "adapter_model.safetensors").is_file()
    assert json.loads((tmp_path / "demo" / side_by_side.MARKER).read_text("utf-8")) == outcome.data
    assert call("predict", outcome.data["adapter"], "--text", "the soup was great").status == 0
