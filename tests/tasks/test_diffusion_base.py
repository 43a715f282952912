"""Loading text-to-image bases: folders, single files, short names, and what is refused in words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.imaging import tiny
from tests.tasks.single_files import write_single_file

from loraloom.errors import BaseModelError
from loraloom.tasks.diffusion import Diffusion, load_diffusion
from loraloom.tasks.diffusion.places import shipped_bases
from loraloom.tasks.diffusion.single_file import predicts_v


def same(one: Diffusion, other: Diffusion) -> bool:
    """Whether all weights are the same, by name."""
    found = [{**diffusion.parts.state_dict(), **diffusion.vae.state_dict()} for diffusion in (one, other)]
    return found[0].keys() == found[1].keys() and all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_folder(kind: str, tmp_path: Path) -> None:
    expected = tiny.diffusion(kind)
    diffusion = load_diffusion(str(tiny.saved(kind, tmp_path)))
    assert same(diffusion, expected)
    assert (diffusion.kind, diffusion.source) == (kind, "folder")
    assert diffusion.prediction_type == ("v_prediction" if kind == "sd2" else "epsilon")
    assert (diffusion.latent_factor, diffusion.size_step, diffusion.latent_channels) == (8, 8, 4)
    assert diffusion.default_size == (64, 64)
    assert list(diffusion.parts) == ["unet", "text_encoder", *(["text_encoder_2"] if kind == "sdxl" else [])]
    assert list(diffusion.tokenizers) == list(diffusion.text_encoders)
    assert not any(parameter.requires_grad for parameter in diffusion.parts.parameters())
    assert not diffusion.denoiser.training and not diffusion.vae.training
    assert len(diffusion.fingerprint) == 64 and expected.fingerprint == ""


def test_dtypes_and_the_fp16_variant(tmp_path: Path) -> None:
    folder = tiny.saved("sd1", tmp_path)
    assert load_diffusion(str(folder), dtype=torch.bfloat16).dtype == torch.bfloat16
    for part in ("unet", "text_encoder", "vae"):
        (file,) = (folder / part).glob("*.safetensors")
        save_file({key: value.half() for key, value in load_file(file).items()}, file.with_suffix(".fp16.safetensors"))
        file.unlink()
    assert load_diffusion(str(folder)).dtype == torch.float32
    assert load_diffusion(str(folder), dtype=torch.float16).vae.dtype == torch.float16


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_single_file_without_network(kind: str, tmp_path: Path) -> None:
    pipeline = write_single_file(kind, tmp_path / "model.safetensors")
    diffusion = load_diffusion(str(tmp_path / "model.safetensors"))
    assert same(diffusion, Diffusion.of(pipeline))
    assert (diffusion.kind, diffusion.source, diffusion.folder) == (kind, "file", None)
    own, other = (dict(one.unet.config) for one in (pipeline, diffusion.pipeline))
    for key in ("cross_attention_dim", "use_linear_projection", "addition_time_embed_dim", "down_block_types"):
        assert own[key] == other[key] or tuple(own[key]) == tuple(other[key])
    recipe: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent", "width": 64, "height": 64}
    pictures = []
    for one in (pipeline, diffusion.pipeline):
        one.set_progress_bar_config(disable=True)
        one.scheduler = type(pipeline.scheduler).from_config(diffusion.scheduler_config)
        pictures.append(one("a red house", generator=torch.Generator().manual_seed(0), **recipe).images)
    torch.testing.assert_close(pictures[0], pictures[1], rtol=1e-4, atol=1e-4)


def test_marks_of_v_prediction_in_a_single_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_single_file("sdxl", file, {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)})
    config = load_diffusion(str(file)).scheduler_config
    assert (config["prediction_type"], config["rescale_betas_zero_snr"]) == ("v_prediction", True)


class _Model(torch.nn.Module):
    """A model of pure noise: predicts it, or v."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = torch.nn.Parameter(torch.tensor(sign))
        self.config = type("Config", (), {"cross_attention_dim": 8})

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        return (self.sign * 2 * x,)


def test_v_prediction_of_sd2_is_found_by_trying() -> None:
    assert predicts_v(_Model(-1.0)) and not predicts_v(_Model(0.5))


