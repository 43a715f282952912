"""Language models of every common family: adapted, trained, saved and loaded; texts scored, packed and in windows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from tests.tasks.writers import FAMILIES, POSITIONS, learnt, make_base, make_task, whole
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM

import loraloom
from loraloom.data.config import DataConfig
from loraloom.data.table import Example
from loraloom.errors import BaseModelError, ConfigError, DataError, FormatError
from loraloom.tasks import create_task
from loraloom.tasks.base import BaseModel
from loraloom.tasks.causal_lm import CausalLM
from loraloom.tasks.language.likelihood import Sums, likelihood_scores

TEXTS = ["the cat sat", "on the mat there", "a dog", "then it was late and the rain came", "oh"]


def texts(*given: str) -> list[Example]:
    return [Example({"text": text}, "some.jsonl", line) for line, text in enumerate(given, start=1)]


def scored(task: CausalLM, base: BaseModel, examples: list[Example], size: int = 2) -> dict[str, float]:
    features = task.encode(examples, base).features
    predictions = []
    for first in range(0, len(features), size):
        batch = task.collate(features[first : first + size], base)
        predictions += task.predict(base.model, batch, base)
    return task.score(predictions, [feature.reference for feature in features])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("writers")
    return {family: make_base(root / family, family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_learns_and_is_the_same_after_saving(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    task, base = make_task(folders[family], pack=True, max_length=40)
    adapters = loraloom.attach(base.model, rank=4, seed=1)
    batch = task.collate(task.encode(texts(*TEXTS), base).features, base, training=True)
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=2e-2)
    losses = []
    for _ in range(8):
        loss, items = task.loss(base.model, batch)
        (loss / items).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item() / items)
    assert losses[-1] < 0.8 * losses[0]
    base.model.eval()
    wanted = task.outputs(base.model, batch)
    loraloom.save(adapters, "default", tmp_path / "adapter", base_name=str(folders[family]), task_type=task.peft_type)

    fresh = task.load(str(folders[family]))
    assert not torch.allclose(task.outputs(fresh.model, batch), wanted, atol=1e-3)
    loraloom.load(fresh.model, tmp_path / "adapter", name="default")
    torch.testing.assert_close(task.outputs(fresh.model, batch), wanted)

    plain = AutoModelForCausalLM.from_pretrained(folders[family])
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    ids = batch["input_ids"][:, :12]
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=ids).logits, fresh.model(input_ids=ids).logits)


def test_the_embeddings_can_be_adapted_too(folders: dict[str, Path]) -> None:
    task, base = make_task(folders["llama"])
    adapters = loraloom.attach(base.model, rank=4, targets=["all-linear", "embed_tokens"])
    loss, _ = task.loss(base.model, task.collate(task.encode(texts(*TEXTS), base).features, base))
    loss.backward()
    moved = [name for name, tensor in adapters.named_parameters("default") if tensor.grad is not None]
    assert any("embed_tokens" in name for name in moved)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_text_has_the_logits_that_it_has_alone(family: str, folders: dict[str, Path]) -> None:
    task, base = make_task(folders[family], pack=True, max_length=60)
    features = task.encode(texts(*TEXTS), base).features
    assert max(len(feature.inputs["starts"]) for feature in features) > 2
    batch = task.collate(features, base)
    with torch.no_grad():
        found = base.model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    for row, feature in enumerate(features):
        starts = feature.inputs["starts"]
        for low, high in zip(starts, [*starts[1:], feature.length], strict=True):
            with torch.no_grad():
                alone = base.model(input_ids=batch["input_ids"][row : row + 1, low:high]).logits[0]
            torch.testing.assert_close(found[row, low:high], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_packing_and_the_batch_leave_the_scores_alone(family: str, folders: dict[str, Path]) -> None:
    plain = scored(*make_task(folders[family]), texts(*TEXTS), size=1)
    for options, size in (({}, 5), ({"pack": True, "max_length": 60}, 3)):
        assert scored(*make_task(folders[family], **options), texts(*TEXTS), size) == pytest.approx(plain, rel=1e-5)


def test_a_model_that_cannot_keep_texts_apart_is_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    torch.manual_seed(0)
    BloomForCausalLM(BloomConfig(vocab_size=264, hidden_size=32, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folders["llama"] / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes((folders["llama"] / "tokenizer_config.json").read_bytes())
    task, base = make_task(tmp_path, pack=True)
    with pytest.raises(ConfigError, match="pack: BloomForCausalLM cannot keep the texts of a row apart"):
        task.encode(texts(*TEXTS), base)
    task, base = make_task(tmp_path)
    assert scored(task, base, texts(*TEXTS))["tokens"] == sum(len(row) + 1 for row in TEXTS) - "".join(TEXTS).count(
        "th"
    )


def test_every_token_of_a_long_text_is_scored_once(folders: dict[str, Path]) -> None:
    text = "".join(chr(97 + number % 26) for number in range(100))
    for stride in (1, 5, 12, 19):
        task, base = make_task(folders["llama"], max_length=20, stride=stride)
        features = task.encode(texts(text), base).features
        assert "".join(learnt(feature, base) for feature in features) == text + "</s>"
        assert all(feature.length <= 20 for feature in features)
        assert all(learnt(feature, base)[:1] in whole(feature, base)[1:] for feature in features)
        assert [feature.reference[0][0] for feature in features] == [0] * len(features)
        assert sum(feature.reference[0][1] for feature in features) == 100
    wide, base = make_task(folders["llama"], max_length=20, stride=5)
    narrow, _ = make_task(folders["llama"], max_length=20, stride=19)
    context = [
        min(f.inputs["targets"].argmax() for f in t.encode(texts(text), base).features[1:-1]) for t in (wide, narrow)
    ]
    assert context == [15, 1]


def test_a_stride_as_long_as_the_window_is_refused(folders: dict[str, Path]) -> None:
    task, base = make_task(folders["llama"], max_length=20, stride=20)
    with pytest.raises(ConfigError, match="stride: 20 tokens leave a window of 20"):
        task.encode(texts("oh"), base)


def test_rows_are_no_longer_than_the_model_takes(folders: dict[str, Path]) -> None:
    task, base = make_task(folders["gpt2"])
    features = task.encode(texts("x" * 200), base).features
    assert max(feature.length for feature in features) == POSITIONS


def test_a_text_begins_and_ends_with_the_tokenizers_marks(folders: dict[str, Path]) -> None:
    task, base = make_task(folders["llama"])
    feature = task.encode(texts("the"), base).features[0]
    assert whole(feature, base) == "<s>the</s>"
    assert learnt(feature, base) == "the</s>"


def test_without_marks_the_first_token_is_only_read(tmp_path: Path) -> None:
    task, base = make_task(make_base(tmp_path / "base", special=False))
    base.model.config.bos_token_id = None
    feature = task.encode(texts("abc"), base).features[0]
    assert (whole(feature, base), learnt(feature, base), feature.reference) == ("abc", "bc", ((0, 2),))
    assert any("no end-of-text token" in note for note in base.notes)


def test_the_scores_are_those_of_the_formulas(folders: dict[str, Path]) -> None:
    task, base = make_task(folders["llama"])
    found = scored(task, base, texts(*TEXTS))
    nll, tokens = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([[1, *base.processor(text, add_special_tokens=False)["input_ids"], 2]])
        with torch.no_grad():
            logs = base.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        nll -= logs.gather(1, ids[0, 1:, None]).sum().item()
        tokens += ids.shape[1] - 1
    assert found["perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nll / math.log(2) / len("".join(TEXTS)), rel=1e-5)
    assert (found["tokens"], found["n"]) == (tokens, len(TEXTS))
    assert found["perplexity_low"] < found["perplexity"] < found["perplexity_high"]


def test_intervals_are_over_documents_not_rows() -> None:
    rows = [[Sums(2.0, 1, 4)], [Sums(9.0, 0, 4)]] * 20
    apart = likelihood_scores(rows, [((number, 4),) for number in range(40)])
    joined = likelihood_scores(rows, [((number // 20, 4),) for number in range(40)])
    assert apart["perplexity"] == joined["perplexity"] == pytest.approx(math.exp(11 / 8))
    assert apart["perplexity_high"] - apart["perplexity_low"] > 0.1
    assert joined["perplexity_high"] - joined["perplexity_low"] < 1e-9
    single = likelihood_scores([[Sums(2.0, 1, 4)]], [((0, 4),)])
    assert "perplexity_low" not in single
    with pytest.raises(DataError, match="no tokens to score"):
        likelihood_scores([], [])


def test_large_vocabularies_are_computed_in_parts(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    task, base = make_task(folders["llama"])
    batch = task.collate(task.encode(texts(*TEXTS), base).features, base)
    weight: Any = base.model.get_output_embeddings().weight  # type: ignore[operator]

    def gradient() -> tuple[float, torch.Tensor]:
        weight.grad = None
        loss, _ = task.loss(base.model, batch)
        loss.backward()
        return loss.item(), weight.grad.clone()

    whole_loss, whole_gradient = gradient()
    sums = task.predict(base.model, batch, base)
    monkeypatch.setattr("loraloom.tasks.language.likelihood.CHUNK", 264 * 7)
    parts_loss, parts_gradient = gradient()
    assert parts_loss == pytest.approx(whole_loss, rel=1e-6)
    torch.testing.assert_close(parts_gradient, whole_gradient)
    for row, other in zip(sums, task.predict(base.model, batch, base), strict=True):
        np.testing.assert_allclose(row, other, rtol=1e-5)


def test_a_base_is_made_of_a_configuration(folders: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "train.txt"
    source.write_text("\n\n".join(f"{text} number {n}" for n in range(8) for text in TEXTS), "utf-8")
    (tmp_path / "config").mkdir()
    config = (folders["llama"] / "config.json").read_text("utf-8").replace("264", "300")
    (tmp_path / "config" / "config.json").write_text(config, "utf-8")
    task = create_task("causal-lm")
    splits = task.read(DataConfig(train=str(source), eval_fraction=0.2), seed=0)
    base = task.load(str(tmp_path / "config"), from_config=True, seed=5)
    again = task.load(str(tmp_path / "config"), from_config=True, seed=5)
    assert base.source == "config"
    assert 256 < len(base.processor) <= 300
    assert base.processor.get_vocab() == again.processor.get_vocab()
    features = task.encode(splits.train, base).features
    assert whole(features[0], base).startswith("<s>")
    base.model.save_pretrained(tmp_path / "made")  # type: ignore[operator]
    base.processor.save_pretrained(tmp_path / "made")
    other = task.load(str(tmp_path / "made"))
    assert (task.encode(splits.train, other).features[0].inputs["input_ids"] == features[0].inputs["input_ids"]).all()


def test_a_checkpoint_without_an_output_layer_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = FAMILIES["llama"]()
    make_base(tmp_path / "base")
    model.model.save_pretrained(tmp_path / "base")
    with pytest.raises(BaseModelError, match="lm_head.weight"):
        make_task(tmp_path / "base")


def test_options_are_checked_by_name_and_value() -> None:
    with pytest.raises(ConfigError, match=r"no option 'packed'.*did you mean 'pack'"):
        create_task("causal-lm", packed=True)
    with pytest.raises(ConfigError, match="'train_on' is 'answers'"):
        create_task("causal-lm", train_on="answers")


def test_its_state_brings_the_task_back() -> None:
    task = create_task("causal-lm", max_length=33, pack=True)
    with pytest.raises(FormatError, match="'kind' is None"):
        task.restore({})
    state = {**task.state(), "kind": "prompt", "separator": "\n"}
    other = create_task("causal-lm")
    other.restore(state)
    assert other.state() == state
