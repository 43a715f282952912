"""The task around its models: what it reads, refuses and says of the data, and what it makes of predictions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.numpy import save_file
from tests.tasks.voices import RATE, TEXTS, speecht5_config, spell, vits_config, write_config, write_voice

from loraloom.data.config import DataConfig
from loraloom.errors import BaseModelError, ConfigError, DataError, FormatError
from loraloom.tasks import create_task
from loraloom.tasks.base import AnswerOptions, BaseModel
from loraloom.tasks.speech.sound import Shelf, Take
from loraloom.tasks.speech.speakers import Speakers, name_vector, read_vectors
from loraloom.tasks.speech.speech_scores import Reference, Speech
from loraloom.tasks.speech_synthesis import SpeechSynthesis


def made(voice: Path, config: object, folder: Path, **options: object) -> tuple[SpeechSynthesis, BaseModel]:
    """A task that has read a voice, and a model of random weights."""
    task = SpeechSynthesis(SpeechSynthesis.Options(**options))
    task.read(DataConfig(train=str(voice), eval=str(voice)), seed=0)
    base = task.load(str(write_config(folder, config)), seed=0, from_config=True)
    if base.model.config.model_type == "speecht5":  # at random it would end at once
        torch.nn.init.constant_(base.model.speech_decoder_postnet.prob_out.bias, -5.0)
    return task, base


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voice(tmp_path_factory.mktemp("voice"))


@pytest.fixture(scope="module")
def pair(voice: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SpeechSynthesis, BaseModel]:
    return made(voice, speecht5_config(), tmp_path_factory.mktemp("base"))


# --- reading


def test_it_is_made_by_name_and_refuses_unknown_options() -> None:
    assert create_task("speech-synthesis", trim=False).name == "speech-synthesis"
    with pytest.raises(ConfigError, match="vocoder"):
        create_task("speech-synthesis", vocodr="x")


def test_a_folder_is_read_and_a_part_set_aside(voice: Path) -> None:
    task = SpeechSynthesis()
    splits = task.read(DataConfig(train=str(voice), eval_fraction=0.34), seed=0)
    assert len(splits.train) == 4 and len(splits.evaluation) == 2
    assert {example.values["text"] for example in splits.train + splits.evaluation} == set(TEXTS)
    assert any("no speakers are named" in note for note in splits.notes)


def test_speakers_are_counted_and_unknown_ones_refused(tmp_path: Path) -> None:
    first = write_voice(tmp_path / "a", speakers=("ann", "ben"))
    second = write_voice(tmp_path / "b", speakers=("bern",))
    task = SpeechSynthesis()
    splits = task.read(DataConfig(train=str(first), eval=str(first)), seed=0)
    assert "2 speakers: ann (3), ben (3)" in splits.notes
    with pytest.raises(DataError, match=r"the speaker 'bern' .* 'ann', 'ben'; did you mean 'ben'"):
        task.read_more(str(second), DataConfig(train=str(first)), labelled=True)


def test_one_sentence_twice_is_no_duplicate(tmp_path: Path) -> None:
    voice = write_voice(tmp_path / "v", ("ab", "ab", "ba"), speakers=("x", "y"))
    data = DataConfig(train=str(voice), eval=str(voice), drop_duplicates=True)
    assert len(SpeechSynthesis().read(data, seed=0).train) == 3


def test_silent_and_long_recordings_are_refused_by_name_or_left_out(tmp_path: Path) -> None:
    voice = write_voice(tmp_path / "v")
    soundfile.write(voice / "1.wav", np.zeros(8000), RATE)
    soundfile.write(voice / "2.wav", np.tile(spell("abc"), 40), RATE)
    data = DataConfig(train=str(voice), eval=str(voice))
    with pytest.raises(DataError, match=r"2 recordings cannot be used: .*1\.wav is silent; .*2\.wav lasts 8\.4 s"):
        SpeechSynthesis(SpeechSynthesis.Options(max_seconds=5)).read(data, seed=0)
    kept = SpeechSynthesis(SpeechSynthesis.Options(max_seconds=5)).read(
        data.model_copy(update={"skip_bad": True}), seed=0
    )
    assert len(kept.train) == 4
    assert any("1.wav is silent" in note and note.endswith("left out") for note in kept.notes)


def test_clipping_and_digits_are_remarked_on(tmp_path: Path) -> None:
    voice = write_voice(tmp_path / "v", ("a bad cab", "cab 42", "dad"))
    soundfile.write(voice / "0.wav", np.clip(9 * spell("a bad cab"), -1, 1), RATE)
    notes = SpeechSynthesis().read(DataConfig(train=str(voice), eval=str(voice)), seed=0).notes
    assert any("1 recordings are clipped" in note and "0.wav" in note for note in notes)
    assert any("1 texts hold digits" in note and ":2" in note for note in notes)


def test_texts_alone_are_enough_for_prediction(voice: Path, tmp_path: Path) -> None:
    task = SpeechSynthesis()
    task.read(DataConfig(train=str(voice), eval=str(voice)), seed=0)
    (tmp_path / "lines.csv").write_text("text\na bee\n", encoding="utf-8")
    examples = task.read_more(str(tmp_path / "lines.csv"), DataConfig(train=str(voice)), labelled=False)
    assert [example.values for example in examples] == [{"text": "a bee"}]


def test_a_question_must_hold_something_to_say() -> None:
    assert SpeechSynthesis().question("a bee", 1).values == {"text": "a bee"}
    with pytest.raises(DataError, match="nothing that could be said"):
        SpeechSynthesis().question(" ... ", 1)


# --- the model's limits


def test_unknown_characters_are_named(tmp_path: Path, pair: tuple[SpeechSynthesis, BaseModel]) -> None:
    task, base = pair
    base.model.save_pretrained(tmp_path / "base")
    base.processor.save_pretrained(tmp_path / "base")
    other = SpeechSynthesis()
    voice = write_voice(tmp_path / "v", ("déjà été", "bad"))
    other.read(DataConfig(train=str(voice), eval=str(voice)), seed=0)
    assert (
        "2 characters have no token and will not be heard: 'é' (3), 'à' (1)" in other.load(str(tmp_path / "base")).notes
    )
    with pytest.raises(DataError, match=r"text:3: its text holds no character"):
        task.encode([task.question("日本", 3)], base)


def test_a_text_too_long_for_the_model_is_refused_by_its_place(pair: tuple[SpeechSynthesis, BaseModel]) -> None:
    task, base = pair
    with pytest.raises(DataError, match="text:7: its text has 61 tokens, the base model takes 40"):
        task.encode([task.question("ab" * 30, 7)], base)


def test_too_few_frames_for_a_text_are_refused_by_their_place(tmp_path: Path) -> None:
    voice = write_voice(tmp_path / "v", ("abab", "abc"))
    soundfile.write(voice / "0.wav", spell("a", seconds=0.02), RATE)
    task, base = made(voice, vits_config(), tmp_path / "base")
    splits = task.read(DataConfig(train=str(voice), eval=str(voice)), seed=0)
    with pytest.raises(DataError, match=r":1: its recording has 5 frames, too few for the 9 tokens"):
        task.encode(splits.train, base)


def test_another_kind_of_model_is_refused(voice: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    task = SpeechSynthesis()
    task.read(DataConfig(train=str(voice), eval=str(voice)), seed=0)
    with pytest.raises(BaseModelError, match="'bert'; speecht5 or vits can learn to speak"):
        task.load(str(tmp_path), from_config=True)


# --- speaking


def test_a_sentence_sounds_the_same_alone_and_in_company(pair: tuple[SpeechSynthesis, BaseModel]) -> None:
    task, base = pair
    features = task.encode([task.question(text, 1) for text in ("a bee", "dad fed a cab")], base).features
    together = task.predict(base.model, task.collate(features, base), base)
    torch.manual_seed(99)
    alone = task.predict(base.model, task.collate(features[:1], base), base)
    np.testing.assert_array_equal(alone[0].samples, together[0].samples)
    other = task.answer(base.model, features[:1], base, AnswerOptions(seed=5))
    assert other[0].samples.shape != alone[0].samples.shape or (other[0].samples != alone[0].samples).any()


def test_prediction_leaves_the_callers_generator_alone(pair: tuple[SpeechSynthesis, BaseModel]) -> None:
    task, base = pair
    batch = task.collate(task.encode([task.question("a", 1)], base).features, base)
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    task.predict(base.model, batch, base)
    task.outputs(base.model, batch)
    assert torch.equal(torch.rand(1), expected)


def test_a_sentence_that_does_not_end_is_cut_off(voice: Path, tmp_path: Path) -> None:
    task, base = made(voice, speecht5_config(), tmp_path / "base", max_frames_per_token=2)
    features = task.encode([task.question("abcdefg", 1)], base).features
    [speech] = task.answer(base.model, features, base, AnswerOptions())
    assert len(speech.samples) == (2 * 8 - 1) * 256


def test_the_speaker_that_is_asked_for_speaks(tmp_path: Path) -> None:
    voice = write_voice(tmp_path / "v", speakers=("ann", "ben"))
    task, base = made(voice, speecht5_config(initializer_range=0.3), tmp_path / "base")
    features = task.encode([task.question("a bee", 1)], base).features
    usual, ann, ben = (
        task.answer(base.model, features, base, AnswerOptions(speaker=name))[0].samples for name in (None, "ann", "ben")
    )
    np.testing.assert_array_equal(usual, ann)
    assert ann.shape != ben.shape or (ann != ben).any()
    with pytest.raises(DataError, match="--speaker: the speaker 'bob'"):
        task.answer(base.model, features, base, AnswerOptions(speaker="bob"))


def test_a_prediction_is_described_and_written(tmp_path: Path, pair: tuple[SpeechSynthesis, BaseModel]) -> None:
    task, _ = pair
    speech = Speech(2 * spell("abc"), RATE, computing=0.105)
    told = task.describe(speech)
    assert told == {"seconds": 0.21, "peak": 0.6, "rms": pytest.approx(0.424, abs=0.01), "real_time_factor": 0.5}
    written = task.write_file(speech, task.question("abc", 1), tmp_path / "line.1", AnswerOptions())
    assert written == tmp_path / "line.1.wav"
    assert soundfile.info(written).frames == len(speech.samples)


# --- scores


def test_the_recordings_themselves_score_nothing(pair: tuple[SpeechSynthesis, BaseModel], voice: Path) -> None:
    task, _ = pair
    references = [Reference(str(voice / f"{number}.wav"), Take(RATE)) for number in range(3)]
    said = [Speech(Shelf().read(one.file, one.take), RATE, 0.1) for one in references]
    scores = task.score(said, references)
    assert scores["mcd"] == scores["mcd_low"] == scores["mcd_high"] == 0.0
    assert scores["silent"] == scores["clipped"] == 0.0 and scores["n"] == 3.0
    assert scores["seconds_ratio"] == pytest.approx(1.0)
    assert scores["real_time_factor"] == pytest.approx(0.3 / sum(one.seconds for one in said))
    assert "mel_l1" not in scores
    turned = task.score(said[1:] + said[:1], references)
    assert turned["mcd_low"] <= turned["mcd"] <= turned["mcd_high"] and turned["mcd"] > 1.0
    assert task.metric in turned and not task.higher_is_better


def test_silence_and_clipping_are_counted(pair: tuple[SpeechSynthesis, BaseModel], voice: Path) -> None:
    task, _ = pair
    references = [Reference(str(voice / "0.wav"), Take(RATE))] * 3
    nothing = Speech(np.zeros(0, np.float32), RATE, 0.1, mel_l1=0.5)
    loud = Speech(5 * spell("abc"), RATE, 0.1, mel_l1=0.7)
    scores = task.score([nothing, loud, replace(loud, samples=spell("abc"))], references)
    assert (scores["silent"], scores["clipped"]) == (1.0, 1.0)
    stuck = replace(nothing, samples=np.ones(4000, np.float32))
    assert stuck.is_silent and stuck.is_clipped
    assert scores["mel_l1"] == pytest.approx((0.5 + 0.7 + 0.7) / 3)
    assert np.isfinite(scores["mcd"])
    with pytest.raises(DataError, match="no examples to score"):
        task.score([], [])


# --- speakers and state


def test_a_name_has_a_direction_of_its_own() -> None:
    ann = name_vector("ann", 64)
    assert torch.equal(ann, name_vector("ann", 64))
    assert float(ann.norm()) == pytest.approx(1.0)
    assert abs(float(ann @ name_vector("ben", 64))) < 0.5


def test_vectors_are_read_from_a_file(tmp_path: Path) -> None:
    save_file({"ann": np.ones(12, np.float32), "ben": np.eye(3, 12, dtype=np.float32)}, tmp_path / "x.safetensors")
    np.save(tmp_path / "one.npy", np.full(12, 2.0, np.float32))
    vectors = read_vectors(str(tmp_path / "x.safetensors"))
    speakers = Speakers.of(["ann", "ben", "ann"], vectors)
    assert speakers.usual == "ann" and speakers.number("ben") == 1
    assert float(speakers.vector("ben", 12).norm()) == pytest.approx(1.0)
    assert Speakers.of(["zoe"], read_vectors(str(tmp_path / "one.npy"))).vector("zoe", 12)[0] == pytest.approx(12**-0.5)
    again = Speakers.from_state(json.loads(json.dumps(speakers.state())))
    assert torch.equal(again.vector("ann", 12), speakers.vector("ann", 12)) and again.counts == speakers.counts
    with pytest.raises(ConfigError, match="no vector for the speaker 'bern'; did you mean 'ben'"):
        Speakers.of(["bern"], vectors)
    with pytest.raises(ConfigError, match="has 12 numbers, the base model takes 512"):
        speakers.vector("ann", 512)


@pytest.mark.parametrize("name", ["x.txt", "absent.npy", "broken.safetensors", "text.npy"])
def test_files_that_hold_no_vectors_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.txt").touch()
    (tmp_path / "broken.safetensors").write_bytes(b"none")
    np.save(tmp_path / "text.npy", np.array(["a"]))
    with pytest.raises(ConfigError, match=f"speaker_embeddings: .*{name}"):
        read_vectors(str(tmp_path / name))


def test_the_state_brings_speakers_and_pace_back(pair: tuple[SpeechSynthesis, BaseModel]) -> None:
    task, _ = pair
    again = SpeechSynthesis()
    again.restore(json.loads(json.dumps(task.state())))
    assert again.state() == task.state()
    assert 5 < task.state()["frames_per_token"] < 10
    with pytest.raises(FormatError, match="speakers"):
        again.restore({"columns": {}})
    with pytest.raises(FormatError, match="frames_per_token"):
        again.restore({**task.state(), "frames_per_token": "many"})
    with pytest.raises(ConfigError, match="before it has read"):
        SpeechSynthesis().state()
