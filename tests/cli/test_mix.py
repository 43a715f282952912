"""`loraloom mix`: the verb as its users meet it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.commands import Call
from tests.formats.files import sd1_file

from loraloom.formats import describe_adapter, read_any
from loraloom.formats.updates import updates_of


@pytest.fixture
def other_run(run_folder: Path, tmp_path: Path) -> Path:
    """A second run over the same base, its numbers moved."""
    folder = tmp_path / "other"
    shutil.copytree(run_folder, folder)
    weights = folder / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(1)
    moved = {
        key: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) if "lora_" in key else tensor
        for key, tensor in load_file(weights).items()
    }
    save_file(moved, weights)
    return folder


def test_styles_mix_and_are_told(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "mixed"
    done = call("mix", "glass:0.7", "neon:0.4", "pencil:-0.2", "--how", "svd", "--rank", 8, "--out", out)
    assert done.status == 0, done.err
    assert "layers furthest from the exact sum" in done.out
    assert "62 layers at rank 8" in done.out and "away from the exact sum; written to" in done.out
    told = json.loads((out / "mix.json").read_text())
    worst = max(told["sites"], key=lambda site: site["error"])["path"]
    assert done.out.index(worst) == min(done.out.index(s["path"]) for s in told["sites"] if s["path"] in done.out)
    card = (out / "README.md").read_text()
    assert "svd to rank 8" in card and "| pencil | -0.2 |" in card and "not trained or scored" in card


def test_json_holds_the_whole_report(call: Call, tmp_path: Path) -> None:
    done = call("mix", "glass", "neon:0.5:blocks=up*0", "--out", tmp_path / "m.safetensors", "--to", "kohya", "--json")
    assert done.status == 0, done.err
    data = done.data
    assert data["written"] and data["how"] == "exact" and len(data["sites"]) == 62
    assert [one["name"] for one in data["sources"]] == ["glass", "neon"]
    assert data["sources"][1]["blocks"] == [{"up": 0.0}]
    assert sum(one["share"] for one in data["sources"]) == pytest.approx(1.0)
    assert {site["shares"][1] for site in data["sites"] if ".up_blocks." in site["path"]} == {0.0}
    facts = describe_adapter(tmp_path / "m.safetensors")
    assert facts.format == "kohya" and facts.metadata["ss_training_comment"].startswith("mix of glass × 1 + neon × 0.5")
    assert json.loads(json.dumps(data)) == data


def test_kohya_and_peft_of_one_base_mix(call: Call, tmp_path: Path) -> None:
    kohya = sd1_file(tmp_path / "kohya.safetensors")
    assert call("convert", kohya, tmp_path / "peft", "--to", "peft").status == 0
    done = call(
        "mix", f"{kohya}:0.75", f"{tmp_path / 'peft'}:0.25", "--out", tmp_path / "out.safetensors", "--to", "kohya"
    )
    assert done.status == 0, done.err
    before, after = (updates_of(read_any(path))[0] for path in (kohya, tmp_path / "out.safetensors"))
    assert set(before) == set(after)
    assert all(after[path].rank == 2 * update.rank for path, update in before.items())
    assert max(update.difference(after[path]) for path, update in before.items()) < 1e-6


def test_a_dry_run_writes_nothing(call: Call, tmp_path: Path) -> None:
    words = ["mix", "glass:0.7", "neon:0", "--how", "dare", "--out", tmp_path / "out", "--dry-run"]
    done = call(*words)
    assert done.status == 0, done.err
    assert "dare to rank 16, density 0.5, seed 0: 62 layers in float16" in done.out
    assert "'neon' has weight 0" in done.out and "nothing was written" in done.out
    data = call(*words, "--json").data
    assert not data["written"] and data["layers"] == 62
    assert list(tmp_path.iterdir()) == []


def test_runs_mix_into_what_can_be_scored_and_used(
    call: Call, run_folder: Path, other_run: Path, tmp_path: Path, eval_file: Path
) -> None:
    out = tmp_path / "out"
    done = call("mix", f"{run_folder}:0.6", f"{other_run}:0.4", "--out", out)
    assert done.status == 0, done.err
    record = json.loads((out / "run.json").read_text())
    assert record["task"] == "text-classification" and "metrics" not in record and "training" not in record
    assert [one["weight"] for one in record["made"]["sources"]] == [0.6, 0.4]
    scored = call("evaluate", out, "--data", eval_file, "--json")
    assert scored.status == 0, scored.err
    used = call("predict", out, "--text", "the soup number 3 was lovely", "--json")
    assert used.status == 0, used.err
    assert used.data["predictions"][0]["label"] in ("positive", "negative")


def test_a_run_alone_is_the_same_to_the_bit(call: Call, run_folder: Path, tmp_path: Path) -> None:
    done = call("mix", run_folder, "--out", tmp_path / "out")
    assert done.status == 0 and "the same to the bit" in done.out
    weights = "adapter_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (run_folder / weights).read_bytes()


def test_quiet_says_where_it_is(call: Call, tmp_path: Path) -> None:
    done = call("mix", "glass", "neon", "--out", tmp_path / "out", "--quiet")
    assert len(done.out.splitlines()) == 1 and str(tmp_path / "out") in done.out


def test_what_was_there_is_left_or_replaced_whole(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text("{}")
    done = call("mix", "glass", "neon", "--out", out)
    assert done.status == 2 and "say --overwrite" in done.err
    assert call("mix", "glass", "neon", "--out", out, "--overwrite").status == 0
    assert not (out / "run.json").exists(), "it told of another adapter"


BAD = {
    "unknown way": (["glass", "--how", "tie"], "--how 'tie' is not one of exact, svd, ties"),
    "weight that is no number": (["glass:nan", "neon"], "the weight is nan"),
    "word for a weight": (["glass:much"], "the weight 'much' is not a number"),
    "missing file": (["no/such.safetensors"], "there is no adapter at no/such.safetensors"),
    "misspelt style": (["glas", "neon"], "did you mean 'glass'"),
    "rank 0": (["glass", "neon", "--how", "svd", "--rank", 0], "--rank is 0"),
    "rank of the exact sum": (["glass", "neon", "--rank", 4], "--how exact keeps the sum of all ranks"),
    "density 0": (["glass", "neon", "--how", "ties", "--density", 0], "--density is 0.0"),
    "density above 1": (["glass", "neon", "--how", "dare", "--density", 1.5], "--density is 1.5"),
    "density that is none": (["glass", "neon", "--how", "dare", "--density", "nan"], "--density is nan"),
    "density of an svd": (
        ["glass", "neon", "--how", "svd", "--density", 0.5],
        "--density has no meaning for --how svd",
    ),
    "seed of ties": (["glass", "neon", "--how", "ties", "--seed", 1], "--seed has no meaning for --how ties"),
    "block that is none": (["glass:1:blocks=mdi*0", "neon"], "'mdi' is no block"),
    "layer that is not there": (["glass:1:blocks=*.to_z*0", "neon"], "matches no layer"),
    "unknown head": (["glass", "neon", "--head", "nenon"], "did you mean 'neon'"),
    "head that is none": (["glass", "neon", "--head", "neon"], "none of the adapters has one"),
    "unknown dtype": (["glass", "neon", "--dtype", "fp8"], "--dtype 'fp8' is not one of"),
    "unknown format": (["glass", "neon", "--to", "koya"], "did you mean 'kohya'"),
    "all at rest": (["glass:0", "neon:0"], "every adapter has weight 0"),
}


@pytest.mark.parametrize("words", BAD.values(), ids=BAD)
def test_bad_input_is_told_and_nothing_is_written(words: tuple[list[object], str], call: Call, tmp_path: Path) -> None:
    given, told = words
    done = call("mix", *given, "--out", tmp_path / "out")
    assert done.status == 2, done.out + done.err
    assert told in done.err and done.err.startswith("loraloom: ") and "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []
