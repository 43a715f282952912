"""Every family of speech recognisers, tiny and with random weights: attach, train, save, load, same output."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import speakers_made as made

from loraloom.adapters import attach
from loraloom.data.config import DataConfig
from loraloom.errors import BaseModelError, ConfigError, DataError
from loraloom.formats.peft import load_adapter, save_adapter
from loraloom.tasks import create_task
from loraloom.tasks.base import AnswerOptions, BaseModel, Feature
from loraloom.tasks.speech_recognition import SpeechRecognition

CTC = list(made.FAMILIES)
ALL = [*CTC, "whisper"]
NO_MASKS = {"mask_time": 0.0, "mask_feature": 0.0}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.write_set(tmp_path_factory.mktemp("set"))


def data_of(folder: Path, **settings: Any) -> DataConfig:
    return DataConfig(train=str(folder), eval=str(folder), **settings)


def fresh(recordings: Path, **options: Any) -> tuple[SpeechRecognition, Any]:
    task: Any = create_task("speech-recognition", **{**NO_MASKS, **options})
    return task, task.read(data_of(recordings), seed=0)


def random_base(
    family: str, recordings: Path, folder: Path, **options: Any
) -> tuple[SpeechRecognition, BaseModel, list[Feature]]:
    """A task over a base that is a configuration alone, and its encoded training recordings."""
    task, splits = fresh(recordings, **options)
    base = task.load(str(made.write_config(folder, family)), seed=1, from_config=True)
    return task, base, task.encode(splits.train, base).features


def learn(task: Any, base: BaseModel, features: list[Feature], parameters: Any, steps: int, rate: float) -> list[float]:
    optimizer = torch.optim.Adam(parameters, rate)
    losses = []
    for _ in range(steps):
        loss, items = task.loss(base.model, task.collate(features, base, training=True))
        optimizer.zero_grad()
        (loss / items).backward()
        optimizer.step()
        losses.append(float(loss) / items)
    return losses


@pytest.mark.parametrize("family", ALL)
def test_an_adapter_learns_a_batch_and_comes_back_from_its_file(family: str, recordings: Path, tmp_path: Path) -> None:
    task, base, features = random_base(family, recordings, tmp_path / "base")
    base.model.save_pretrained(tmp_path / "base")
    base.processor.save_pretrained(tmp_path / "base")
    adapters = attach(base.model, targets="all-linear", rank=8)
    losses = learn(task, base, features, adapters.parameters(), 25, 2e-2)
    assert losses[-1] < 0.8 * losses[0]
    batch = task.collate(features, base)
    outputs = task.outputs(base.model, batch)
    assert outputs.dtype == torch.float32
    save_adapter(adapters, "default", tmp_path / "out", task_type=task.peft_type)

    again: Any = create_task("speech-recognition")
    again.restore(task.state())
    other = again.load(str(tmp_path / "base"))
    assert other.heads == ()
    load_adapter(other.model, tmp_path / "out")
    torch.testing.assert_close(again.outputs(other.model, again.collate(features, other)), outputs)
    assert again.predict(other.model, batch, other) == task.predict(base.model, batch, base)


@pytest.mark.parametrize("family", ALL)
def test_peft_gives_the_same_logits(family: str, recordings: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed: nothing to compare with")
    task, base, features = random_base(family, recordings, tmp_path / "base")
    base.model.save_pretrained(tmp_path / "base")
    base.processor.save_pretrained(tmp_path / "base")
    adapters = attach(base.model, targets="all-linear", rank=4)
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(adapters, "default", tmp_path / "out", task_type=task.peft_type)
    batch = task.collate(features, base)
    ours = task.outputs(base.model, batch)
    plain = create_task("speech-recognition").load(str(tmp_path / "base"))
    assert not torch.allclose(ours, task.outputs(plain.model, batch), atol=1e-2)
    theirs = peft.PeftModel.from_pretrained(plain.model, str(tmp_path / "out")).eval()
    torch.testing.assert_close(task.outputs(theirs.base_model.model, batch), ours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["wav2vec2", "whisper"])
def test_a_model_learns_to_write_the_tones_and_says_when(family: str, recordings: Path, tmp_path: Path) -> None:
    """Every transcript right: labels, frames, decoding and scores agree with one another."""
    task, base, features = random_base(family, recordings, tmp_path / "base")
    parameters = list(base.model.requires_grad_(True).parameters())
    learn(task, base, features, parameters, *((220, 6e-3) if family == "wav2vec2" else (140, 2e-3)))
    base.model.eval()
    predictions = task.predict(base.model, task.collate(features, base), base)
    scores = task.score(predictions, [feature.reference for feature in features])
    assert scores["wer"] == scores["cer"] == 0.0, [one.text for one in predictions]
    shown = task.describe(predictions[0])
    assert shown["text"] == "ab cd"
    assert shown["seconds"] == pytest.approx(7 * made.LETTER)
    if family == "wav2vec2":
        first, second = shown["words"]
        assert (first["word"], second["word"]) == ("ab", "cd")
        assert 0 <= first["start"] < first["end"] <= second["start"] < second["end"] <= shown["seconds"] + 0.02
        assert first["end"] > 1.5 * made.LETTER
        assert second["start"] == pytest.approx(4 * made.LETTER, abs=1.5 * made.LETTER)
    else:
        assert "segments" not in shown


@pytest.mark.parametrize("family", CTC)
def test_a_backbone_gets_a_head_for_the_characters_of_the_transcripts(
    family: str, recordings: Path, tmp_path: Path
) -> None:
    task, _ = fresh(recordings)
    base = task.load(str(made.write_backbone(tmp_path / "base", family)), seed=7)
    assert base.heads == ("lm_head",)
    assert base.model.lm_head.out_features == 7  # blank, unknown, delimiter, a, b, c, d
    again: Any = create_task("speech-recognition")
    again.restore(task.state())
    other = again.load(str(tmp_path / "base"), seed=7)
    assert torch.equal(base.model.lm_head.weight, other.model.lm_head.weight)
    assert other.processor.tokenizer.get_vocab() == base.processor.tokenizer.get_vocab()


def test_a_checkpoint_keeps_its_characters_unless_new_ones_are_asked_for(recordings: Path, tmp_path: Path) -> None:
    _, base, _ = random_base("wav2vec2", recordings, tmp_path / "base")
    base.model.save_pretrained(tmp_path / "base")
    base.processor.save_pretrained(tmp_path / "base")
    task, _ = fresh(recordings)
    assert task.load(str(tmp_path / "base")).heads == ()
    assert task.state()["vocabulary"] is None
    spelt = made.write_set(tmp_path / "more", ["abba", "dab", "zoo"])
    task, _ = fresh(spelt, new_vocabulary=True)
    renewed = task.load(str(tmp_path / "base"))
    assert renewed.heads == ("lm_head",)
    assert renewed.model.lm_head.out_features == 8  # a, b, d, o, z
    task, splits = fresh(spelt)
    with pytest.raises(DataError, match=r"more:3: .*2.wav has the characters 'o z'"):
        task.encode(splits.train, task.load(str(tmp_path / "base")))


def test_a_backbone_without_transcripts_or_vocabulary_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no vocabulary"):
        create_task("speech-recognition").load(str(made.write_backbone(tmp_path, "hubert")))


def test_a_model_of_another_kind_is_refused(recordings: Path, tmp_path: Path) -> None:
    import transformers

    transformers.BertConfig().save_pretrained(tmp_path)
    task, _ = fresh(recordings)
    with pytest.raises(BaseModelError, match=r"'bert', which recognises no speech; whisper, wav2vec2"):
        task.load(str(tmp_path), from_config=True)


def test_wavlm_says_which_layers_an_adapter_cannot_reach(recordings: Path, tmp_path: Path) -> None:
    _, base, _ = random_base("wavlm", recordings, tmp_path / "base")
    assert any("attention" in note and "q_proj" in note for note in base.notes)


# --- batches


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm", "whisper"])
def test_padding_changes_nothing(family: str, recordings: Path, tmp_path: Path) -> None:
    task, base, features = random_base(family, recordings, tmp_path / "base")
    long = made.write_set(tmp_path / "long", ["abcd abcd"])
    _, splits = fresh(long)
    features = [features[0], *task.encode(splits.evaluation, base).features]
    both = task.outputs(base.model, task.collate(features, base))
    alone = task.outputs(base.model, task.collate(features[:1], base))
    frames = alone.shape[1]
    torch.testing.assert_close(both[:1, :frames], alone, atol=1e-4, rtol=1e-4)


def test_models_normalised_over_time_take_no_mask(recordings: Path, tmp_path: Path) -> None:
    for family, masked in (("wav2vec2", True), ("wav2vec2-group", False)):
        task, base, features = random_base(family, recordings, tmp_path / family)
        assert ("attention_mask" in task.collate(features, base)) == masked


def test_masks_are_drawn_from_torch_and_only_in_training(recordings: Path, tmp_path: Path) -> None:
    for family in ("wav2vec2", "whisper"):
        task, base, features = random_base(
            family, recordings, tmp_path / family, mask_time=0.3, mask_feature=0.3, mask_time_length=3
        )
        base.model.eval()

        def loss(seed: int, training: bool, task: Any = task, base: Any = base, features: Any = features) -> float:
            torch.manual_seed(seed)
            return float(task.loss(base.model, task.collate(features, base, training=training))[0])

        assert loss(1, True) == loss(1, True) != loss(2, True)
        assert loss(1, False) == loss(2, False) != loss(1, True)
        assert base.model.config.apply_spec_augment is False  # transformers' own masks come from numpy


def test_the_loss_is_that_of_transformers(recordings: Path, tmp_path: Path) -> None:
    task, base, features = random_base("wav2vec2", recordings, tmp_path / "base")
    batch = task.collate(features, base)
    loss, items = task.loss(base.model, batch)
    rows = torch.full((len(features), int(batch["label_lengths"].max())), -100)
    for row, part in zip(rows, batch["labels"].split(batch["label_lengths"].tolist()), strict=True):
        row[: len(part)] = part
    theirs = base.model(batch["input_values"], attention_mask=batch["attention_mask"], labels=rows).loss
    torch.testing.assert_close(loss, theirs)
    assert items == sum(len(feature.reference) for feature in features)


def test_whisper_learns_the_text_behind_its_prefix(recordings: Path, tmp_path: Path) -> None:
    task, base, features = random_base("whisper", recordings, tmp_path / "base")
    batch = task.collate(features, base)
    start, end = base.model.config.decoder_start_token_id, base.model.config.eos_token_id
    assert batch["decoder_input_ids"][:, 0].tolist() == [start] * len(features)
    assert batch["labels"][0].tolist().count(end) == 1
    assert base.processor.tokenizer.decode(batch["labels"][0], skip_special_tokens=True) == "ab cd"
    loss, items = task.loss(base.model, batch)
    theirs = base.model(batch["input_features"], labels=batch["labels"]).loss
    torch.testing.assert_close(loss / items, theirs)


def test_half_precision_computes(recordings: Path, tmp_path: Path) -> None:
    for family in ("wav2vec2", "wavlm", "whisper"):
        task, splits = fresh(recordings)
        base = task.load(
            str(made.write_config(tmp_path / family, family)), seed=1, from_config=True, dtype=torch.bfloat16
        )
        features = task.encode(splits.train, base).features
        batch = task.collate(features, base)
        adapters = attach(base.model, targets="all-linear", rank=2)
        loss, _ = task.loss(base.model, batch)
        assert loss.dtype == torch.float32
        loss.backward()
        still = {
            name.split(".")[-1].split("|")[0] for name, one in adapters.named_parameters("default") if one.grad is None
        }
        assert still == ({"q_proj", "k_proj", "v_proj", "out_proj"} if family == "wavlm" else set())
        assert len(task.predict(base.model, batch, base)) == len(features)


def test_convolutions_of_the_encoder_can_be_adapted(recordings: Path, tmp_path: Path) -> None:
    task, base, features = random_base("wav2vec2", recordings, tmp_path / "base")
    adapters = attach(base.model, targets=["all-linear", "conv_layers.*.conv"], rank=2)
    assert any("conv_layers.0.conv" in name for name, _ in adapters.named_parameters("default"))
    losses = learn(task, base, features, adapters.parameters(), 5, 1e-2)
    assert losses[-1] < losses[0]


# --- answers


def test_beams_are_whispers_alone(recordings: Path, tmp_path: Path) -> None:
    task, base, features = random_base("whisper", recordings, tmp_path / "w")
    said: list[str] = []
    answers = task.answer(base.model, features[:2], base, AnswerOptions(beams=3), said.append)
    assert [one.text for one in answers] == said
    task, base, features = random_base("wav2vec2", recordings, tmp_path / "c")
    with pytest.raises(ConfigError, match="beams"):
        task.answer(base.model, features[:2], base, AnswerOptions(beams=3))


def test_options_that_a_model_lacks_are_refused(recordings: Path, tmp_path: Path) -> None:
    for options, said in (({"language": "en"}, "one language"), ({"timestamps": True}, "no timestamps")):
        with pytest.raises(ConfigError, match=said):
            random_base("whisper", recordings, tmp_path / said.replace(" ", "-"), **options)
    with pytest.raises(ConfigError, match="mask_tme"):
        create_task("speech-recognition", mask_tme=0.1)


def test_state_says_how_scores_were_normalised(recordings: Path) -> None:
    task, _ = fresh(recordings, normalisation="none")
    assert task.state()["normalisation"].startswith("as written")
    again: Any = create_task("speech-recognition")
    again.restore(task.state())
    assert again.options == task.options


def test_multilingual_whisper_is_told_its_language_and_says_when(recordings: Path, tmp_path: Path) -> None:
    folder = made.write_multilingual(tmp_path / "base")
    task, splits = fresh(recordings, language="en", timestamps=True)
    base = task.load(str(folder))
    tokenizer = base.processor.tokenizer
    features = task.encode(splits.train, base).features
    batch = task.collate(features, base)
    prefix = tokenizer.convert_ids_to_tokens(batch["decoder_input_ids"][0, :4])
    assert prefix == ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    labels = batch["labels"][0]
    assert (labels[:3] == -100).all()
    assert tokenizer.decode(labels[labels != -100]) == "ab cd<|endoftext|>"
    assert len(task.predict(base.model, batch, base)) == len(features)
    written = tokenizer("<|0.10|>ab<|0.30|><|0.30|> cd<|0.50|>", add_special_tokens=False).input_ids
    heard = task.recogniser._read(written, 10.0)
    assert heard.text == "ab cd"
    assert [(text, round(start, 2), round(end, 2)) for text, start, end in heard.spans] == [
        ("ab", 10.1, 10.3),
        ("cd", 10.3, 10.5),
    ]
    task, _ = fresh(recordings, language="klingon")
    with pytest.raises(ConfigError, match="klingon"):
        task.load(str(folder))
