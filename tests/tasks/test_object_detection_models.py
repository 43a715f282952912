"""Every family of detectors, on tiny models of the real classes: attach, step, save, load, compare with PEFT."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tasks.detectors import FAMILIES, make_base, write_scenes
from torch import Tensor, nn

from loraloom.adapters import AdapterSet, attach
from loraloom.data.config import DataConfig
from loraloom.errors import BaseModelError
from loraloom.formats import load_adapter, save_adapter
from loraloom.tasks.base import BaseModel
from loraloom.tasks.object_detection import ObjectDetection, ObjectDetectionOptions

SIZE = 64


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("detectors")
    return {family: make_base(root / family, family) for family in FAMILIES}


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(scenes: Path, base: Path | str, **settings: Any) -> tuple[ObjectDetection, BaseModel, list[Any]]:
    """A task that has read the scenes, its base, and the features of all scenes."""
    options = ObjectDetectionOptions(image_size=SIZE, flip=False, zoom=1.0, colour=0.0)
    task = ObjectDetection(options)
    source = str(scenes / "annotations_train.json")
    splits = task.read(DataConfig(train=source, eval=source), seed=0)
    loaded = task.load(str(base), **settings)
    return task, loaded, task.encode(splits.train, loaded).features


def adapted(base: BaseModel, **settings: Any) -> AdapterSet:
    return attach(base.model, rank=2, targets=base.targets, heads=base.heads, **settings)


def outputs(task: ObjectDetection, base: BaseModel, features: list[Any]) -> Tensor:
    base.model.eval()
    return task.outputs(base.model, task.collate(features, base))


def randomise(adapters: AdapterSet) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in adapters.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1


def test_new_heads_are_found_and_drawn_by_the_seed(family: str, scenes: Path, bases: dict[str, Path]) -> None:
    task, base, features = made(scenes, bases[family], seed=1)
    assert base.heads == FAMILIES[family].heads
    assert "new head" in base.notes[0] and "4 other labels" in base.notes[0]
    found = task.predict(base.model, task.collate(features, base), base)
    assert len(found) == len(features) and set(found[0].labels) <= {0, 1}
    assert torch.equal(outputs(task, base, features), outputs(*made(scenes, bases[family], seed=1)[:2], features)), (
        "the same seed draws the same head"
    )
    assert not torch.equal(outputs(task, base, features), outputs(*made(scenes, bases[family], seed=2)[:2], features))


def test_the_mask_is_given_to_those_who_take_it(family: str, scenes: Path, bases: dict[str, Path]) -> None:
    task, base, features = made(scenes, bases[family])
    batch = task.collate(features, base)
    assert ("pixel_mask" in batch) == FAMILIES[family].masked
    logits = base.model(batch["pixel_values"]).logits
    assert (logits.shape[-1] == len(task.names) + 1) == FAMILIES[family].softmax


def test_convolutions_and_cross_attention_are_adapted(family: str, scenes: Path, bases: dict[str, Path]) -> None:
    _, base, _ = made(scenes, bases[family])
    paths = {site.path for site in adapted(base).plan("default").sites}
    wanted = {FAMILIES[family].convolution, FAMILIES[family].crossing} - {None}
    assert wanted <= paths
    assert not any(path.startswith(head) for path in paths for head in base.heads)


def test_the_loss_falls_on_one_batch_and_only_the_adapter_moves(
    family: str, scenes: Path, bases: dict[str, Path]
) -> None:
    task, base, features = made(scenes, bases[family])
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    adapters = adapted(base)
    base.model.eval()
    adapters.training_mode(True)
    optimiser = torch.optim.Adam(adapters.parameters(), lr=2e-2)
    losses = []
    for step in range(30):
        torch.manual_seed(step % 2)  # denoising queries are drawn
        loss, boxes = task.loss(base.model, task.collate(features, base, training=True))
        assert boxes == 6 and loss.dtype == torch.float32
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()) / boxes)
    assert min(losses[-4:]) < 0.9 * losses[0], losses
    assert all(parameter.grad is not None for parameter in adapters.parameters()), "a trained parameter stays idle"
    adapters.detach()
    after = base.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items()), "the base has changed"


def test_saved_and_loaded_gives_the_same(family: str, scenes: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    task, base, features = made(scenes, bases[family])
    plain = outputs(task, base, features)
    adapters = adapted(base)
    randomise(adapters)
    expected = outputs(task, base, features)
    assert (plain - expected).abs().max() > 1e-3
    save_adapter(adapters, "default", tmp_path / "adapter")
    again = ObjectDetection(task.options)
    again.restore(task.state())
    fresh = again.load(str(bases[family]), seed=5)  # another head, which the adapter's replaces
    load_adapter(fresh.model, tmp_path / "adapter")
    assert torch.equal(outputs(again, fresh, features), expected)


def test_peft_reads_the_file_as_we_do(family: str, scenes: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed: nothing to compare with")
    if family.startswith("deformable_detr"):
        pytest.skip("PEFT does not take it: it asks models with tied weights for their word embeddings")
    task, base, features = made(scenes, bases[family])
    adapters = adapted(base)
    randomise(adapters)
    save_adapter(adapters, "default", tmp_path)
    expected = outputs(task, base, features)
    fresh = task.load(str(bases[family]), seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(fresh.model, tmp_path).eval()
    found = task.outputs(theirs, task.collate(features, fresh))
    assert (found - expected).abs().max() <= 2e-4 * expected.abs().max()


def test_a_bfloat16_base_learns_with_a_float32_loss(family: str, scenes: Path, bases: dict[str, Path]) -> None:
    task, exact, features = made(scenes, bases[family])
    _, base, _ = made(scenes, bases[family], dtype=torch.bfloat16)
    exact_config: Any = exact.model.config
    if hasattr(exact_config, "num_denoising"):
        exact_config.num_denoising = 0  # its noisy copies are float32, and left out over bfloat16
        assert any("noisy copies" in note for note in base.notes)
    losses = []
    for one in (exact, base):
        adapters = adapted(one)
        adapters.training_mode(True)
        torch.manual_seed(0)
        loss, boxes = task.loss(one.model, task.collate(features, one, training=True))
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in adapters.parameters() if p.grad is not None)
        losses.append(float(loss.detach()) / boxes)
        assert task.predict(one.model, task.collate(features, one), one)[0].scores
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_a_micro_batch_is_a_part_of_the_whole(scenes: Path, bases: dict[str, Path]) -> None:
    """Where scores are sigmoids the loss is a sum over boxes, so that halves add up."""
    task, base, features = made(scenes, bases["deformable_detr"])
    whole, boxes = task.loss(base.model, task.collate(features[:3], base))
    parts = [task.loss(base.model, task.collate(part, base)) for part in (features[:1], features[1:3])]
    assert sum(count for _, count in parts) == boxes
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item(), rel=1e-4)


def test_pictures_without_boxes_teach_that_there_is_nothing(family: str, scenes: Path, bases: dict[str, Path]) -> None:
    task, base, features = made(scenes, bases[family])
    empty = [feature for feature in features if not feature.inputs["boxes"]]
    loss, boxes = task.loss(base.model, task.collate(empty, base, training=True))
    assert boxes == 1 and torch.isfinite(loss)


def test_batches_do_not_change_what_is_found(family: str, scenes: Path, bases: dict[str, Path]) -> None:
    task, base, features = made(scenes, bases[family])
    together = outputs(task, base, features)
    alone = torch.cat([outputs(task, base, [feature]) for feature in features])
    assert (together - alone).abs().max() < 1e-4


def test_a_head_for_the_same_labels_is_kept_and_put_in_order(scenes: Path, tmp_path: Path) -> None:
    for family in ("yolos", "rt_detr"):
        folder = make_base(tmp_path / family, family, labels=("red", "green"))
        task, base, features = made(scenes, folder)
        assert "was kept" in base.notes[0] and task.names == ("green", "red")
        config = base.model.config
        assert (config.id2label, config.label2id) == ({0: "green", 1: "red"}, {"green": 0, "red": 1})
        batch = task.collate(features, base)
        ours = base.model(batch["pixel_values"]).logits
        theirs = type(base.model).from_pretrained(folder).eval()(batch["pixel_values"]).logits
        assert torch.allclose(ours[..., [1, 0]], theirs[..., :2], atol=1e-5)


def test_a_configuration_alone_is_a_base_with_drawn_weights(scenes: Path, tmp_path: Path) -> None:
    FAMILIES["yolos"].config().save_pretrained(tmp_path)
    task, base, features = made(scenes, tmp_path, from_config=True)
    assert base.source == "config" and base.heads == ()
    base.model.train()
    loss, _ = task.loss(base.model, task.collate(features, base, training=True))
    assert torch.isfinite(loss)


def test_a_trained_base_is_a_folder_of_its_own(scenes: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    task, base, features = made(scenes, bases["rt_detr"])
    base.model.save_pretrained(tmp_path)
    base.processor.save_pretrained(tmp_path)
    again = ObjectDetection()
    again.restore({**task.state(), "image_size": None})
    loaded = again.load(str(tmp_path))
    assert loaded.processor.canvas == base.processor.canvas == (SIZE, SIZE)
    assert torch.equal(outputs(again, loaded, features), outputs(task, base, features))


def test_what_is_no_detector_is_refused(scenes: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)).save_pretrained(
        tmp_path / "bert"
    )
    with pytest.raises(BaseModelError, match="cannot be an object detection model"):
        made(scenes, tmp_path / "bert")
    shutil.copytree(bases["detr"], tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(config.read_text("utf-8").replace('"d_model": 16', '"d_model": 32'), "utf-8")
    with pytest.raises(BaseModelError, match="lacks or misshapes"):
        made(scenes, tmp_path / "other")


def test_denoising_leaves_every_module_in_its_mode(scenes: Path, bases: dict[str, Path]) -> None:
    task, base, features = made(scenes, bases["rt_detr"])
    base.model.eval()
    embedding: Any = base.model.get_submodule("model.denoising_class_embed")
    called: list[nn.Module] = []
    embedding.register_forward_hook(lambda module, *_: called.append(module))
    task.loss(base.model, task.collate(features, base, training=True))
    assert called, "the frozen base learns from no noisy copies"
    assert not any(module.training for module in base.model.modules())


def test_boxes_that_are_no_numbers_give_a_loss_that_is_none(family: str, scenes: Path, bases: dict[str, Path]) -> None:
    task, base, features = made(scenes, bases[family])
    with torch.no_grad():
        for parameter in base.model.parameters():
            parameter.fill_(torch.nan)
    loss, _ = task.loss(base.model, task.collate(features[:2], base))
    assert loss.isnan()
    loss.backward()
