"""Every kind of model at a tiny size: attach, step, learn one batch, save, load, say the same; and PEFT's parity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tasks.voices import speecht5_config, vits_config, write_config, write_voice

from loraloom.adapters import AdapterSet, attach
from loraloom.data.config import DataConfig
from loraloom.errors import DataError
from loraloom.formats import load_adapter, save_adapter
from loraloom.tasks.base import BaseModel, Batch
from loraloom.tasks.speech_synthesis import SpeechSynthesis

VITS_TARGETS = ("all-linear", "feed_forward.conv_*", "decoder.*.convs2.*", "flow.*.conv_pre", "flow.*.conv_post")


@dataclass(frozen=True)
class Case:
    """One kind of model."""

    config: Callable[[], Any]
    targets: tuple[str, ...]
    speakers: tuple[str, ...] = ()


CASES = {
    "speecht5": Case(speecht5_config, ("all-linear", "speech_decoder_postnet.*.conv")),
    "speecht5-of-two": Case(lambda: speecht5_config(reduction_factor=3), ("all-linear",), ("ann", "ben")),
    "vits": Case(vits_config, VITS_TARGETS),
    "vits-of-two": Case(
        lambda: vits_config(num_speakers=3, speaker_embedding_size=8, use_stochastic_duration_prediction=False),
        VITS_TARGETS,
        ("ann", "ben"),
    ),
}


@dataclass(frozen=True)
class Ready:
    """A task with a saved base of one kind, and all its sentences as one batch."""

    case: Case
    task: SpeechSynthesis
    folder: Path
    batch: Batch

    def load(self, **settings: Any) -> BaseModel:
        """The base anew."""
        return self.task.load(str(self.folder), **settings)


@pytest.fixture(scope="module", params=list(CASES))
def ready(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ready:
    case = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    voice = write_voice(folder / "voice", speakers=case.speakers)
    task = SpeechSynthesis()
    splits = task.read(DataConfig(train=str(voice), eval=str(voice)), seed=0)
    base = task.load(str(write_config(folder / "config", case.config())), seed=1, from_config=True)
    if base.model.config.model_type == "speecht5":  # at random it would end at once
        torch.nn.init.constant_(base.model.speech_decoder_postnet.prob_out.bias, -3.0)
    base.model.save_pretrained(folder / "base")
    base.processor.save_pretrained(folder / "base")
    batch = task.collate(task.encode(splits.train, base).features, base, training=True)
    return Ready(case, task, folder / "base", batch)


def learn(ready: Ready, model: torch.nn.Module, parameters: list[Any], steps: int, rate: float) -> list[float]:
    """Losses per item of some steps on the one batch."""
    optimizer = torch.optim.Adam(parameters, rate)
    losses = []
    for step in range(steps):
        torch.manual_seed(step % 3)
        loss, items = ready.task.loss(model, ready.batch)
        assert loss.dtype == torch.float32 and items > 0
        optimizer.zero_grad()
        (loss / items).backward()
        optimizer.step()
        losses.append(float(loss.detach()) / items)
    return losses


def adapted(ready: Ready, base: BaseModel, rank: int = 4) -> AdapterSet:
    base.model.eval()
    return attach(base.model, rank=rank, targets=list(ready.case.targets), seed=0)


def test_the_loss_falls_on_one_batch_and_the_base_stays(ready: Ready) -> None:
    base = ready.load()
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    adapters = adapted(ready, base)
    losses = learn(ready, base.model, list(adapters.parameters()), 12, 1e-2)
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    adapters.detach() if hasattr(adapters, "detach") else adapters.activate({})
    after = base.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_every_adapter_gets_a_gradient(ready: Ready) -> None:
    base = ready.load()
    adapters = adapted(ready, base)
    loss, _ = ready.task.loss(base.model, ready.batch)
    loss.backward()
    still = [name for name, tensor in adapters.named_parameters("default") if tensor.grad is None]
    assert not still


def test_all_weights_can_be_learnt(ready: Ready) -> None:
    model = ready.load().model.train()
    losses = learn(ready, model, list(model.parameters()), 6, 2e-3)
    assert sum(losses[-3:]) < sum(losses[:3])


def test_an_adapter_is_saved_and_says_the_same(ready: Ready, tmp_path: Path) -> None:
    base = ready.load()
    adapters = adapted(ready, base)
    plain = ready.task.outputs(base.model, ready.batch)
    learn(ready, base.model, list(adapters.parameters()), 3, 1e-2)
    save_adapter(adapters, "default", tmp_path, base_name=str(ready.folder), task_type=None)
    wanted = ready.task.outputs(base.model, ready.batch)
    said = ready.task.predict(base.model, ready.batch, base)
    assert not torch.equal(plain, wanted)
    again = ready.load()
    load_adapter(again.model, tmp_path)
    again.model.eval()
    assert torch.equal(ready.task.outputs(again.model, ready.batch), wanted)
    for first, second in zip(said, ready.task.predict(again.model, ready.batch, again), strict=True):
        assert (first.samples == second.samples).all() and first.mel_l1 == second.mel_l1


def test_peft_reads_the_saved_file_and_computes_the_same(ready: Ready, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = ready.load()
    adapters = adapted(ready, base)
    learn(ready, base.model, list(adapters.parameters()), 3, 1e-2)
    save_adapter(adapters, "default", tmp_path, base_name=str(ready.folder), task_type=None)
    wanted = ready.task.outputs(base.model, ready.batch)
    theirs = peft.PeftModel.from_pretrained(ready.load().model, tmp_path).base_model.model.eval()
    torch.testing.assert_close(ready.task.outputs(theirs, ready.batch), wanted, rtol=1e-4, atol=1e-4)


def test_outputs_have_a_row_per_sentence_and_are_repeatable(ready: Ready) -> None:
    model = ready.load().model
    torch.manual_seed(1)
    first = ready.task.outputs(model, ready.batch)
    torch.manual_seed(2)
    assert torch.equal(ready.task.outputs(model, ready.batch), first)
    assert first.dtype == torch.float32 and len(first) == len(ready.batch["input_ids"])
    words = {name: ready.batch[name] for name in ready.batch if name not in ("labels", "samples", "frames")}
    assert len(ready.task.outputs(model, words)) == len(first)


def test_the_same_generator_gives_the_same_loss(ready: Ready) -> None:
    model = ready.load().model
    losses = []
    for _ in range(2):
        torch.manual_seed(7)
        losses.append(ready.task.loss(model, ready.batch)[0])
    assert torch.equal(*losses)


def test_a_base_in_bf16_learns_and_speaks(ready: Ready) -> None:
    base = ready.load(dtype=torch.bfloat16)
    adapters = adapted(ready, base)
    losses = learn(ready, base.model, list(adapters.parameters()), 2, 1e-3)
    assert all(value == value for value in losses)
    said = ready.task.predict(base.model, ready.batch, base)
    assert all(speech.samples.dtype == "float32" for speech in said)


def test_a_saved_base_needs_nothing_else(ready: Ready) -> None:
    names = {entry.name for entry in ready.folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer_config.json"} <= names
    fresh = SpeechSynthesis()
    fresh.restore(ready.task.state())
    base = fresh.load(str(ready.folder))
    assert torch.equal(fresh.outputs(base.model, ready.batch), ready.task.outputs(ready.load().model, ready.batch))


def test_micro_batches_add_up_to_the_batch(tmp_path: Path) -> None:
    """VITS's loss is a mean within each sentence; its draws differ, so only what is not drawn is compared."""
    voice = write_voice(tmp_path / "voice")
    task = SpeechSynthesis()
    splits = task.read(DataConfig(train=str(voice), eval=str(voice)), seed=0)
    config = speecht5_config(use_guided_attention_loss=False)
    base = task.load(str(write_config(tmp_path / "c", config)), from_config=True)
    features = task.encode(splits.train[:2], base).features
    losses = []
    for part in ([0], [1], [0, 1]):
        torch.manual_seed(0)
        losses.append(task.loss(base.model, task.collate([features[row] for row in part], base)))
    assert losses[0][1] + losses[1][1] == losses[2][1]
    assert float(losses[0][0] + losses[1][0]) == pytest.approx(float(losses[2][0]), rel=0.05)


def test_more_speakers_than_the_model_has_room_for_are_refused(tmp_path: Path) -> None:
    voice = write_voice(tmp_path / "voice", speakers=("a", "b", "c"))
    task = SpeechSynthesis()
    splits = task.read(DataConfig(train=str(voice), eval=str(voice)), seed=0)
    config = vits_config(num_speakers=2, speaker_embedding_size=8)
    base = task.load(str(write_config(tmp_path / "c", config)), from_config=True)
    with pytest.raises(DataError, match="3 speakers, the base model has room for 2"):
        task.collate(task.encode(splits.train, base).features, base)
