"""JSON Lines and lists of objects: the same rows, the right lines, and what is wrong with broken ones."""

from __future__ import annotations

import json

import pytest

from loraloom.errors import DataError

ROWS = [{"text": "fine", "label": 1}, {"text": "bad", "label": 0}]


def test_lines_with_blank_ones_between(write, read):
    table = read(write("a.jsonl", json.dumps(ROWS[0]) + "\n\n  \n" + json.dumps(ROWS[1])))
    assert [example.values for example in table.examples] == ROWS
    assert [example.line for example in table.examples] == [1, 4]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_list_of_objects_knows_the_line_of_each(write, read, name):
    table = read(write(name, json.dumps(ROWS, indent=2)))
    assert [example.values for example in table.examples] == ROWS
    assert [example.line for example in table.examples] == [2, 6]


def test_json_may_hold_lines_too(write, read):
    assert len(read(write("a.json", "\n".join(map(json.dumps, ROWS)))).examples) == 2


def test_the_separators_that_only_unicode_knows_end_no_line(write, read):
    rows = [{"text": "one\u2028two\u0085three\x0bfour", "label": 1}, ROWS[1]]
    table = read(write("a.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)))
    assert table.examples[0].values == rows[0] and table.examples[1].line == 2


def test_columns_are_the_union_of_the_keys(write, read, refused):
    source = write("a.jsonl", '{"text": "fine"}\n{"text": "bad", "label": 0}\n')
    assert read(source, required_roles=["text"]).examples[0].values == {"text": "fine"}
    assert refused(source, kind=DataError).startswith(", column 'label': one row has no label (line 1)")


def test_a_broken_line(write, refused):
    message = refused(write("a.jsonl", json.dumps(ROWS[0]) + '\n{"text": "bad", \n'), kind=DataError)
    assert message.startswith(":2: broken JSON (") and "expected an object such as" in message


@pytest.mark.parametrize(
    ("value", "found"), [("[1]", "a list"), ('"x"', "a string"), ("3", "a number"), ("null", "null")]
)
def test_a_line_that_is_no_object(write, refused, value, found):
    message = refused(write("a.jsonl", json.dumps(ROWS[0]) + "\n" + value), kind=DataError)
    assert message.startswith(":2: ") and message.endswith(f"found {found}")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('[{"text": "a",\n "label": 1},\n {"text": }]', 3),
        ('[{"text": "a", "label": 1}\n {"text": "b", "label": 0}]', 2),
        ('[{"text": "a", "label": 1},\n', 2),
        ('[{"text": "a", "label": 1}]\n\nmore', 3),
        ('[{"text": "a", "label": 1},\n 7]', 2),
    ],
)
def test_a_broken_list(write, refused, content, line):
    assert refused(write("a.json", content), kind=DataError).startswith(f":{line}: ")


def test_an_empty_list_has_no_rows(write, refused):
    assert "has no rows" in refused(write("a.json", "[]"), kind=DataError)


def test_nesting_and_surrogates_are_not_text(write, refused):
    content = '{"text": "fine", "label": 1}\n{"text": ["a"], "label": 0}\n{"text": "\\ud800", "label": 0}\n'
    message = refused(write("a.jsonl", content), kind=DataError)
    assert message == ", column 'text': 2 rows have something other than text (lines 2, 3)"


def test_a_label_that_is_a_list(write, refused):
    content = '{"text": "fine", "label": [1]}\n{"text": "bad", "label": 0}\n'
    assert "something other than text or a number (line 1)" in refused(write("a.jsonl", content))
