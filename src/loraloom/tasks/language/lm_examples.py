"""What a language model learns from, as examples: texts, prompts with completions, or chat messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from loraloom.data.columns import Role
from loraloom.data.config import DataConfig
from loraloom.data.records import Records, quoted
from loraloom.data.sources import read_source
from loraloom.data.table import Example, Table, table_of
from loraloom.data.text_files import COLUMN, SUFFIX
from loraloom.errors import ConfigError, DataError, one_error
from loraloom.tasks.language.chat import for_reply, read_messages, spoken_text
from loraloom.tasks.splits import HELD_OUT_SPLITS

Kind = Literal["text", "prompt", "messages"]

TEXT = Role("text", ("text", "content", "document", "body", "story", "passage", "code"))
PROMPT = Role("prompt", ("prompt", "instruction", "question", "query", "input", "source"))
CONTEXT = Role("context", ("input", "context"))
COMPLETION = Role("completion", ("completion", "output", "response", "answer", "target", "chosen"))
MESSAGES = Role("messages", ("messages", "conversations", "conversation", "dialogue", "chat"), "any")
TOOLS = Role("tools", ("tools",), "any")

ROLES: dict[Kind, tuple[Role, ...]] = {
    "messages": (MESSAGES, TOOLS),
    "prompt": (PROMPT, COMPLETION, CONTEXT),
    "text": (TEXT,),
}
_REQUIRED: dict[Kind, tuple[str, ...]] = {
    "messages": (MESSAGES.name,),
    "prompt": (PROMPT.name, COMPLETION.name),
    "text": (TEXT.name,),
}
_MOST_FAULTS = 5


def read_examples(
    source: str, data: DataConfig, *, known: Mapping[str, str], held_out: bool, labelled: bool, join: int | None = None
) -> tuple[Table, Kind]:
    """Examples of one source, and of which kind they are, told by its columns.

    "text" examples hold `text`; "prompt" ones `prompt` and `completion`; "messages" ones `messages`, the
    spoken `text`, and `tools` where there are any. Unless `labelled`, each is a question that holds `prompt`,
    for messages beside `messages` up to where the assistant is to speak. `known` are the columns that
    training read, which are looked for first. Paragraphs of a .txt file are joined up to `join` characters.
    Raises DataError for what cannot be used.
    """
    split = data.eval_split if held_out else data.split
    prefer = HELD_OUT_SPLITS if held_out else ("train",)
    records = read_source(source, delimiter=data.delimiter, split=split, prefer=prefer)
    if join is not None and labelled and _is_plain_text(source, records):
        records = _joined(records, source, join)
    given = {**known, **data.columns}
    kind = find_kind(records.names, given, labelled=labelled)
    if kind == "text" and not _has(records.names, TEXT, given) and _has(records.names, PROMPT, given):
        raise DataError(
            f"{source} has a column for the prompt but none for the completion: it has {quoted(records.names)}; call "
            "it 'completion', or give it with 'columns'"
        )
    roles = [Role(role.name, (*_first(known, role), *role.candidates), role.kind) for role in ROLES[kind]]
    required = [name for name in _REQUIRED[kind] if labelled or name != COMPLETION.name]
    table = table_of(
        source,
        records,
        roles if labelled else [role for role in roles if role.name != COMPLETION.name],
        _given(data.columns, kind, labelled),
        required,
        where=None if held_out and not labelled else data.where,
        skip_bad=data.skip_bad,
    )
    return _finished(table, kind, labelled=labelled, skip_bad=data.skip_bad), kind


def _is_plain_text(source: str, records: Records) -> bool:
    """Whether the records are the paragraphs of one .txt file."""
    folder = Path(source).expanduser().is_dir()
    return records.names == (COLUMN,) and records.unit == "line" and (folder or source.lower().endswith(SUFFIX))


def find_kind(names: Sequence[str], given: Mapping[str, str], *, labelled: bool = True) -> Kind:
    """Which kind of examples columns of these names hold; messages go before prompts, prompts before texts."""
    for kind, needed in _REQUIRED.items():
        roles = [role for role in ROLES[kind] if role.name in needed and (labelled or role != COMPLETION)]
        if all(_has(names, role, given) for role in roles):
            return kind
    return "text"


def _has(names: Sequence[str], role: Role, given: Mapping[str, str]) -> bool:
    plain = {name.strip().casefold().replace(" ", "_").replace("-", "_") for name in names}
    return given.get(role.name) in names or bool(plain & set(role.candidates))


def _first(known: Mapping[str, str], role: Role) -> tuple[str, ...]:
    return (known[role.name],) if role.name in known else ()


def _given(columns: Mapping[str, str], kind: Kind, labelled: bool) -> dict[str, str]:
    """The user's columns for the roles of this kind. Raises ConfigError for roles that no kind has."""
    every = [role.name for roles in ROLES.values() for role in roles]
    if unknown := [role for role in columns if role not in every]:
        raise ConfigError(f"columns: {unknown[0]!r} is no role of causal-lm; it has {quoted(every)}")
    own = [role.name for role in ROLES[kind] if labelled or role.name != COMPLETION.name]
    return {role: name for role, name in columns.items() if role in own}


