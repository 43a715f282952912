"""From a task's own reading of one source to the examples of a run: what every task does alike.

Filtering by length, duplicates, the part set aside for evaluation, limits, leaks between the parts, hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from loraloom.data.config import DataConfig
from loraloom.data.split import drop_duplicates, find_leaks, sample_examples, split_examples
from loraloom.data.table import Example, Table
from loraloom.errors import DataError
from loraloom.tasks.base import Splits

Read = Callable[[str, bool], Table]
"""A task's reader of (source, whether these are held-out examples)."""
HELD_OUT_SPLITS = ("test", "validation", "valid", "val", "dev")


def read_splits(
    data: DataConfig,
    read: Read,
    *,
    seed: int,
    text_role: str | None = None,
    stratify_by: str | None = None,
    ignore: Collection[str] = (),
    accept: Callable[[Sequence[Example]], None] | None = None,
) -> tuple[Splits, Table]:
    """The training and evaluation examples that `data` means, and the training table.

    `text_role` is the role that `data.words` counts words of; `stratify_by` the one whose values are set
    aside alike; `ignore` the roles that are no part of what makes two examples the same (of files, all but
    "sha256"). `accept` may refuse the held-out examples, e.g. for labels that training never saw. Raises
    DataError for anything that cannot be used.
    """
    table = with_words(read(data.train, False), data, text_role)
    examples, notes = table.examples, list(table.notes)
    if data.drop_duplicates:
        examples, dropped = drop_duplicates(examples, ignore=ignore)
        notes.append(f"{table.name}: {len(dropped)} rows that came before were dropped")
    hashes = {table.name: table.sha256}
    if data.eval is None and data.eval_split is None:
        train, evaluation, note = _set_aside(examples, data, seed, stratify_by, ignore)
        notes.append(note)
    else:
        held_out = with_words(read(data.eval or data.train, True), data, text_role)
        if accept is not None:
            accept(held_out.examples)
        evaluation = held_out.examples
        train = sample_examples(examples, data.limit, seed) if data.limit else examples
        notes += [*held_out.notes, *leak_notes(train, evaluation, ignore)]
        hashes[_other_name(held_out.name, hashes, data.eval_split)] = held_out.sha256
    if data.eval_limit and data.eval_limit < len(evaluation):
        notes.append(f"scored on {data.eval_limit} of {len(evaluation)} held-out examples, drawn by seed {seed}")
        evaluation = sample_examples(evaluation, data.eval_limit, seed)
    return Splits(train, evaluation, notes, hashes), table


def with_words(table: Table, data: DataConfig, text_role: str | None) -> Table:
    """The examples whose text has as many words as `data.words` asks for. Raises DataError when none has."""
    if data.word_range is None or text_role is None:
        return table
    least, most = data.word_range
    kept = [
        example
        for example in table.examples
        if least <= len(str(example.values.get(text_role, "")).split()) <= (most or 10**9)
    ]
    if not kept:
        raise DataError(f"{table.name}: none of its {len(table.examples)} rows has {data.words} words")
    note = f"{table.name}: {len(kept)} of {len(table.examples)} rows have {data.words} words and were kept"
    return replace(table, examples=kept, notes=[*table.notes, note])


def _set_aside(
    examples: list[Example], data: DataConfig, seed: int, stratify_by: str | None, ignore: Collection[str]
) -> tuple[list[Example], list[Example], str]:
    """Part the examples in two; with a limit, evaluation shrinks in proportion."""
    if data.limit:
        examples = sample_examples(examples, round(data.limit / (1 - data.eval_fraction)), seed)
    train, evaluation = split_examples(examples, data.eval_fraction, seed, stratify_by, ignore=ignore)
    if not evaluation:
        raise DataError(
            f"{data.train}: none of its {len(examples)} rows can be set aside for evaluation, being too "
            "few or too much alike; give more rows, or an evaluation file"
        )
    train = sample_examples(train, data.limit, seed) if data.limit else train
    alike = f", of each {stratify_by} alike" if stratify_by else ""
    note = (
        f"{data.train}: {len(evaluation)} of {len(examples)} rows were set aside for evaluation (seed "
        f"{seed}){alike}, with near-duplicates on one side"
    )
    return train, evaluation, note


def leak_notes(train: Sequence[Example], evaluation: Sequence[Example], ignore: Collection[str]) -> list[str]:
    """A warning when evaluation examples are also among the training examples."""
    leaks = find_leaks(train, evaluation, ignore=ignore)
    if not leaks:
        return []
    exact = sum(leak.exact for leak in leaks)
    first = leaks[0]
    return [
        f"{len(leaks)} of {len(evaluation)} evaluation examples repeat training examples "
        f"({exact} word for word, {len(leaks) - exact} nearly), e.g. {first.evaluation.place} as "
        f"{first.train.place}: scores on them say little"
    ]


def _other_name(name: str, taken: Collection[str], split: str | None) -> str:
    """A name for a second split of the same dataset."""
    return f"{name}:{split or 'evaluation'}" if name in taken else name
