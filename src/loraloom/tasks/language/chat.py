"""Chat messages: their shape, the text that a chat template makes of them, and which of it is the assistant's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from loraloom.errors import DataError

Message = dict[str, Any]
Render = Callable[[Sequence[Message], bool], str]
"""The text of messages; with True, opened for the assistant to go on."""

ROLES = ("system", "developer", "user", "assistant", "tool")
_OTHER_NAMES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}

PLAIN_TEMPLATE = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] }}"
    "{% if eos_token %}{{ eos_token }}{% endif %}{{ '\n' }}"
    "{% else %}{{ raise_exception('only system, user and assistant can be told apart') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""For base models, whose tokenizers come without a template: needs no token that such a model never saw."""


@dataclass(frozen=True)
class Dialogue:
    """Messages as one text, and where in it the assistant speaks."""

    text: str
    turns: tuple[tuple[int, int], ...]
    """Start and end of each answer in characters, the mark that ends the turn included."""


def read_messages(raw: Any) -> list[Message]:
    """Messages as {"role": …, "content": …}, of a list or of its JSON text. Raises DataError without a place.

    Of the names in use, "from"/"value" and "human"/"gpt" are understood too.
    """
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except ValueError:
            raise DataError("the messages are text that is no JSON list") from None
    if not isinstance(raw, list):
        raise DataError(f"expected a list of messages, found {_kind(raw)}")
    if not raw:
        raise DataError("the list of messages is empty")
    messages = [_message(number, one) for number, one in enumerate(raw, start=1)]
    if not any(message["role"] == "user" or _words(message) for message in messages):
        raise DataError("no message says anything")
    return messages


def _message(number: int, raw: Any) -> Message:
    if not isinstance(raw, Mapping):
        raise DataError(f"message {number} is {_kind(raw)}, expected an object with 'role' and 'content'")
    role, content = raw.get("role", raw.get("from")), raw.get("content", raw.get("value"))
    role = _OTHER_NAMES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise DataError(f"message {number} has the role {role!r}, expected one of {', '.join(ROLES)}")
    if content is None and raw.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise DataError(f"message {number} ({role}) has {_kind(content)} as its content, expected text")
    if not content.strip() and not raw.get("tool_calls"):
        raise DataError(f"message {number} ({role}) is empty")
    rest = {key: value for key, value in raw.items() if key not in ("role", "content", "from", "value")}
    return {"role": role, "content": content, **rest}


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "nothing"}
    return names.get(type(value), "a number")


def _words(message: Message) -> str:
    return str(message["content"]).strip()


def spoken_text(messages: Sequence[Message]) -> str:
    """Everything that is said, by whomever: what makes two dialogues the same."""
    return "\n".join(_words(message) for message in messages)


def for_reply(messages: Sequence[Message]) -> list[Message]:
    """The messages up to where the assistant is to speak: without its last answer."""
    kept = list(messages)
    while kept and kept[-1]["role"] == "assistant":
        kept.pop()
    return kept


def common_system(dialogues: Sequence[Sequence[Message]]) -> str | None:
    """The system message with which every dialogue opens, None where they differ or have none."""
    found = {dialogue[0]["content"] if dialogue[0]["role"] == "system" else None for dialogue in dialogues}
    return found.pop() if len(found) == 1 else None


def renderer(tokenizer: PreTrainedTokenizerBase, tools: Any = None) -> Render:
    """What the tokenizer's chat template makes of messages. Its refusals are raised as DataError."""

    def render(messages: Sequence[Message], reply: bool) -> str:
        try:
            text = tokenizer.apply_chat_template(
                list(messages), tools=tools, tokenize=False, add_generation_prompt=reply
            )
        except Exception as error:  # jinja2's errors, and whatever a template's own expressions raise
            reason = " ".join(str(error).split())[:200]
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(f"the chat template refuses messages of {roles} ({reason})") from error
        return cast(str, text)

    return render


def dialogues(messages: Sequence[Message], render: Render) -> list[Dialogue]:
    """Texts in which each of the assistant's answers stands once, after just what it is asked with later.

    An answer begins where the text of the messages before it ends, opened for a reply, and reaches to the
    end of the text of the messages up to it. Templates may write earlier answers otherwise than the newest
    one (leave out its reasoning, say): from there on a text of its own begins, so that what is learnt is
    what will be asked. An answer that opens the dialogue is context only. Raises DataError.
    """
    found: list[Dialogue] = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant" or number == 0:
            continue
        before, after = render(messages[:number], True), render(messages[: number + 1], False)
        if not after.startswith(before):
            before = _shared(before, after, render(messages[:number], False))
        # the space that a template puts after the mark that ends a turn comes before the next turn
        turn = (len(before), len(before) + len(after[len(before) :].rstrip()))
        if found and before.startswith(found[-1].text[: found[-1].turns[-1][1]]):
            found[-1] = Dialogue(after, (*found[-1].turns, turn))
        else:
            found.append(Dialogue(after, (turn,)))
    return found


def _shared(before: str, after: str, unopened: str) -> str:
    """Where a template opens a reply otherwise than it writes one: what both have in common."""
    same = 0
    while same < min(len(before), len(after)) and before[same] == after[same]:
        same += 1
    if same < len(unopened.rstrip()):
        raise DataError("the chat template writes earlier messages anew at every turn, so no answer can be found in it")
    return after[:same]


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token with which the template ends an answer, None where it has none."""
    asked: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        text = dialogues(asked, renderer(tokenizer))[0]
    except DataError:
        return None
    start, end = text.turns[0]
    tail = text.text[start:end].rpartition("b")[2].strip()
    ids = tokenizer.encode(tail, add_special_tokens=False)
    marks = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return ids[0] if ids and ids[0] in marks else None
