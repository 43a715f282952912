"""What a language model learns to write: plain text, completions of prompts, or conversations."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

from loraloom.data.check.duplicates import check_same_texts, compare_texts
from loraloom.data.check.findings import SPEAKERS, Findings, shortened
from loraloom.data.check.modality import Layout, Sheet
from loraloom.data.check.part import Part, Progress, Tokens
from loraloom.data.check.rows import read_examples, read_rows
from loraloom.data.check.texts import check_texts
from loraloom.data.columns import Role
from loraloom.data.config import DataConfig
from loraloom.data.records import Records
from loraloom.data.table import Example

TEXT = Role("text", ("text", "content", "document", "body", "story", "passage", "code"))
PROMPT = Role("prompt", ("prompt", "instruction", "question", "query", "input", "source"))
CONTEXT = Role("context", ("input", "context"))
COMPLETION = Role("completion", ("completion", "output", "response", "answer", "target", "chosen"))
MESSAGES = Role("messages", ("messages", "conversations", "conversation", "dialogue", "chat"), "any")

SHORT = 4
"""Words below which a text that comes twice is a turn of phrase, such as a greeting, and gives nothing away."""

_OTHER_NAMES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


class Writing:
    """Rows of a text, of a prompt and its completion, or of a list of messages."""

    sheet: ClassVar[Sheet] = "texts"
    layout: ClassVar[Layout] = "table"

    def read(self, part: Part, data: DataConfig, progress: Progress | None = None) -> None:
        """Read every row, by whichever of the three its columns are."""
        records = read_rows(part, data)
        roles = _roles_of(records, data)
        # a row without a prompt or completion is noted below, as what it is
        read_examples(part, records, roles, data.columns, () if PROMPT in roles else [role.name for role in roles])
        examples = [_with_text(part, example) for example in part.examples]
        part.examples = [example for example in examples if example is not None]

    def examine(self, part: Part, tokens: Tokens | None = None) -> None:
        """Lengths, odd texts, conversations out of order, duplicates."""
        roles = ("prompt", "completion") if "completion" in part.columns else ("text",)
        check_texts(part, roles, tokens)
        for example in part.examples:
            if "messages" in example.values:
                _check_order(part, example)
        if messages := [len(one.values["messages"]) for one in part.examples if "messages" in one.values]:
            part.series["messages"] = [float(count) for count in messages]
        check_same_texts(part)

    def compare(self, train: Part, held_out: Part, findings: Findings) -> None:
        """Texts that training has seen."""
        compare_texts(train, held_out, findings, ignore=("prompt", "completion", "context"), short=SHORT)


def _roles_of(records: Records, data: DataConfig) -> tuple[Role, ...]:
    """Messages if there is a column of them, else prompt and completion, else text: as training chooses."""
    names = {name.strip().casefold().replace(" ", "_").replace("-", "_") for name in records.names}

    def has(role: Role) -> bool:
        return data.columns.get(role.name) in records.names or bool(names & set(role.candidates))

    if has(MESSAGES):
        return (MESSAGES,)
    if has(PROMPT) and has(COMPLETION):
        return (PROMPT, COMPLETION, CONTEXT)
    return (TEXT,)


def _with_text(part: Part, example: Example) -> Example | None:
    """The example with all of its text under "text"; None, noted, for one that cannot be learnt from."""
    if "messages" in part.columns:
        return _conversation(part, example)
    values = example.values
    if "completion" not in part.columns:
        return example
    for role in ("completion", "prompt"):
        if role not in values:
            there = " ".join(str(value) for value in values.values())
            part.findings.add(f"no-{role}", f"{part.place(example)} {shortened(there, 40)!r}")
            return None
    text = " ".join(values[role] for role in ("prompt", "context", "completion") if role in values)
    return replace(example, values={**values, "text": text})


def _conversation(part: Part, example: Example) -> Example | None:
    """The example with its messages, and all that is said as its text."""
    given = example.values["messages"]
    messages = _messages(given)
    if messages is None:
        part.findings.add("not-a-conversation", f"{part.place(example)} {shortened(given, 40)}")
        return None
    text = "\n".join(f"{one['role']}: {one['content']}" for one in messages)
    return replace(example, values={"messages": messages, "text": text})


def _messages(given: Any) -> list[dict[str, str]] | None:
    """Messages of a role and its words; None for what is no such list. A JSON text of one counts as one."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return None
    if not isinstance(given, list) or not given:
        return None
    messages = [_message(one) for one in given]
    return None if None in messages else [one for one in messages if one is not None]


def _message(one: Any) -> dict[str, str] | None:
    """One message; "from" and "value" are understood too."""
    if not isinstance(one, dict):
        return None
    role, content = one.get("role", one.get("from")), one.get("content", one.get("value"))
    if content is None and one.get("tool_calls"):
        content = "(calls a tool)"
    if not isinstance(role, str) or not isinstance(content, str):
        return None
    return {"role": _OTHER_NAMES.get(role, role), "content": content}


def _check_order(part: Part, example: Example) -> None:
    """Note what is odd about who speaks, and when."""
    messages, place = example.values["messages"], part.place(example)
    speakers = [one["role"] for one in messages]
    if strange := [role for role in speakers if role not in SPEAKERS]:
        part.findings.add("unknown-role", f"{place} {strange[0]!r}")
    if "assistant" not in speakers[1:]:
        part.findings.add("no-assistant", place)
    elif speakers[-1] != "assistant":
        part.findings.add("ends-on-question", f"{place} ({speakers[-1]} last)")
    if any(not one["content"].strip() for one in messages):
        part.findings.add("empty-message", place)
    if any(one == other and one in ("user", "assistant") for one, other in pairwise(speakers)):
        part.findings.add("not-in-turn", place)
