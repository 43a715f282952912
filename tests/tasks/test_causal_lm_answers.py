"""What language models write: repeatable, whatever the batch; streamed in whole characters; and where it ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tasks.writers import CHATML, FAMILIES, POSITIONS, make_base, make_task, make_tokenizer

from loraloom.data.table import Example
from loraloom.errors import ConfigError, DataError
from loraloom.tasks.base import AnswerOptions, Answers, BaseModel
from loraloom.tasks.causal_lm import CausalLM
from loraloom.tasks.language.generation import Draw, Pieces, Sampling, Written, continuation

PROMPTS = ["the cat", "a", "then it was late and"]
CHANCE = AnswerOptions(temperature=1.0, top_p=0.9, seed=4, max_new_tokens=12)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("writers")
    return {family: make_base(root / family, family) for family in FAMILIES}


def ask(task: CausalLM, base: BaseModel, *prompts: str, options: AnswerOptions = CHANCE) -> list[Written]:
    features = task.encode([task.question(prompt, line) for line, prompt in enumerate(prompts, 1)], base).features
    return task.answer(base.model, features, base, options)


def end_nowhere(base: BaseModel) -> None:
    """Of hundreds of logits around 0, the largest is above 0: the end is then never the most probable token."""
    weight = base.model.get_output_embeddings().weight  # type: ignore[operator]
    with torch.no_grad():
        weight[2] = 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_writes_the_same_whatever_the_batch(family: str, folders: dict[str, Path]) -> None:
    task, base = make_task(folders[family])
    assert isinstance(task, Answers)
    together = ask(task, base, *PROMPTS)
    assert [ask(task, base, prompt)[0] for prompt in PROMPTS] == together
    assert ask(task, base, *reversed(PROMPTS)) == together[::-1]
    other = ask(task, base, *PROMPTS, options=CHANCE.model_copy(update={"seed": 5}))
    assert [written.text for written in other] != [written.text for written in together]
    assert len({written.text for written in together}) == len(PROMPTS)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_without_a_word_on_chance_the_most_probable_token_is_written(family: str, folders: dict[str, Path]) -> None:
    task, base = make_task(folders[family])
    found = ask(task, base, *PROMPTS, options=AnswerOptions(max_new_tokens=6))
    for prompt, written in zip(PROMPTS, found, strict=True):
        ids = [1, *base.processor(prompt, add_special_tokens=False)["input_ids"]]
        start = len(ids)
        while len(ids) < start + 6 and (len(ids) == start or ids[-1] != 2):
            with torch.no_grad():
                ids.append(int(base.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        new = [token for token in ids[start:] if token != 2]
        assert written.text == continuation(base.processor, np.array(ids[:start]), new)
        assert written.tokens == len(new)


def test_a_stream_says_what_is_written_in_whole_characters() -> None:
    tokenizer = make_tokenizer()
    text = "žluťoučký 漢字 👩‍👧 end"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > len(text)
    heard: list[str] = []
    prompt = np.array([1, 70, 71])
    pieces = Pieces(tokenizer, prompt, [2], heard.append)
    pieces.put(torch.tensor([prompt.tolist()]))
    for token in [*ids, 2]:
        pieces.put(torch.tensor([token]))
    assert "".join(heard) == text
    assert max(map(len, heard)) == 1
    pieces.finish(text)
    assert "".join(heard) == text


def test_bytes_that_never_become_a_character_are_said_at_the_end() -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer("až", add_special_tokens=False)["input_ids"][:-1]
    heard: list[str] = []
    pieces = Pieces(tokenizer, np.array([1]), [2], heard.append)
    pieces.put(torch.tensor([[1]]))
    for token in ids:
        pieces.put(torch.tensor([token]))
    assert heard == ["a"]
    pieces.finish(continuation(tokenizer, np.array([1]), ids))
    assert heard == ["a", "\ufffd"]


@pytest.mark.parametrize("options", [CHANCE, AnswerOptions(beams=2, max_new_tokens=5)])
def test_what_is_heard_is_what_is_returned(options: AnswerOptions, folders: dict[str, Path]) -> None:
    task, base = make_task(folders["llama"])
    features = task.encode([task.question(prompt, 1) for prompt in PROMPTS], base).features
    heard: list[str] = []
    written = task.answer(base.model, features, base, options, heard.append)
    assert "".join(heard) == "".join(one.text for one in written)
    assert written == task.answer(base.model, features, base, options)


def test_a_text_ends_at_its_end_token(folders: dict[str, Path]) -> None:
    task, base = make_task(folders["llama"])
    weight = base.model.get_output_embeddings().weight  # type: ignore[operator]
    with torch.no_grad():
        ids = torch.tensor([[1, *base.processor("the", add_special_tokens=False)["input_ids"]]])
        state = base.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
        weight[2] = 50 * state
    assert ask(task, base, "the")[0] == Written("", 0, "end")


def test_a_chats_answer_ends_with_the_turn(tmp_path: Path) -> None:
    task, base = make_task(make_base(tmp_path, template=CHATML))
    task.restore({**task.state(), "kind": "messages"})
    mark = base.processor.convert_tokens_to_ids("<|im_end|>")
    weight = base.model.get_output_embeddings().weight  # type: ignore[operator]
    with torch.no_grad():
        feature = task.encode([task.question("hi", 1)], base).features[0]
        ids = torch.from_numpy(feature.inputs["input_ids"])[None]
        weight[mark] = 50 * base.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
    assert ask(task, base, "hi")[0].stopped == "end"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_writing_stops_where_the_models_context_ends(family: str, folders: dict[str, Path]) -> None:
    task, base = make_task(folders[family])
    end_nowhere(base)
    options = AnswerOptions(max_new_tokens=30)
    long, short = ask(task, base, "x" * (POSITIONS - 11), "a", options=options)
    assert (long.tokens, long.stopped) == (10, "context")
    assert (short.tokens, short.stopped) == (30, "length")
    assert ask(task, base, "a", options=options)[0] == short
    with pytest.raises(DataError, match=f"prompt 2 has {POSITIONS + 1} tokens, but the model takes {POSITIONS}"):
        ask(task, base, "a", "x" * POSITIONS)


def test_a_tokenizer_without_end_or_padding_writes_as_much_as_is_asked_for(tmp_path: Path) -> None:
    task, base = make_task(make_base(tmp_path, special=False))
    base.model.generation_config.eos_token_id = None  # type: ignore[union-attr]
    found = ask(task, base, *PROMPTS)
    assert [(one.tokens, one.stopped) for one in found] == [(12, "length")] * 3
    assert [ask(task, base, prompt)[0] for prompt in PROMPTS] == found


def test_a_base_in_bf16_scores_and_writes(folders: dict[str, Path]) -> None:
    exact, whole = make_task(folders["llama"])
    task = CausalLM()
    base = task.load(str(folders["llama"]), dtype=torch.bfloat16)
    rows = task.encode([Example({"text": "then it was late"}, "some", 1)], base).features
    batch = task.collate(rows, base)
    loss, items = task.loss(base.model, batch)
    assert loss.dtype == torch.float32
    assert loss.item() / items == pytest.approx(exact.loss(whole.model, batch)[0].item() / items, rel=0.02)
    assert ask(task, base, *PROMPTS) == ask(task, base, *PROMPTS)


def test_a_checkpoints_own_settings_do_not_interfere(folders: dict[str, Path]) -> None:
    task, base = make_task(folders["llama"])
    options = AnswerOptions(max_new_tokens=8)
    before = ask(task, base, "the cat", options=options)
    own = base.model.generation_config
    own.update(do_sample=True, temperature=3.0, repetition_penalty=9.0)  # type: ignore[union-attr, operator]
    assert ask(task, base, "the cat", options=options) == before
    assert base.model.generation_config is own


def test_beams_and_chance_exclude_each_other() -> None:
    assert Sampling.of(AnswerOptions(beams=3)).temperature == 0
    assert Sampling.of(AnswerOptions(seed=1)).temperature == 1
    with pytest.raises(ConfigError, match="3 beams look for the most probable text"):
        Sampling.of(AnswerOptions(beams=3, temperature=0.5))


def test_tokens_are_drawn_by_their_probability_within_the_nucleus() -> None:
    probabilities = torch.tensor([[0.05, 0.5, 0.15, 0.3]])
    counts = torch.zeros(4)
    draw = Draw(Sampling(1.0, 0.9, 0, 1, 1), [np.array([1])])
    for _ in range(4000):
        counts[draw(torch.zeros(1, 1), probabilities.log()).argmax()] += 1
    expected = torch.tensor([0.0, 0.5, 0.15, 0.3]) / 0.95
    assert counts[0] == 0
    torch.testing.assert_close(counts / 4000, expected, atol=0.025, rtol=0)
    cold = Draw(Sampling(0.05, 1.0, 0, 1, 1), [np.array([1])])
    assert all(cold(torch.zeros(1, 1), probabilities.log()).argmax() == 1 for _ in range(50))


def test_an_answer_is_described_as_plain_data(folders: dict[str, Path]) -> None:
    task, base = make_task(folders["llama"])
    assert task.describe(Written("a b", 2, "end")) == {"answer": "a b", "tokens": 2, "stopped": "end"}
    rows = task.encode([Example({"text": "hello"}, "some", 1)], base).features
    assert task.describe(task.predict(base.model, task.collate(rows, base), base)[0])["tokens"] == 6