def _finished(table: Table, kind: Kind, *, labelled: bool, skip_bad: bool) -> Table:
    """The table with every example in the form that its kind has."""
    examples, faults = [], []
    for example in table.examples:
        try:
            examples.append(replace(example, values=_values(example.values, kind, labelled)))
        except DataError as error:
            faults.append(f"{example.place}: {error}")
    if faults and not (skip_bad and examples):
        more = [f"and {len(faults) - _MOST_FAULTS} more"] if len(faults) > _MOST_FAULTS else []
        raise one_error(DataError, f"{table.name}, messages", [*faults[:_MOST_FAULTS], *more])
    notes = [f"{table.name}: {len(faults)} rows left out as unusable, e.g. {faults[0]}"] if faults else []
    return replace(table, examples=examples, notes=[*table.notes, *notes])


def _values(values: Mapping[str, Any], kind: Kind, labelled: bool) -> dict[str, Any]:
    if kind == "messages":
        return _of_messages(values, labelled)
    if kind == "text":
        return dict(values) if labelled else {"prompt": values[TEXT.name]}
    context = values.get(CONTEXT.name)
    prompt = values[PROMPT.name] if context is None else f"{values[PROMPT.name]}\n\n{context}"
    return {"prompt": prompt, "completion": values[COMPLETION.name]} if labelled else {"prompt": prompt}


def _of_messages(values: Mapping[str, Any], labelled: bool) -> dict[str, Any]:
    messages = read_messages(values[MESSAGES.name])
    tools = {TOOLS.name: values[TOOLS.name]} if TOOLS.name in values else {}
    if labelled:
        if not any(message["role"] == "assistant" for message in messages[1:]):
            raise DataError("no message of the role 'assistant' follows another, so there is nothing to learn")
        return {MESSAGES.name: messages, "text": spoken_text(messages), **tools}
    asked = for_reply(messages)
    if not asked:
        raise DataError("there is no message to answer")
    return {"prompt": asked[-1]["content"], MESSAGES.name: asked, **tools}


def _joined(records: Records, source: str, most: int) -> Records:
    """Paragraphs that follow each other as documents of up to `most` characters."""
    texts: list[str] = []
    lines: list[int] = []
    for line, text in zip(records.lines, records.column(0), strict=True):
        if texts and len(texts[-1]) + 2 + len(text) <= most:
            texts[-1] += "\n\n" + text
        else:
            texts.append(text)
            lines.append(line)
    note = f"{source}: joined to {len(texts)} documents of up to {most} characters"
    return replace(records, lines=lines, column=lambda _index: list(texts), notes=[*records.notes, note])


def question_of(given: str, line: int) -> Example:
    """A prompt from the command line. Raises DataError for one that is empty."""
    if not given.strip():
        raise DataError(f"text {line} is empty; a prompt to go on from is expected")
    return Example({"prompt": given}, "text", line)
