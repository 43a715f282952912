"""Whole runs over tiny bases: files, resuming in the same bytes, answers, full training, random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from loraloom.data.config import DataConfig
from loraloom.formats import describe_adapter
from loraloom.tasks import create_task
from loraloom.tasks.base import AnswerOptions, Task
from loraloom.tasks.text_to_image import TextToImage
from loraloom.training.config import TrainConfig
from loraloom.training.restore import open_run
from loraloom.training.run import train
from loraloom.training.use import evaluate, predict

from .painters import draw_folder, save_base


class Place:
    """A base, pictures and a folder for tensors."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = save_base("sd1", root)
        self.pictures = draw_folder(root / "pictures", 8, sizes=((64, 64), (100, 64)))

    def config(self, name: str, **settings: Any) -> TrainConfig:
        options = {"cache": str(self.root / "cache"), "sample_steps": 1, **settings.pop("options", {})}
        base = {} if "base_config" in settings else {"base": str(self.base)}
        data = DataConfig(train=str(self.pictures), eval_fraction=0.25)
        given = {"task": "text-to-image", "epochs": 1, "batch_size": 2, "precision": "fp32", "device": "cpu"}
        given |= {"adapter": {"rank": 2}, "out": str(self.root / name), "data": data, "options": options}
        return TrainConfig.model_validate({**given, **base, **settings})


