"""Every family on a tiny random model: heads, attach, step, loss falls, save, load, same output, PEFT's reading."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from loraloom.adapters import AdapterSpec, attach
from loraloom.data.config import DataConfig
from loraloom.errors import BaseModelError
from loraloom.formats import load_adapter, save_adapter
from loraloom.tasks.base import BaseModel, Batch
from loraloom.tasks.image_classification import (
    ImageClassification,
    ImageClassificationOptions,
    convolution_targets,
)

from .picture_models import FAMILIES, LABELS, SIZE, draw_folder, make_picture_base


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of every family, to be read only."""
    root = tmp_path_factory.mktemp("bases")
    return {family: make_picture_base(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("pictures") / "train", 4)


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def loaded(folder: Path, **options: Any) -> tuple[ImageClassification, BaseModel]:
    task = ImageClassification(ImageClassificationOptions(**{"image_size": SIZE, **options}))
    task.restore({"labels": list(LABELS)})
    return task, task.load(str(folder), seed=5)


def one_batch(task: ImageClassification, base: BaseModel, folder: Path) -> Batch:
    examples = task.read_more(str(folder), DataConfig(train="x"), labelled=True)
    return task.collate(task.encode(examples, base).features, base)


def train(task: ImageClassification, model: nn.Module, batch: Batch, steps: int, rate: float) -> list[float]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    losses = []
    for _ in range(steps):
        loss, count = task.loss(model, batch)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss) / count)
    return losses


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.named_buffers()}


def test_new_head_is_found(family: str, bases: dict[str, Path]) -> None:
    _, base = loaded(bases[family])
    assert base.heads == FAMILIES[family].heads
    assert "new head" in base.notes[0] and "3 labels" in base.notes[0]
    assert base.model.config.id2label == dict(enumerate(LABELS))
    assert type(base.model).__name__ == FAMILIES[family].classifier
    saved = load_file(bases[family] / "model.safetensors")
    kept = {name: tensor for name, tensor in base.model.state_dict().items() if name in saved}
    kept = {name: tensor for name, tensor in kept.items() if not name.startswith(base.heads)}
    assert kept and all(torch.equal(tensor, saved[name]) for name, tensor in kept.items())


def test_fitting_head_is_kept_in_our_order(family: str, tmp_path: Path) -> None:
    folder = make_picture_base(tmp_path, family, labels=LABELS[::-1])
    _, base = loaded(folder)
    assert "was kept" in base.notes[0]
    name = f"{base.heads[0]}.1.weight" if family == "resnet" else f"{base.heads[0]}.weight"
    assert torch.equal(base.model.state_dict()[name], load_file(folder / "model.safetensors")[name].flip(0))


def test_adapter_learns_one_batch_and_comes_back(
    family: str, bases: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    task, base = loaded(bases[family])
    batch = one_batch(task, base, pictures)
    before = task.outputs(base.model, batch)
    adapters = attach(base.model, AdapterSpec.of(targets=FAMILIES[family].targets, heads=base.heads, rank=4))
    torch.testing.assert_close(task.outputs(base.model, batch), before)
    statistics = buffers(base.model)
    losses = train(task, base.model, batch, 25, 2e-2)
    assert losses[-1] < 0.6 * losses[0], losses
    for name, tensor in buffers(base.model).items():
        assert torch.equal(tensor, statistics[name]), f"{name} moved"
    trained = task.outputs(base.model, batch)
    save_adapter(adapters, "default", tmp_path / "adapter", base_name=base.name, task_type=None)
    _, fresh = loaded(bases[family])
    load_adapter(fresh.model, tmp_path / "adapter", name="default")
    assert torch.equal(task.outputs(fresh.model.eval(), batch), trained)


def test_peft_reads_the_adapter(family: str, bases: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed: nothing to compare with")
    task, base = loaded(bases[family])
    batch = one_batch(task, base, pictures)
    adapters = attach(base.model, AdapterSpec.of(targets=FAMILIES[family].targets, heads=base.heads, rank=4))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapters.parameters("default"):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    ours = task.outputs(base.model, batch)
    save_adapter(adapters, "default", tmp_path / "adapter", base_name=base.name, task_type=None)
    _, fresh = loaded(bases[family])
    untouched = task.outputs(fresh.model, batch)
    theirs = task.outputs(peft.PeftModel.from_pretrained(fresh.model, tmp_path / "adapter").eval(), batch)
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(untouched, ours, atol=1e-2)


def test_whole_model_from_a_configuration_is_a_base(family: str, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    settings = FAMILIES[family].config().to_dict() | {"architectures": [FAMILIES[family].classifier]}
    (tmp_path / "bare" / "config.json").write_text(json.dumps(settings, default=str), "utf-8")
    task = ImageClassification(ImageClassificationOptions(image_size=SIZE))
    task.restore({"labels": list(LABELS)})
    base = task.load(str(tmp_path / "bare"), seed=5, from_config=True)
    again = task.load(str(tmp_path / "bare"), seed=5, from_config=True)
    assert base.source == "config" and base.heads == ()
    assert all(torch.equal(a, b) for a, b in zip(base.model.parameters(), again.model.parameters(), strict=True))
    batch = one_batch(task, base, pictures)
    base.model.requires_grad_(True)
    losses = train(task, base.model, batch, 12, 3e-3)
    assert losses[-1] < losses[0]
    base.model.save_pretrained(tmp_path / "run")
    base.processor.save_pretrained(tmp_path / "run")
    reader = ImageClassification()
    reader.restore({"labels": list(LABELS)})
    kept = reader.load(str(tmp_path / "run"))
    assert kept.processor == base.processor
    assert "was kept" in kept.notes[0]
    batch_again = one_batch(reader, kept, pictures)
    assert torch.equal(reader.outputs(kept.model, batch_again), task.outputs(base.model.eval(), batch))


def test_what_is_proposed_for_convolutional_models(family: str, bases: dict[str, Path]) -> None:
    _, base = loaded(bases[family])
    assert convolution_targets(base.model, base.heads) == (("convolution",) if family == "resnet" else ())
    assert base.targets == (("convolution",) if family == "resnet" else "all-linear")


@pytest.mark.parametrize("name", ["vit", "deit", "swin"])
def test_other_sizes_interpolate_the_positions(name: str, bases: dict[str, Path], pictures: Path) -> None:
    task, base = loaded(bases[name], image_size=48)
    assert any("interpolated" in note for note in base.notes)
    assert task.outputs(base.model, one_batch(task, base, pictures)).shape == (12, 3)


def test_convolutional_models_take_any_size(bases: dict[str, Path], pictures: Path) -> None:
    task, base = loaded(bases["resnet"], image_size=[24, 40])
    batch = one_batch(task, base, pictures)
    assert batch["pixel_values"].shape == (12, 3, 24, 40)
    assert task.outputs(base.model, batch).shape == (12, 3)


def test_a_model_of_text_is_refused(tmp_path: Path, bases: dict[str, Path]) -> None:
    folder = Path(shutil.copytree(bases["vit"], tmp_path / "base"))
    (folder / "config.json").write_text('{"model_type": "bert"}', "utf-8")
    with pytest.raises(BaseModelError, match="image classification model cannot be loaded"):
        loaded(folder)


@pytest.fixture(autouse=True)
def _no_random_state_left() -> Iterator[None]:
    torch.manual_seed(0)
    yield
