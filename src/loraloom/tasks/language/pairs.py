"""Reading sentences with their translations: two columns, or one column of pairs by language.

Datasets of translations often have one column named ``translation`` whose cells hold both sides, e.g.
``{"en": "Hello.", "nl": "Hallo."}``; `read_pairs` takes it for the two columns that it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loraloom.data.config import DataConfig
from loraloom.data.records import decode, digest, quoted
from loraloom.data.table import Example, Role, Table, read_table
from loraloom.errors import ConfigError, DataError, suggest
from loraloom.tasks.language.languages import language_names
from loraloom.tasks.splits import HELD_OUT_SPLITS

SOURCE = Role("source", ("source", "src", "source_text", "input", "english", "en", "sentence", "text"))
TARGET = Role("target", ("target", "tgt", "trg", "target_text", "translation", "output", "reference"))
PAIR = Role("pair", ("translation", "translations", "pair"), "any")

_SAME_ROLE = {"text": SOURCE.name, "label": TARGET.name}
"""What other tasks, and the command line's --text-column and --label-column, call these roles."""
_MOSTLY = 0.5
"""Share of rows that are their own translation above which the columns are doubted."""


def read_pairs(
    source: str,
    data: DataConfig,
    *,
    known: Mapping[str, str],
    languages: Mapping[str, str | None],
    held_out: bool = False,
    labelled: bool = True,
) -> Table:
    """One source of examples with the roles "source" and, if `labelled`, "target".

    `known` are the columns that training read, which are looked for first; then those that are called as the
    `languages` of either role. Raises DataError for rows and columns that cannot be used, ConfigError for
    settings that do not fit. A text file to translate has a sentence on each line.
    """
    if not labelled and Path(source).suffix.lower() == ".txt":
        return _read_lines(source)
    roles = [_role(role, known, languages) for role in ((SOURCE, TARGET) if labelled else (SOURCE,))]
    settings: dict[str, Any] = {
        "delimiter": data.delimiter,
        "split": data.eval_split if held_out else data.split,
        "prefer_splits": HELD_OUT_SPLITS if held_out else ("train",),
        "where": data.where if labelled else None,
        "skip_bad": data.skip_bad,
    }
    columns = {_SAME_ROLE.get(name, name): column for name, column in data.columns.items()}
    given = {name: column for name, column in columns.items() if labelled or name != TARGET.name}
    try:
        return read_table(source, roles, columns=given, **settings)
    except DataError as error:
        table = _read_column_of_pairs(source, settings)
        if table is None:
            raise
        try:
            return _unfold(table, [role.name for role in roles], given, known, languages, data.skip_bad)
        except DataError as fault:
            raise fault from error


def _read_lines(source: str) -> Table:
    """Every line of a text file that is not blank. Raises DataError."""
    try:
        data = Path(source).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from error
    lines = enumerate(decode(data, source).splitlines(), start=1)
    examples = [Example({SOURCE.name: text}, source, line) for line, text in lines if text.strip()]
    return Table(source, examples, {SOURCE.name: "line"}, sha256=digest(data))


def identical_notes(examples: Sequence[Example]) -> list[str]:
    """A warning when most sources are their own translation: the same column twice, or copied by mistake."""
    same = sum(example.values["source"] == example.values["target"] for example in examples)
    if same <= _MOSTLY * len(examples):
        return []
    return [
        f"source and target are the same text in {same} of {len(examples)} training examples: check which columns "
        "were taken"
    ]


def _role(role: Role, known: Mapping[str, str], languages: Mapping[str, str | None]) -> Role:
    column = [known[role.name]] if role.name in known else []
    language = languages.get(role.name)
    named = language_names(language) if language else []
    return replace(role, candidates=(*column, *named, *role.candidates))


def _read_column_of_pairs(source: str, settings: Mapping[str, Any]) -> Table | None:
    """The table if it has a column of pairs."""
    try:
        table = read_table(source, (PAIR,), **settings)
    except (DataError, ConfigError):
        return None
    return table if all(isinstance(example.values["pair"], dict) for example in table.examples) else None


def _unfold(
    table: Table,
    roles: Sequence[str],
    given: Mapping[str, str],
    known: Mapping[str, str],
    languages: Mapping[str, str | None],
    skip_bad: bool,
) -> Table:
    """The examples of a column of pairs by role."""
    found = list(table.examples[0].values["pair"])
    keys = _keys(table, found, roles, {**known, **given}, languages)
    examples, bad = [], []
    for example in table.examples:
        cells = {role: example.values["pair"].get(key) for role, key in keys.items()}
        if all(isinstance(cell, str) and cell.strip() for cell in cells.values()):
            examples.append(replace(example, values=cells))
        else:
            bad.append(example.line)
    told = ", ".join(map(str, bad[:5])) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    if bad and (not skip_bad or not examples):
        raise DataError(f"{table.name}, column 'translation': no text for {quoted(list(keys.values()))} in row {told}")
    notes = [
        *table.notes,
        f"{table.name}: {', '.join(f'{role} is {key!r}' for role, key in keys.items())} of each pair",
    ]
    if bad:
        notes.append(f"{table.name}: {len(bad)} rows left out as unusable ({told})")
    return replace(table, examples=examples, columns=dict(keys), notes=notes)


def _keys(
    table: Table,
    found: Sequence[str],
    roles: Sequence[str],
    wanted: Mapping[str, str],
    languages: Mapping[str, str | None],
) -> dict[str, str]:
    """Which key of the pairs is which role: as given, by the languages, else in their order. Raises DataError."""
    keys: dict[str, str] = {}
    for role in roles:
        if role in wanted and wanted[role] not in found:
            raise DataError(
                f"{table.name}: its pairs have no {wanted[role]!r} (given for the {role}); they have {quoted(found)}"
                f"{suggest(wanted[role], found)}"
            )
        names = language_names(languages.get(role) or "")
        named = next((key for key in found if key.lower() in names), None)
        if key := wanted.get(role, named):
            keys[role] = key
    free = [key for key in found if key not in keys.values()]
    missing = [role for role in roles if role not in keys]
    if missing and len(found) != 2:
        raise DataError(
            f"{table.name}: its pairs have {quoted(found)}, and nothing says which is the {missing[0]}; give it with "
            f"'columns', e.g. {{{missing[0]}: {found[0]}}}"
        )
    return {role: keys[role] if role in keys else free.pop(0) for role in roles}
