"""`loraloom merge`: what it prints, what it writes, and that the result is used like any trained model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.commands import Call

from loraloom.adapters import adapters_of
from loraloom.formats import load_any
from loraloom.imaging.shelf import AdapterShelf
from loraloom.tasks.diffusion import load_diffusion


def test_a_run_becomes_a_model_that_predicts_and_is_evaluated(
    call: Call, tiny_base: Path, run_folder: Path, eval_file: Path, tmp_path: Path
) -> None:
    made = call("merge", tiny_base, run_folder, "--out", tmp_path / "out")
    assert made.status == 0, made.err
    assert "every changed layer acts as base + adapters, and so does the whole model" in made.out
    assert "taken over whole: classifier" in made.out

    for verb in ("evaluate", "predict"):
        ours = call(verb, tmp_path / "out", "--data", eval_file, "--json")
        theirs = call(verb, run_folder, "--data", eval_file, "--json")
        assert ours.status == theirs.status == 0, ours.err
        if verb == "evaluate":
            assert ours.data["metrics"]["accuracy"] == theirs.data["metrics"]["accuracy"]
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["method"] == "full" and record["merged"]["adapters"][0]["weight"] == 1.0
    assert "metrics" not in record and "evidence" not in record
    assert "base + Σ" in (card := (tmp_path / "out" / "README.md").read_text()) or "W + Σ" in card


def test_json(call: Call, tiny_base: Path, run_folder: Path, tmp_path: Path) -> None:
    made = call("merge", tiny_base, f"{run_folder}:0.5", "--out", tmp_path / "out", "--json", "--check", "layers")
    assert made.status == 0 and made.data["written"] and made.data["holds"]
    assert made.data["adapters"][0]["weight"] == 0.5 and made.data["outputs"] is None
    assert {one["kind"] for one in made.data["changed"]} == {"update", "whole"}
    worst = [one["rounding_of_update"] for one in made.data["changed"]]
    assert worst == sorted(worst, reverse=True)


def test_dry_run(call: Call, tiny_base: Path, run_folder: Path, tmp_path: Path) -> None:
    made = call("merge", tiny_base, run_folder, "--out", tmp_path / "out", "--dry-run")
    assert made.status == 0 and "nothing was written" in made.out and "tensors that would change" in made.out
    assert not (tmp_path / "out").exists()


def test_a_style_into_the_shipped_base(call: Call, tmp_path: Path) -> None:
    """The merged pipeline loads, and its U-Net computes what the base's does with the style attached."""
    made = call("merge", "scenes", "pencil:0.8", "--out", tmp_path / "out")
    assert made.status == 0, made.err
    assert "run whole (CLIPTextModel, UNet2DConditionModel)" in made.out
    attached, merged = load_diffusion("scenes"), load_diffusion(str(tmp_path / "out"))
    adapters = load_any(attached.parts, AdapterShelf().find("pencil"), name="pencil")
    adapters.activate({"pencil": 0.8})
    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    width = attached.denoiser.config.cross_attention_dim  # type: ignore[union-attr]
    text = torch.randn(1, 6, width, generator=torch.Generator().manual_seed(2))  # type: ignore[call-overload]
    with torch.no_grad():
        wanted, found = (one.denoiser(latent, 10, text).sample for one in (attached, merged))
        adapters_of(attached.parts).detach()  # type: ignore[union-attr]
        plain = attached.denoiser(latent, 10, text).sample
    assert float((found - wanted).norm()) < 2e-3 * float(wanted.norm())
    assert float((plain - wanted).norm()) > 2e-2 * float(wanted.norm())
    assert merged.defaults == attached.defaults
    assert not (tmp_path / "out" / "styles").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "no lora 'nowhere'"),
        (["{run}:x"], "is not a number"),
        (["{run}", "--check", "all"], "--check 'all' is not one of"),
        (["{run}", "--dtype", "fp8"], "--dtype 'fp8' is not one of"),
    ],
)
def test_mistakes(words: list[str], told: str, call: Call, tiny_base: Path, run_folder: Path, tmp_path: Path) -> None:
    filled = [word.format(run=run_folder) for word in words]
    made = call("merge", tiny_base, *filled, "--out", tmp_path / "out")
    assert made.status == 2 and told in made.err and made.out == ""
    assert not (tmp_path / "out").exists()


def test_a_merge_that_does_not_hold_ends_with_status_1(
    call: Call, tiny_base: Path, run_folder: Path, tmp_path: Path
) -> None:
    """A base in bf16 and an adapter far below its roundings: the result would be the base."""
    base = tmp_path / "base"
    base.mkdir()
    for file in tiny_base.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base / "model.safetensors")
    save_file({key: tensor.bfloat16() for key, tensor in tensors.items()}, base / "model.safetensors", {"format": "pt"})
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = json.loads((run_folder / "adapter_config.json").read_text()) | {"modules_to_save": None}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    factors = load_file(run_folder / "adapter_model.safetensors")
    small = {key: tensor * 1e-9 for key, tensor in factors.items() if ".lora_" in key}
    save_file(small, adapter / "adapter_model.safetensors")
    made = call("merge", base, adapter, "--out", tmp_path / "out", "--check", "layers")
    assert made.status == 1 and "leaves nothing of the update" in made.err
    assert not (tmp_path / "out").exists()
