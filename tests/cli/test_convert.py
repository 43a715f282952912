"""`loraloom convert`: written, read back, proved the same, or nothing left behind."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.cli.commands import Call
from tests.formats.files import ATTENTION, CLIP, pair, random, sd1_file, write

from loraloom.formats import describe_adapter, read_any
from loraloom.formats.certificate import compare_updates
from loraloom.formats.updates import updates_of


def target(folder: Path, form: str, number: int = 0) -> Path:
    return folder / (f"{number}-{form}" if form == "peft" else f"{number}-{form}.safetensors")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return sd1_file(tmp_path / "source.safetensors")


@pytest.mark.parametrize(("first", "second"), itertools.product(("kohya", "diffusers", "peft"), repeat=2))
def test_round_trips_over_every_pair(first: str, second: str, call: Call, source: Path, tmp_path: Path) -> None:
    steps = [source, target(tmp_path, first, 1), target(tmp_path, second, 2), tmp_path / "back.safetensors"]
    for before, after, form in zip(steps[:-1], steps[1:], (first, second, "kohya"), strict=True):
        done = call("convert", before, after, "--to", form, "--base-kind", "sd1", "--json")
        assert done.status == 0, done.err
        assert done.data["holds"] and done.data["largest"] <= 1e-6 and len(done.data["sites"]) == 4
        assert describe_adapter(after).format == form
    checks = compare_updates(updates_of(read_any(source))[0], updates_of(read_any(steps[-1]))[0])
    assert max(check.difference for check in checks) <= 1e-6


def test_kohya_to_kohya_is_the_same_to_the_bit(call: Call, source: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    done = call("convert", source, one, "--to", "kohya")
    assert done.status == 0
    assert "kohya → kohya for sd1: 4 layers, the same to the bit" in done.out
    assert call("convert", one, two, "--to", "kohya").status == 0
    assert one.read_bytes() == two.read_bytes()
    before, after = load_file(source), load_file(one)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_layers_that_differ_in_alpha_get_one(call: Call, tmp_path: Path) -> None:
    tensors = {**pair(f"lora_unet_{ATTENTION}", alpha=3.0), **pair(f"lora_te_{CLIP}", alpha=0.7)}
    source = write(tmp_path / "source.safetensors", tensors)
    done = call("convert", source, tmp_path / "out.safetensors", "--to", "kohya", "--base-kind", "sd1", "--json")
    assert done.status == 0 and 0 < done.data["largest"] <= 1e-6
    alphas = {float(tensor) for key, tensor in load_file(tmp_path / "out.safetensors").items() if "alpha" in key}
    assert len(alphas) == 1


@pytest.mark.parametrize(("dtype", "most"), [("fp16", 2**-10), ("bf16", 2**-7)])
def test_the_rounding_of_a_dtype_is_allowed(dtype: str, most: float, call: Call, source: Path, tmp_path: Path) -> None:
    done = call("convert", source, tmp_path / "out.safetensors", "--to", "kohya", "--dtype", dtype, "--json")
    assert done.status == 0
    assert 1e-6 < done.data["largest"] <= most


def test_what_a_dtype_cannot_hold_leaves_no_file(call: Call, tmp_path: Path) -> None:
    tensors = pair(f"lora_unet_{ATTENTION}")
    tensors[f"lora_unet_{ATTENTION}.lora_up.weight"] *= 1e-7  # below what float16 has digits for
    source = write(tmp_path / "source.safetensors", tensors)
    out = tmp_path / "new" / "out.safetensors"
    done = call("convert", source, out, "--to", "kohya", "--base-kind", "sd1", "--dtype", "fp16")
    assert done.status == 1
    assert "was not written: 1 of 1 layers differ" in done.err and "write fp32 or bf16 instead" in done.err
    assert ATTENTION.replace("_", ".")[:4] in done.out
    assert [path.name for path in tmp_path.iterdir()] == ["source.safetensors"]
    assert call("convert", source, out, "--to", "kohya", "--base-kind", "sd1", "--dtype", "bf16").status == 0


def test_values_beyond_a_dtype_are_refused(call: Call, tmp_path: Path) -> None:
    tensors = pair(f"lora_unet_{ATTENTION}")
    tensors[f"lora_unet_{ATTENTION}.lora_up.weight"] *= 1e6
    source = write(tmp_path / "source.safetensors", tensors)
    done = call("convert", source, tmp_path / "o.safetensors", "--to", "kohya", "--base-kind", "sd1", "--dtype", "fp16")
    assert done.status == 2 and "beyond the range of float16" in done.err


def test_sdxl_gets_the_original_names(call: Call, tmp_path: Path) -> None:
    path = "unet.down_blocks.1.attentions.0.proj_in"
    tensors = {f"{path}.lora_A.weight": random(2, 5), f"{path}.lora_B.weight": random(6, 2)}
    source = write(tmp_path / "source.safetensors", tensors)
    out = tmp_path / "out.safetensors"
    assert call("convert", source, out, "--to", "kohya").status == 2, "nothing tells the family"
    assert call("convert", source, out, "--to", "kohya", "--base-kind", "sdxl").status == 0
    assert "lora_unet_input_blocks_4_1_proj_in.lora_down.weight" in load_file(out)


def test_flux_gets_fused_layers_and_gives_them_back(call: Call, tmp_path: Path) -> None:
    root = "transformer.transformer_blocks.0.attn"
    names = [f"{root}.to_q", f"{root}.to_k", f"{root}.to_v", f"{root}.to_out.0"]
    names += [f"transformer.single_transformer_blocks.1.{end}" for end in ("attn.to_v", "proj_mlp", "proj_out")]
    tensors = {}
    for index, name in enumerate(names):
        wide = 32 if name.endswith("proj_mlp") else 8
        tensors |= {
            f"{name}.lora_A.weight": random(2, 8, seed=index),
            f"{name}.lora_B.weight": random(wide, 2, seed=index),
        }
    source = write(tmp_path / "source.safetensors", tensors)
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    done = call("convert", source, once, "--to", "kohya", "--json")
    assert done.status == 0, done.err
    written = load_file(once)
    assert written["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"].shape == (6, 8)
    assert written["lora_unet_single_blocks_1_linear1.lora_up.weight"].shape == (56, 4)
    assert call("convert", once, twice, "--to", "kohya").status == 0
    assert all(torch.equal(written[key], tensor) for key, tensor in load_file(twice).items())


def test_lycoris_becomes_plain_lora(call: Call, tmp_path: Path) -> None:
    stem = f"lora_unet_{ATTENTION}"
    source = write(tmp_path / "source.safetensors", {f"{stem}.diff": random(6, 10)}, ss_base_model_version="sd_v1")
    whole = call("convert", source, tmp_path / "whole.safetensors", "--to", "kohya", "--json")
    assert whole.status == 0 and whole.data["approximation"] == 0 and whole.data["sites"][0]["rank"] == 6
    cut = call("convert", source, tmp_path / "cut.safetensors", "--to", "kohya", "--rank", 2)
    assert (
        cut.status == 0
        and "left out by the SVD" in cut.out
        and "an SVD left out at most" in cut.out
        and "of what is kept, the same to the bit" in cut.out
    )


def test_loralib_both_ways(call: Call, tmp_path: Path) -> None:
    tensors = {"layers.0.query.lora_A": random(2, 5), "layers.0.query.lora_B": random(6, 2)}
    source = write(tmp_path / "source.safetensors", tensors)
    assert "say which lora_alpha" in call("convert", source, tmp_path / "a", "--to", "peft").err
    assert call("convert", source, tmp_path / "a", "--to", "peft", "--alpha", 4).status == 0
    assert read_any(tmp_path / "a").config["lora_alpha"] == 4
    done = call("convert", tmp_path / "a", tmp_path / "b.safetensors", "--to", "loralib")
    assert done.status == 0, done.err
    assert torch.equal(
        load_file(tmp_path / "b.safetensors")["layers.0.query.lora_B"], 2 * tensors["layers.0.query.lora_B"]
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--to", "koyha"], "did you mean 'kohya'"),
        (["--to", "kohya", "--dtype", "fp61"], "did you mean 'fp16'"),
        (["--to", "kohya", "--base-kind", "sdlx"], "did you mean 'sdxl'"),
        (["--to", "peft"], "PEFT's adapters are folders"),
    ],
)
def test_words_that_mean_nothing(words: list[str], told: str, call: Call, source: Path, tmp_path: Path) -> None:
    done = call("convert", source, tmp_path / "out.safetensors", *words)
    assert done.status == 2 and told in done.err
    assert not (tmp_path / "out.safetensors").exists()


def test_what_is_there_already_is_left_alone(call: Call, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    assert "is there already" in call("convert", source, out, "--to", "kohya").err
    assert out.read_text() == "precious"
    assert call("convert", source, out, "--to", "kohya", "--overwrite", "--quiet").out == ""
    assert describe_adapter(out).sites == 4
    assert "is the adapter that is read" in call("convert", source, source, "--to", "kohya", "--overwrite").err


def test_unknown_keys_are_told_and_nothing_is_written(call: Call, tmp_path: Path) -> None:
    tensors = {**pair(f"lora_unet_{ATTENTION}"), "bundle_emb.a": torch.ones(1), "bundle_emb.b": torch.ones(1)}
    source = write(tmp_path / "source.safetensors", tensors)
    done = call("convert", source, tmp_path / "out", "--to", "diffusers")
    assert done.status == 2 and "'bundle_emb.a' belongs to nothing known" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["source.safetensors"]
