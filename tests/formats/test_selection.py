"""The shortest names that select exactly some paths."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from loraloom.formats.selection import by_value, exact_expression, most_common, shortest_names

PARTS = st.sampled_from(["a", "b", "0", "1", "q.x"[:1], "fc+"])
PATHS = st.lists(st.lists(PARTS, min_size=1, max_size=4).map(".".join), min_size=1, max_size=12, unique=True)


def selected(names: list[str], paths: list[str]) -> set[str]:
    return {path for path in paths if any(path == name or path.endswith(f".{name}") for name in names)}


@given(PATHS, st.data())
def test_names_select_exactly_what_was_chosen(paths: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(paths), unique=True))
    names, hopeless = shortest_names(chosen, paths)
    assert selected(names, paths) == set(chosen) - set(hopeless)
    for path in hopeless:
        assert any(other.endswith(f".{path}") for other in set(paths) - set(chosen))
    expression = exact_expression(names, hopeless)
    assert {path for path in paths if re.fullmatch(expression, path)} == set(chosen)


@given(PATHS, st.data())
def test_no_name_can_be_left_out(paths: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(paths), unique=True))
    names, _ = shortest_names(chosen, paths)
    for name in names:
        assert selected([other for other in names if other != name], paths) < selected(names, paths)


@given(PATHS, st.data())
def test_patterns_give_every_path_its_value(paths: list[str], data: st.DataObject) -> None:
    values = {path: float(data.draw(st.integers(1, 3))) for path in paths}
    default = most_common(list(values.values()))
    patterns = by_value(values, default)
    for path, value in values.items():
        found = [v for pattern, v in patterns.items() if re.match(rf"(.*\.)?({pattern})$", path)]
        assert found == ([] if value == default else [value])


def test_a_name_can_be_asked_to_have_more_parts() -> None:
    assert shortest_names(["a.experts.up", "b.experts.up"], [], parts=2) == (["experts.up"], [])
    assert shortest_names(["up"], [], parts=2) == (["up"], [])


def test_the_value_that_most_have() -> None:
    assert most_common([8, 4, 8]) == 8
    assert most_common([8, 4]) == 4
