"""Adapters from two diffusers checkpoints: a U-Net, whole pipelines, other programs' files; grouped convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.compose.extract_models import change, change_layers
from tests.formats.pipelines import PIPELINES, assert_differs, assert_same, outputs, parts_of, sd1_unet
from torch import Tensor

from loraloom.compose.extract.extracting import ExtractJob, ExtractReport, extract
from loraloom.errors import ConfigError, FormatError
from loraloom.formats import describe_adapter, load_any, read_any
from loraloom.formats.updates import updates_of

RANK = 400


def run(tuned: Path, base: Path, out: Path, **settings: Any) -> ExtractReport:
    return extract(ExtractJob(str(tuned), str(base), out, **{"rank": RANK, **settings}))


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def pipelines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """(family, folder of base and tuned, outputs of the tuned parts)."""
    kind, folder = str(request.param), tmp_path_factory.mktemp(request.param)
    PIPELINES[kind]().save_pretrained(folder / "base")
    tuned = PIPELINES[kind]()
    for number, part in enumerate((tuned.unet, tuned.text_encoder)):
        change_layers(part, rank=2 + number, size=0.3)
    tuned.save_pretrained(folder / "tuned")
    return kind, folder, outputs(parts_of(tuned).eval())


@pytest.mark.parametrize("to", ["peft", "kohya", "diffusers"])
def test_a_pipeline_in_every_programs_words(to: str, pipelines: tuple[str, Path, Any], tmp_path: Path) -> None:
    kind, folder, wanted = pipelines
    out = tmp_path / ("style" if to == "peft" else "style.safetensors")
    report = run(folder / "tuned", folder / "base", out, rank=3, to=to, kind=kind if to == "kohya" else None)
    assert report.carried > 1 - 1e-9 and not report.lost
    assert {site.path.split(".")[0] for site in report.sites} == {"unet", "text_encoder"}
    assert {"linear", "conv2d"} == {site.kind for site in report.sites}
    assert {"unet.conv_in", "unet.conv_out"} <= {site.path for site in report.sites}
    assert describe_adapter(out).format == to
    model = parts_of(PIPELINES[kind]()).eval()
    before = outputs(model)
    load_any(model, out)
    found = outputs(model)
    assert_differs(
        {name: found[name] for name in ("unet", "text_encoder")},
        {name: before[name] for name in ("unet", "text_encoder")},
    )
    assert_same(found, wanted, 2e-5)


def test_diffusers_loads_it(pipelines: tuple[str, Path, Any], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    kind, folder, wanted = pipelines
    run(folder / "tuned", folder / "base", tmp_path / "out", rank=3, to="diffusers")
    pipeline = PIPELINES[kind]()
    pipeline.load_lora_weights(tmp_path / "out")
    assert_same(outputs(parts_of(pipeline).eval()), wanted, 2e-5)


def test_one_part_of_a_pipeline(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sd1_unet().save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    tuned = sd1_unet()
    changes = change_layers(tuned)
    change(tuned.conv_norm_out.weight)
    change(tuned.conv_in.bias)
    tuned.save_pretrained(tmp_path / "tuned")
    report = run(tmp_path / "tuned", tmp_path / "base", tmp_path / "out", rank=3, keep_others=True)
    assert {site.path for site in report.sites} == set(changes)
    assert not report.lost and {other.path for other in report.others} == {"conv_norm_out.weight", "conv_in.bias"}
    torch.manual_seed(0)
    model = sd1_unet().eval()
    load_any(model, tmp_path / "out")
    inputs = (torch.ones(1, 4, 8, 8), 3, torch.ones(1, 5, 16))
    with torch.no_grad():
        found, wanted = (one(*inputs).sample for one in (model, tuned.eval()))
    assert float((found - wanted).abs().max() / wanted.abs().max()) <= 1e-5
    run(tmp_path / "tuned", tmp_path / "base", tmp_path / "k.safetensors", rank=3, to="kohya", kind="sd1")
    assert all(path.startswith("unet.") for path in updates_of(read_any(tmp_path / "k.safetensors"))[0])


def test_pipelines_have_no_word_for_what_is_carried_whole(pipelines: tuple[str, Path, Any], tmp_path: Path) -> None:
    _, folder, _ = pipelines
    with pytest.raises(ConfigError, match="--keep-others needs one model"):
        run(folder / "tuned", folder / "base", tmp_path / "out", keep_others=True)
    with pytest.raises(FormatError, match="is a pipeline and .* one model"):
        run(folder / "tuned", folder / "base" / "unet", tmp_path / "out")


# -- grouped convolutions -----------------------------------------------------------------------------


def groups_of_four(tmp_path: Path) -> tuple[Path, Path, Tensor]:
    """A model with a convolution of four groups, as MobileNet's, and the change of its weight."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    torch.manual_seed(0)
    config = MobileNetV2Config(depth_multiplier=0.1, min_depth=8, image_size=32, num_labels=3)
    model = MobileNetV2ForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "base")
    module = next(m for m in model.modules() if getattr(m, "groups", 1) > 1)
    with torch.no_grad():
        delta = torch.randn(module.weight.shape) * 0.1
        module.weight += delta
    model.save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned", tmp_path / "base", delta


def test_grouped_convolutions(tmp_path: Path) -> None:
    tuned, base, delta = groups_of_four(tmp_path)
    report = run(tuned, base, tmp_path / "out", rank=400)
    (site,) = report.sites
    assert site.rank == delta.shape[0] and site.left_out <= 1e-6
    with pytest.raises(ConfigError, match="no layer that could carry an update differs"):
        run(tuned, base, tmp_path / "low", rank=1)
    whole = run(tuned, base, tmp_path / "whole", rank=1, keep_others=True)
    assert whole.others[0].kept and "groups, which takes no lower rank" in whole.others[0].reason


def test_batch_statistics_are_lost_and_told(tmp_path: Path) -> None:
    tensors = {"bn.weight": torch.ones(3), "bn.running_mean": torch.zeros(3), "fc.weight": torch.ones(3, 3)}
    save_file(tensors, tmp_path / "base.safetensors")
    save_file({key: tensor + 1 for key, tensor in tensors.items()}, tmp_path / "tuned.safetensors")
    report = run(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors", tmp_path / "out")
    assert {other.path for other in report.lost} == {"bn.weight", "bn.running_mean"}