def test_a_vocabulary_must_be_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_single_file("sd1", tmp_path / "model.safetensors")
    shutil.rmtree(tmp_path / "tokenizer")
    with pytest.raises(BaseModelError, match=r"holds no vocabulary .* put vocab\.json and merges\.txt of openai/clip"):
        load_diffusion(str(tmp_path / "model.safetensors"))


def _single(keys: dict[str, tuple[int, ...]]) -> Any:
    def write(folder: Path) -> Path:
        save_file({key: torch.zeros(shape) for key, shape in keys.items()}, folder / "x.safetensors")
        return folder / "x.safetensors"

    return write


def _broken(change: Any) -> Any:
    def write(folder: Path) -> Path:
        place = tiny.saved("sd1", folder)
        change(place)
        return place

    return write


def _cut(place: Path) -> None:
    (file,) = (place / "unet").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])


def _pickle(place: Path) -> None:
    (file,) = (place / "vae").glob("*.safetensors")
    file.rename(place / "vae" / "diffusion_pytorch_model.bin")


def _class(place: Path) -> None:
    index = json.loads((place / "model_index.json").read_text())
    (place / "model_index.json").write_text(json.dumps({**index, "_class_name": "AudioLDMPipeline"}))


def _adapter(folder: Path) -> Path:
    (folder / "adapter_config.json").write_text("{}")
    return folder


def _text(name: str) -> Any:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(b"hello, there")
        return folder / name

    return write


UNET = "model.diffusion_model."
BAD: dict[str, tuple[Any, str]] = {
    "nothing": (lambda folder: folder / "gone", "there is no folder, file or short name"),
    "no file": (lambda folder: folder / "gone.safetensors", "there is no file"),
    "empty folder": (lambda folder: folder, "it has no model_index.json"),
    "adapter folder": (_adapter, "is an adapter"),
    "checkpoint pickle": (_text("model.ckpt"), "is a pickle, which can run code"),
    "no safetensors": (_text("model.safetensors"), "not a whole safetensors file"),
    "cut": (_broken(_cut), "not a whole safetensors file"),
    "pickle inside": (_broken(_pickle), "only as a pickle"),
    "other pipeline": (_broken(_class), "AudioLDMPipeline; one of StableDiffusionPipeline"),
    "no weights": (_broken(lambda place: shutil.rmtree(place / "vae")), "holds no weights"),
    "no json": (_broken(lambda place: (place / "model_index.json").write_text("{")), "cannot be read as JSON"),
    "lora file": (_single({"lora_unet_x.lora_up.weight": (2, 2)}), "is an adapter"),
    "embedding": (_single({"emb_params": (2, 2)}), "is an embedding"),
    "other tensors": (_single({"x": (2, 2)}), "is no checkpoint of Stable Diffusion"),
    "inpainting": (_single({f"{UNET}input_blocks.0.0.weight": (2, 9, 3, 3)}), "takes 9 channels"),
    "unet alone": (_single({f"{UNET}input_blocks.0.0.weight": (2, 4, 3, 3)}), "lacks the text encoder .* autoencoder"),
    "half a unet": (
        _single(
            {
                f"{UNET}input_blocks.0.0.weight": (2, 4, 3, 3),
                "cond_stage_model.transformer.text_model.x": (1,),
                "first_stage_model.x": (1,),
            }
        ),
        "is not whole",
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_what_is_no_base_is_refused_in_words(case: str, tmp_path: Path) -> None:
    write, told = BAD[case]
    with pytest.raises(BaseModelError, match=told):
        load_diffusion(str(write(tmp_path)))


def test_names_that_are_nowhere() -> None:
    with pytest.raises(BaseModelError, match="cache .* does not hold it, the Hub was not asked because HF_HUB_OFFLINE"):
        load_diffusion("someone/some-model")
    if "scenes" in shipped_bases():
        with pytest.raises(BaseModelError, match="did you mean 'scenes'"):
            load_diffusion("scene")


def test_the_shipped_base() -> None:
    if "scenes" not in shipped_bases():
        pytest.skip("the small base is not made yet")
    diffusion = load_diffusion("scenes")
    assert (diffusion.name, diffusion.source) == ("scenes", "package")
    assert diffusion.default_size == (64, 64)
    assert sum(file.stat().st_size for file in diffusion.weights) < 12e6


def test_pipelines_of_other_kinds_are_refused() -> None:
    with pytest.raises(BaseModelError, match="its pipeline is a object"):
        Diffusion.of(object())