LORA: dict[str, Any] = {
    "epochs": 2,
    "checkpoint_every": 2,
    "options": {"flip": True, "sample_prompts": ["a red house"], "also": "kohya", "noise_offset": 0.05},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def out(place: Place) -> Path:
    """A finished run of six steps."""
    run(place.config("lora", **LORA))
    return place.root / "lora"


def run(config: TrainConfig, task: Task | None = None, **more: Any) -> Any:
    return train(config, task or create_task(config.task, **config.task_options), **more)


def test_a_run_leaves_every_format_and_its_samples(out: Path) -> None:
    names = {path.name for path in out.iterdir()}
    weights = {"adapter_model.safetensors", "pytorch_lora_weights.safetensors", "lora.safetensors"}
    assert weights | {"adapter_config.json", "run.json", "README.md", "curves.png", "samples"} <= names
    assert sorted(path.name for path in (out / "samples").iterdir()) == [
        "step-000000-1.png",
        "step-000003-1.png",
        "step-000006-1.png",
    ]
    record = json.loads((out / "run.json").read_text())
    assert record["metric"] == "loss" and record["data"]["evaluation_examples"] == 2
    assert record["metrics"]["trained"]["loss"] < record["metrics"]["base"]["loss"]
    assert record["result_bytes"] == (out / "adapter_model.safetensors").stat().st_size
    for name in weights - {"adapter_model.safetensors"}:
        assert describe_adapter(out / name).format in ("diffusers", "kohya")


def test_a_run_that_was_stopped_ends_in_the_same_bytes(place: Place, out: Path) -> None:
    config = place.config("stopped", **{**LORA, "options": {**LORA["options"], "cache": str(place.root / "second")}})

    class Stop(TextToImage):
        calls = 0

        def loss(self, *arguments: Any) -> Any:
            Stop.calls += 1
            if Stop.calls > 5:
                raise KeyboardInterrupt
            return super().loss(*arguments)

    with pytest.raises(KeyboardInterrupt):
        run(config, Stop(create_task(config.task, **config.task_options).options))  # type: ignore[attr-defined]
    run(config, resume=True)
    stopped = place.root / "stopped"
    same = [
        "adapter_model.safetensors",
        "pytorch_lora_weights.safetensors",
        *(f"samples/step-00000{n}-1.png" for n in (0, 3, 6)),
    ]
    for name in same:
        assert (stopped / name).read_bytes() == (out / name).read_bytes(), name


def test_a_finished_run_answers_and_is_scored_again(place: Place, out: Path, tmp_path: Path) -> None:
    opened = open_run(out, create_task, device="cpu")
    [told] = predict(opened, texts=["a red house"], options=AnswerOptions(seed=3), save=tmp_path / "made")
    assert told.result["seed"] == 3 and told.result["size"] == "64x64"
    with Image.open(told.result["file"]) as picture:
        assert picture.size == (64, 64)
        assert picture.text["parameters"].startswith("a red house\nSteps: 1, CFG scale: 5, Seed: 3, Size: 64x64")
    [again] = predict(opened, texts=["a red house"], options=AnswerOptions(seed=3), save=tmp_path / "again")
    assert Path(again.result["file"]).read_bytes() == Path(told.result["file"]).read_bytes()
    with opened.adapters.disable():  # type: ignore[union-attr]
        predict(opened, texts=["a red house"], options=AnswerOptions(seed=3), save=tmp_path / "base")
    assert Image.open(tmp_path / "base" / "0001.png").tobytes() != Image.open(told.result["file"]).tobytes()
    (tmp_path / "prompts.csv").write_text("text\na red house\na blue boat\n")
    assert len(predict(opened, source=str(tmp_path / "prompts.csv"))) == 2

    scores = evaluate(opened, str(place.pictures))
    assert scores["n"] == 8 and scores["loss_low"] < scores["loss"] < scores["loss_high"]
    assert scores == evaluate(opened, str(place.pictures))
    assert scores["loss"] < evaluate(opened, str(place.pictures), without_adapter=True)["loss"]


def test_full_training_leaves_a_base(place: Place) -> None:
    run(place.config("full", method="full", learning_rate=1e-3))
    full = place.root / "full"
    assert (full / "model_index.json").is_file() and not (full / "model.safetensors").exists()
    opened = open_run(full, create_task, device="cpu")
    assert opened.adapters is None
    trained = json.loads((full / "run.json").read_text())["metrics"]["trained"]["loss"]
    loaded = create_task("text-to-image", cache=str(place.root / "cache")).load(str(full))
    before = create_task("text-to-image", cache=str(place.root / "cache")).load(str(place.base))
    weights = dict(before.model.named_parameters())
    moved = {name.split(".")[0] for name, p in loaded.model.named_parameters() if not torch.equal(p, weights[name])}
    assert moved == {"unet"} and set(before.model) == {"unet"}
    assert loaded.fingerprint != before.fingerprint and trained > 0
    parts = ("vae", "text_encoder")
    for part in parts:
        own, other = (getattr(b.processor.diffusion.pipeline, part).state_dict() for b in (loaded, before))
        assert all(torch.equal(own[name], other[name]) for name in own)


def test_a_base_may_begin_as_a_configuration(place: Place) -> None:
    folder = place.root / "configuration"
    shutil.copytree(place.base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    run(place.config("drawn", base_config=str(folder), method="full", learning_rate=1e-3, max_steps=2, seed=5))
    made = create_task("text-to-image", cache=str(place.root / "cache"))
    one, other, third = (made.load(str(folder), from_config=True, seed=seed) for seed in (5, 5, 6))
    weights = [next(iter(base.model.parameters())) for base in (one, other, third)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert one.fingerprint == other.fingerprint != third.fingerprint
    assert made.load(str(place.root / "drawn")).source == "folder"


def test_a_learnt_word_comes_back_with_its_run(place: Place) -> None:
    options = {"train_embedding": "<mine>", "instance_prompt": "a <mine> house", "embedding_init": "cat"}
    run(place.config("word", options=options, learning_rate=1e-2))
    opened = open_run(place.root / "word", create_task, device="cpu")
    bench = opened.base.processor
    learnt = bench.texts.conditions("a <mine> tree")["hidden"]
    assert not torch.allclose(learnt, bench.texts.conditions("a cat tree")["hidden"])
    with opened.adapters.disable():  # type: ignore[union-attr]
        start = bench.texts.conditions("a <mine> tree")["hidden"]
    assert torch.equal(start, bench.texts.conditions("a cat tree")["hidden"])
    record = json.loads((place.root / "word" / "run.json").read_text())
    assert record["parameters"]["trained"] == 32
