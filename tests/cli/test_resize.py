"""`loraloom resize`: shown, written and proved, or refused in one sentence with nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.cli.commands import Call
from tests.compose.made import dense, folder, updates

WRONG = [
    (["--rank", 0], "--rank 0: a rank is a whole number of at least 1"),
    (["--energy", 0], "--energy 0: the share"),
    (["--energy", "1.2"], "--energy 1.2: the share"),
    (["--energy", "nan"], "--energy nan: the share"),
    (["--energy", "much"], "invalid value for '--energy'"),
    (["--rank", 2, "--energy", "0.9"], "both given"),
    ([], "say which --rank"),
    (["--rank", 2, "--to", "koyha"], "did you mean 'kohya'"),
    (["--rank", 2, "--dtype", "fp61"], "did you mean 'fp16'"),
    (["--rank", 2, "--png", "missing/x.png"], "there is no such folder"),
    (["--rank", 2, "--png", "x.jpg"], "must end in .png"),
    (["--rank", 2, "--ot", "x"], "there is no option --ot"),
]


@pytest.fixture
def ink(tmp_path: Path) -> Path:
    return folder(tmp_path / "ink", updates(1, rank=6))


@pytest.mark.parametrize(("words", "told"), WRONG)
def test_what_means_nothing_is_one_sentence(
    words: list[object], told: str, call: Call, ink: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("resize", ink, "--out", tmp_path / "small", *words)
    assert done.status == 2 and told in done.err and done.err.count("\n") == 1 and done.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["ink"]


def test_what_is_not_there(call: Call, tmp_path: Path) -> None:
    assert "there is no adapter at" in call("resize", tmp_path / "none", "--rank", 2).err
    told = call("resize", "glas", "--rank", 2)
    assert told.status == 2 and "did you mean 'glass'" in told.err


def test_a_target_that_is_taken(call: Call, ink: Path, tmp_path: Path) -> None:
    taken = folder(tmp_path / "taken", updates(2))
    before = dense(taken)
    done = call("resize", ink, "--rank", 2, "--out", taken)
    assert done.status == 2 and "is there already" in done.err
    assert all(before[path].equal(after) for path, after in dense(taken).items())
    assert call("resize", ink, "--rank", 2, "--out", taken, "--overwrite").status == 0


def test_without_a_choice_the_ranks_are_shown(call: Call, ink: Path, tmp_path: Path) -> None:
    done = call("resize", ink, "--png", tmp_path / "ranks.png")
    assert done.status == 0, done.err
    assert all(f"{share} %" in done.out for share in ("90", "95", "99", "99.9")) and "layers.1" in done.out
    assert "nothing written: choose --rank or --energy" in done.out
    assert (tmp_path / "ranks.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ink", "ranks.png"]


def test_it_is_written_and_told(call: Call, ink: Path, tmp_path: Path) -> None:
    done = call("resize", ink, "--energy", 0.9, "--out", tmp_path / "small", "--png", tmp_path / "ranks.png")
    assert done.status == 0, done.err
    assert f"written to {tmp_path / 'small'} (peft), read back and compared" in done.out
    assert "fewer numbers" in done.out and "kept, error of ΔW" in done.out
    told = call("resize", ink, "--energy", 0.9, "--json").data
    assert told["target"] is None and told["energy"] == 0.9 and 0.9 <= told["kept"] < 1
    assert (tmp_path / "small" / "README.md").read_text().startswith("---\ntags:")
    rows = call("resize", ink, "--energy", 0.9, "--layers").out
    assert all(path in rows for path in dense(ink)) and "nothing written: add --out" in rows
    assert call("resize", ink, "--energy", 0.9, "--quiet").out == ""


def test_nothing_to_do_is_told(call: Call, ink: Path, tmp_path: Path) -> None:
    done = call("resize", ink, "--rank", 16, "--out", tmp_path / "same")
    assert done.status == 0 and "no layer has a rank above 16: the adapter stays as it is" in done.out
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ink", "same"))
    assert all(one[key].equal(two[key]) for key in one)
    dry = call("resize", ink, "--rank", 2, "--out", tmp_path / "dry", "--dry-run")
    assert "this was a dry run" in dry.out and not (tmp_path / "dry").exists()


def test_a_run_is_still_a_run(call: Call, run_folder: Path, train_file: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    done = call("resize", run_folder, "--energy", 0.999, "--out", small)
    assert done.status == 0 and "(heads, biases) carried over whole" in done.out
    scores = [call("evaluate", path, "--data", train_file, "--json") for path in (run_folder, small)]
    assert [one.status for one in scores] == [0, 0], scores[1].err
    assert scores[0].data["metrics"] == scores[1].data["metrics"]
    shown = call("inspect", small)
    assert shown.status == 0 and "made from trained adapters and not scored itself" in shown.out
    record = (small / "run.json").read_text()
    assert '"how": "resize"' in record and '"metrics"' not in record and '"training"' not in record
    again = call("resize", small, "--rank", 1, "--out", tmp_path / "one")
    assert again.status == 0 and call("predict", tmp_path / "one", "--text", "the soup was lovely").status == 0
