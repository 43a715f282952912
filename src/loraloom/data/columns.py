"""Which column of a file plays which role: given by the user, or detected and stated."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from loraloom.data.records import Records, quoted
from loraloom.errors import ConfigError, DataError, suggest

Kind = Literal["text", "label", "any"]

_SAMPLE = 1_000  # rows looked at when a column is told by its content


@dataclass(frozen=True)
class Role:
    """One thing that a task reads from a row, e.g. its text or its label."""

    name: str
    """As in `Example.values` and in the `columns` setting."""
    candidates: tuple[str, ...]
    """Column names that mean this role, most telling first; case, spaces and hyphens do not matter."""
    kind: Kind = "text"
    """"text": words to read, never empty. "label": one of few values, text or number. "any": whatever is there."""


@dataclass(frozen=True)
class Choice:
    """The column chosen for a role."""

    index: int
    name: str
    how: Literal["given", "detected"]


def choose_columns(
    source: str,
    records: Records,
    roles: Sequence[Role],
    given: Mapping[str, str],
    required: Collection[str],
) -> dict[str, Choice]:
    """A column for each role: as given, else by its name, else (required roles only) by its content.

    Raises ConfigError for a role that the task does not have or a column named twice, DataError for a
    column that the file does not have and for a required role without a column.
    """
    chosen = _given_columns(source, records.names, roles, given)
    for role in roles:
        if role.name not in chosen and (index := _by_name(source, records.names, role, chosen)) is not None:
            chosen[role.name] = Choice(index, records.names[index], "detected")
    for role in roles:
        if role.name in required and role.name not in chosen:
            index = _by_content(records, role, {choice.index for choice in chosen.values()})
            if index is None:
                raise _no_column(source, records, role)
            chosen[role.name] = Choice(index, records.names[index], "detected")
    return {role.name: chosen[role.name] for role in roles if role.name in chosen}


def _given_columns(
    source: str, names: Sequence[str], roles: Sequence[Role], given: Mapping[str, str]
) -> dict[str, Choice]:
    known = [role.name for role in roles]
    chosen: dict[str, Choice] = {}
    for role, name in given.items():
        if role not in known:
            raise ConfigError(
                f"columns: {role!r} is no role of this task; it has {quoted(known)}{suggest(role, known)}"
            )
        if name not in names:
            raise DataError(
                f"{source} has no column {name!r} (given for the {role}); it has {quoted(names)}{suggest(name, names)}"
            )
        if name in (choice.name for choice in chosen.values()):
            raise ConfigError(f"columns: {name!r} is given for two roles; each needs a column of its own")
        chosen[role] = Choice(_only(source, names, name), name, "given")
    return chosen


def _only(source: str, names: Sequence[str], name: str) -> int:
    """The position of a column whose name must not be there twice."""
    if names.count(name) > 1:
        raise DataError(f"{source}: the header names the column {name!r} {names.count(name)} times; rename all but one")
    return names.index(name)


def _by_name(source: str, names: Sequence[str], role: Role, chosen: Mapping[str, Choice]) -> int | None:
    taken = {choice.index for choice in chosen.values()}
    free = {_plain(name): name for i, name in reversed(list(enumerate(names))) if i not in taken}
    name = next((free[_plain(one)] for one in role.candidates if _plain(one) in free), None)
    return None if name is None else _only(source, names, name)


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


def _by_content(records: Records, role: Role, taken: Collection[int]) -> int | None:
    """The one free column whose values look like the role's kind; None if there is none or a choice."""
    if role.kind == "any":
        return None
    fits = _like_text if role.kind == "text" else _like_label
    free = [i for i in range(len(records.names)) if i not in taken]
    found = [i for i in free if fits([value for value in records.column(i)[:_SAMPLE] if value not in (None, "")])]
    return found[0] if len(found) == 1 else None


def _like_text(values: list[Any]) -> bool:
    """Strings, two words or more on average."""
    return (
        bool(values)
        and all(isinstance(value, str) for value in values)
        and sum(len(value.split()) for value in values) >= 2 * len(values)
    )


def _like_label(values: list[Any]) -> bool:
    """Few values, at least two, each occurring several times."""
    if not all(isinstance(value, (str, int, float)) for value in values):
        return False
    return 2 <= len(set(values)) <= min(100, len(values) // 3)


def _no_column(source: str, records: Records, role: Role) -> DataError:
    near = next((hint for name in role.candidates if (hint := suggest(name, records.names, most=1))), "")
    hint = ""
    if any(len(name.split()) > 4 for name in records.names):
        hint = "; the first line of the file must name the columns"
    elif len(records.names) == 1:
        hint = "; if the file has more, give the 'delimiter' between them"
    example = records.names[-1] or role.candidates[0]
    return DataError(
        f"{source} has no column known to hold the {role.name}: it has {quoted(records.names)}{near}; "
        f"give it with 'columns', e.g. {{{role.name}: {example}}}, or call it {role.candidates[0]!r}{hint}"
    )
