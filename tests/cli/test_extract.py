"""`loraloom extract`: what it prints, its statuses, and runs of our own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.commands import Call
from tests.compose.extract_models import bert, change, change_layers, llama, pair, save

from loraloom.cli.main import main


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def tune(model: object) -> None:
        change_layers(model, rank=6)  # type: ignore[arg-type]
        change(model.model.norm.weight)  # type: ignore[attr-defined]

    folder = tmp_path_factory.mktemp("checkpoints")
    pair(folder, llama, tune, shards="20KB")
    return folder


def words(folder: Path, out: Path, *more: object) -> list[object]:
    return ["extract", folder / "tuned", folder / "base", "--out", out, *more]


def test_what_is_printed(call: Call, checkpoints: Path, tmp_path: Path) -> None:
    done = call(*words(checkpoints, tmp_path / "out", "--rank", 4))
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert "left out of ‖ΔW‖" in done.out and "and 7 layers more, down to" in done.out
    assert any(line.split()[:3] == ["model.norm.weight", "a", "norm"] and "lost" in line for line in lines)
    assert lines[-2].startswith("rank 4 in 15 layers, ") and "--keep-others carries norms and biases" in lines[-2]
    assert lines[-1].startswith("5 of 21 tensors are unchanged; written to ")
    kept = call(*words(checkpoints, tmp_path / "kept", "--rank", 4, "--keep-others"))
    assert "carried whole" in kept.out and "lost" not in kept.out.replace("layers that lose most", "")
    shares = [float(line.split()[-2]) for line in lines if line.strip().startswith(("model.layers", "lm_head"))]
    assert shares == sorted(shares, reverse=True) and len(shares) == 8


def test_json_and_quiet(call: Call, checkpoints: Path, tmp_path: Path) -> None:
    done = call(*words(checkpoints, tmp_path / "out", "--energy", 0.9, "--max-rank", 4, "--json"))
    assert done.status == 0, done.err
    assert done.data == json.loads((tmp_path / "out" / "extract.json").read_text())
    assert max(site["rank"] for site in done.data["sites"]) == 4
    assert done.data["sites"][0]["left_out"] >= done.data["sites"][-1]["left_out"]
    assert 0.5 < done.data["carried"] < done.data["carried_by_sites"] < 1
    quiet = call(*words(checkpoints, tmp_path / "quiet", "--rank", 2, "--quiet"))
    assert (quiet.status, quiet.out) == (0, "")


def test_a_dry_run_reads_headers_alone(call: Call, checkpoints: Path, tmp_path: Path) -> None:
    done = call(*words(checkpoints, tmp_path / "out", "--rank", 4, "--dry-run"))
    assert done.status == 0 and not (tmp_path / "out").exists()
    assert "21 tensors would be compared, 15 of them layers that can get an update" in done.out
    unknown = call(*words(checkpoints, tmp_path / "out", "--energy", 0.9, "--dry-run"))
    assert "of a size that the spectra decide" in unknown.out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((), "say --rank, or --energy"),
        (("--rank", 4, "--energy", 0.9), "say --rank or --energy, not both"),
        (("--rank", 4, "--max-rank", 9), "--max-rank goes with --energy"),
        (("--rank", 0), "--rank"),
        (("--rank", 2, "--targets", "q_proj,kproj"), "'kproj' matches no layer"),
        (("--rank", 2, "--dtype", "fp8"), "--dtype 'fp8'"),
    ],
)
def test_bad_words(given: tuple[object, ...], told: str, call: Call, checkpoints: Path, tmp_path: Path) -> None:
    done = call(*words(checkpoints, tmp_path / "out", *given))
    assert done.status == 2 and told in done.err and not done.out
    assert not (tmp_path / "out").exists()


def test_identical_checkpoints(call: Call, checkpoints: Path, tmp_path: Path) -> None:
    same = checkpoints / "base"
    done = call("extract", same, same, "--rank", 4, "--out", tmp_path / "out")
    assert done.status == 2 and "nothing differs" in done.err and not (tmp_path / "out").exists()


# -- runs of our own ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained in full."""
    from tests.cli.commands import sentences, write_csv

    folder = tmp_path_factory.mktemp("full")
    data = write_csv(folder / "train.csv", sentences(48))
    given = ["train", "--base", tiny_base, "--data", data, "--eval", data, "--out", folder / "run", "--epochs", 12]
    given += ["--learning-rate", "3e-3", "--method", "full", "--batch-size", 8, "--precision", "fp32"]
    assert main([str(word) for word in given]) == 0
    return folder


def test_a_run_of_ours_becomes_an_adapter_that_evaluate_opens(
    call: Call, full_run: Path, tiny_base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = call("extract", full_run / "run", tiny_base, "--rank", 99, "--keep-others", "--targets", "*", "--out", out)
    assert done.status == 0, done.err
    ours, theirs = (
        call("evaluate", folder, "--data", full_run / "train.csv", "--json") for folder in (out, full_run / "run")
    )
    assert ours.status == 0, ours.err
    assert ours.data["metrics"]["accuracy"] == theirs.data["metrics"]["accuracy"] > 0.8
    record = json.loads((out / "run.json").read_text())
    assert record["method"] == "lora" and record["made"]["how"] == "extract"
    told = call("predict", out, "--text", "the soup was great", "--json")
    assert told.status == 0, told.err


def test_its_head_comes_along_unasked(call: Call, full_run: Path, tiny_base: Path, tmp_path: Path) -> None:
    done = call("extract", full_run / "run", tiny_base, "--rank", 8, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    assert "classifier.weight" in done.out and "carried whole" in done.out
    assert call("evaluate", tmp_path / "out", "--data", full_run / "train.csv").status == 0


def test_over_another_base_it_carries_no_record(call: Call, full_run: Path, tiny_base: Path, tmp_path: Path) -> None:
    other = bert().bert.from_pretrained(tiny_base)
    change(other.embeddings.word_embeddings.weight)
    save(other, tmp_path / "other")
    done = call("extract", full_run / "run", tmp_path / "other", "--rank", 8, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    assert "whose weights are not those of" in done.out and not (tmp_path / "out" / "run.json").exists()
