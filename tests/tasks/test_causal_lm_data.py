"""What a language model learns from: columns told apart, prompts with completions, chats, and bad input by its line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.tasks.writers import CHATML, FORGETFUL, STRICT, learnt, make_base, make_task, whole

from loraloom.data.config import DataConfig
from loraloom.errors import ConfigError, DataError
from loraloom.tasks.base import BaseModel, Encoded
from loraloom.tasks.causal_lm import CausalLM
from loraloom.tasks.language.chat import dialogues, end_of_turn, read_messages, renderer
from loraloom.tasks.language.lm_examples import find_kind

Rows = Callable[[list[dict[str, Any]]], str]
Make = Callable[..., tuple[CausalLM, BaseModel]]


def said(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


TALK = said(("system", "be brief"), ("user", "hello"), ("assistant", "hi"), ("user", "how"), ("assistant", "well"))


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    def writer(given: list[dict[str, Any]]) -> str:
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in given), "utf-8")
        return str(path)

    return writer


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def maker(template: str | None = None, **options: Any) -> tuple[CausalLM, BaseModel]:
        return make_task(make_base(tmp_path / "base", template=template), **options)

    return maker


def read(task: CausalLM, source: str, **settings: Any) -> list[str]:
    """Train and score on the same file; the notes."""
    return task.read(DataConfig(train=source, eval=source, **settings), seed=0).notes


def rows_of(task: CausalLM, base: BaseModel, source: str, **settings: Any) -> Encoded:
    splits = task.read(DataConfig(train=source, eval=source, **settings), seed=0)
    return task.encode(splits.train, base)


# --- columns


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["text", "chapter"], "text"),
        (["id", "prompt", "completion"], "prompt"),
        (["instruction", "input", "output"], "prompt"),
        (["Question", "Answer"], "prompt"),
        (["messages", "text"], "messages"),
        (["content"], "text"),
    ],
)
def test_columns_tell_what_is_learnt(names: list[str], kind: str) -> None:
    assert find_kind(names, {}) == kind


def test_columns_of_other_names_can_be_given(rows: Rows, make: Make) -> None:
    task, base = make()
    source = rows([{"q": "a ", "a": "b"}, {"q": "c ", "a": "d"}])
    found = rows_of(task, base, source, columns={"prompt": "q", "completion": "a"})
    assert [whole(feature, base) for feature in found.features] == ["<s>a b</s>", "<s>c d</s>"]
    with pytest.raises(ConfigError, match="'label' is no role of causal-lm"):
        read(task, source, columns={"label": "a"})


def test_an_instruction_and_its_input_are_one_prompt(rows: Rows, make: Make) -> None:
    task, base = make()
    source = rows(
        [{"instruction": "add", "input": "1 2", "output": "3"}, {"instruction": "say", "input": "", "output": "x"}]
    )
    first, second = rows_of(task, base, source).features
    assert (whole(first, base), learnt(first, base)) == ("<s>add\n\n1 2\n3</s>", "3</s>")
    assert whole(second, base) == "<s>say\nx</s>"


def test_paragraphs_of_a_text_are_documents_or_joined(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n\nthree and four\n\nfive", "utf-8")
    task, base = make()
    apart = rows_of(task, base, str(path))
    assert [whole(f, base) for f in apart.features] == [f"<s>{t}</s>" for t in ("one", "two", "three and four", "five")]
    task, base = make(join_paragraphs=10)
    joined = rows_of(task, base, str(path))
    assert [whole(f, base) for f in joined.features] == [
        f"<s>{t}</s>" for t in ("one\n\ntwo", "three and four", "five")
    ]
    assert [example.line for example in task.read_more(str(path), DataConfig(train=str(path)), labelled=True)] == [
        1,
        5,
        7,
    ]


# --- prompts and completions


def test_only_the_completion_is_learnt_unless_all_is_wanted(rows: Rows, make: Make) -> None:
    source = rows([{"prompt": "two and two", "completion": " make four"}] * 2)
    for train_on, wanted in (("completion", " make four</s>"), ("all", "two and two make four</s>")):
        task, base = make(train_on=train_on)
        feature = rows_of(task, base, source).features[0]
        assert learnt(feature, base) == wanted
        assert feature.reference == ((0, len(wanted) - len("</s>")),)


def test_tokens_do_not_cross_the_seam(rows: Rows, make: Make) -> None:
    # "t" + "h" are one token when they stand together, but the prompt is tokenised alone when the model is asked
    task, base = make(separator="")
    feature = rows_of(task, base, rows([{"prompt": "a t", "completion": "he"}] * 2)).features[0]
    assert (whole(feature, base), learnt(feature, base)) == ("<s>a the</s>", "he</s>")
    asked = task.encode([task.question("a t", 1)], base).features[0]
    ids = feature.inputs["input_ids"]
    assert (ids[: asked.length] == asked.inputs["input_ids"]).all()


def test_a_line_break_parts_what_the_data_do_not_part(rows: Rows, make: Make) -> None:
    task, base = make()
    notes = read(task, rows([{"prompt": "2+2", "completion": "4"}, {"prompt": "1+1", "completion": "2"}]))
    assert any("a line break put between the two" in note for note in notes)
    assert whole(task.encode([task.question("3+3", 1)], base).features[0], base) == "<s>3+3\n"
    read(task, rows([{"prompt": "2+2=", "completion": " 4"}] * 2))
    assert whole(task.encode([task.question("3+3=", 1)], base).features[0], base) == "<s>3+3="


def test_a_prompt_too_long_to_leave_anything_is_counted_and_named(rows: Rows, make: Make) -> None:
    task, base = make(max_length=20)
    source = rows([{"prompt": "p" * length, "completion": "learn this"} for length in (5, 40, 12, 30)])
    with pytest.raises(DataError, match=r"2 of 4 examples cannot be learnt from \(.*:2, .*:4\): nothing is left"):
        rows_of(task, base, source)
    found = rows_of(task, base, source, skip_bad=True)
    assert ["2 of 4 examples" in note for note in found.notes] == [True]
    assert [learnt(feature, base) for feature in found.features] == ["learn this</s>", "learn "]
    assert [feature.reference[0] for feature in found.features] == [(0, 10), (2, 6)]
    assert found.truncated == 1


# --- chats


def test_each_answer_of_the_assistant_is_learnt_with_its_end(rows: Rows, make: Make) -> None:
    task, base = make(CHATML)
    feature = rows_of(task, base, rows([TALK, TALK])).features[0]
    assert learnt(feature, base) == "hi<|im_end|>well<|im_end|>"
    assert whole(feature, base).startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhello<|im_end|>")
    assert feature.reference == ((0, len("hiwell")),)


def test_everything_can_be_learnt_of_a_chat(rows: Rows, make: Make) -> None:
    task, base = make(CHATML, train_on="all")
    feature = rows_of(task, base, rows([TALK, TALK])).features[0]
    assert learnt(feature, base) == whole(feature, base).removeprefix("<|im_start|>")


def test_where_a_template_alters_earlier_turns_each_answer_stands_after_what_it_is_asked_with(
    rows: Rows, make: Make
) -> None:
    task, base = make(FORGETFUL)
    talk = said(("user", "a"), ("assistant", "<think>x</think>b"), ("user", "c"), ("assistant", "<think>y</think>d"))
    features = rows_of(task, base, rows([talk, talk])).features[:2]
    assert [learnt(feature, base) for feature in features] == [
        "<think>x</think>b<|im_end|>",
        "<think>y</think>d<|im_end|>",
    ]
    asked = base.processor.apply_chat_template(talk["messages"][:3], tokenize=False, add_generation_prompt=True)
    assert "<think>" not in asked
    assert whole(features[1], base).startswith(asked)
    assert [feature.reference[0][0] for feature in features] == [0, 0]


def test_a_template_that_keeps_earlier_turns_gives_one_row(make: Make) -> None:
    _, base = make(FORGETFUL)
    found = dialogues(TALK["messages"], renderer(base.processor))
    assert len(found) == 1
    assert [found[0].text[low:high] for low, high in found[0].turns] == ["hi<|im_end|>", "well<|im_end|>"]


def test_a_base_without_a_template_gets_a_plain_one(rows: Rows, make: Make) -> None:
    task, base = make()
    read(task, rows([TALK, TALK]))
    base = task.load(base.name)
    assert any("no chat template" in note for note in base.notes)
    feature = task.encode(task.read_more(rows([TALK]), DataConfig(train="x"), labelled=True), base).features[0]
    assert whole(feature, base) == "<s>be brief\nUser: hello\nAssistant: hi</s>\nUser: how\nAssistant: well</s>"
    assert learnt(feature, base) == " hi</s> well</s>"
    other = CausalLM()
    other.restore(json.loads(json.dumps(task.state())))
    assert other.load(base.name).processor.chat_template == base.processor.chat_template


def test_a_prompt_is_put_as_trainings_chats_were(rows: Rows, make: Make) -> None:
    task, base = make(CHATML)
    notes = read(task, rows([TALK, TALK]))
    assert any("the same system message" in note for note in notes)
    asked = whole(task.encode([task.question("what now", 1)], base).features[0], base)
    assert asked == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nwhat now<|im_end|>\n<|im_start|>assistant\n"
    )
    assert end_of_turn(base.processor) == base.processor.convert_tokens_to_ids("<|im_end|>")


def test_a_file_of_chats_is_answered_after_the_last_word_of_the_user(rows: Rows, make: Make) -> None:
    task, base = make(CHATML)
    source = rows([TALK, TALK])
    read(task, source)
    example = task.read_more(source, DataConfig(train=source), labelled=False)[0]
    assert example.values["prompt"] == "how"
    asked = whole(task.encode([example], base).features[0], base)
    assert asked.endswith("<|im_start|>user\nhow<|im_end|>\n<|im_start|>assistant\n")


def test_prompts_can_be_put_through_the_chat_template(rows: Rows, make: Make) -> None:
    task, base = make(CHATML, as_chat=True)
    feature = rows_of(task, base, rows([{"prompt": "a", "completion": "b"}] * 2)).features[0]
    assert whole(feature, base) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"
    assert learnt(feature, base) == "b<|im_end|>"


def test_other_names_for_messages_are_understood() -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    wanted = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert read_messages(turns) == read_messages(json.dumps(turns)) == wanted


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "no messages"),
        ("hello", "text that is no JSON list"),
        ({"role": "user"}, "expected a list of messages, found an object"),
        (["hello"], "message 1 is text, expected an object with 'role' and 'content'"),
        ([{"role": "wizard", "content": "a"}], "message 1 has the role 'wizard', expected one of system"),
        ([{"role": "user", "content": ["a"]}], r"message 1 \(user\) has a list as its content, expected text"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}],
            r"message 2 \(assistant\) is empty",
        ),
        ([{"role": "user", "content": "a"}], "nothing to learn"),
    ],
)
def test_messages_of_a_wrong_shape_are_named_by_their_line(messages: Any, told: str, rows: Rows, make: Make) -> None:
    task, _ = make(CHATML)
    source = rows([TALK, {"messages": messages}])
    with pytest.raises(DataError, match=told) as caught:
        read(task, source)
    assert ":2: " in str(caught.value) or "line 2" in str(caught.value)


def test_bad_messages_can_be_left_out(rows: Rows, make: Make) -> None:
    task, _ = make(CHATML)
    source = rows([TALK, {"messages": ["x"]}, TALK])
    found = task.read(DataConfig(train=source, eval=source, skip_bad=True), seed=0)
    assert len(found.train) == 2
    assert any("1 rows left out as unusable, e.g." in note and ":2:" in note for note in found.notes)


def test_an_order_of_roles_that_the_template_refuses_is_named(rows: Rows, make: Make) -> None:
    task, base = make(STRICT)
    right = said(("user", "a"), ("assistant", "b"))
    source = rows([right, TALK, right])
    with pytest.raises(DataError, match=r"1 of 3 examples.*data.jsonl:2.*refuses messages of system.*must alternate"):
        rows_of(task, base, source)
    assert len(rows_of(task, base, source, skip_bad=True).features) == 2


# --- bad input


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([{"text": "a b"}, {"text": " "}], r"one row has no text \(line 2\)"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a"}], r"one row has no completion \(line 2\)"),
        ([{"prompt": "a", "score": 1}], "none for the completion: it has 'prompt', 'score'"),
        ([{"score": 1, "size": 2}], "no column known to hold the text"),
    ],
)
def test_missing_parts_are_named(given: list[dict[str, Any]], told: str, rows: Rows, make: Make) -> None:
    task, _ = make()
    with pytest.raises(DataError, match=told):
        read(task, rows(given))


def test_an_empty_question_is_refused(make: Make) -> None:
    task, _ = make()
    with pytest.raises(DataError, match="text 3 is empty"):
        task.question(" \n", 3)
