"""Plain text files: paragraphs with their lines, folders of documents, folders of splits, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loraloom.data.sources import read_source
from loraloom.errors import DataError

Write = Callable[[str, str | bytes], str]


def test_paragraphs_stand_between_blank_lines(write: Write) -> None:
    source = write("a.txt", "\n\nOne line,\ntwo lines. \n \n\t\nThree\n\n")
    records = read_source(source)
    assert records.column(0) == ["One line,\ntwo lines.", "Three"]
    assert list(records.lines) == [3, 7]
    assert records.notes == [f"{source}: 2 paragraphs, parted by blank lines"]


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_of_every_system_count_as_one(write: Write, end: str) -> None:
    records = read_source(write("a.TXT", end.join(["\ufeffone", "two", "", "three"])))
    assert records.column(0) == ["one\ntwo", "three"]
    assert list(records.lines) == [1, 4]


def test_a_form_feed_or_a_line_separator_is_no_line_end(write: Write) -> None:
    assert read_source(write("a.txt", "one\u2028\u2028two\x0cthree")).column(0) == ["one\u2028\u2028two\x0cthree"]


def test_a_folder_has_a_document_per_file(write: Write, tmp_path: Path) -> None:
    for name, text in {"b.txt": "two\n\ntwo\n", "a.txt": "one", "c.txt": " \n", "README.md": "no"}.items():
        write(name, text)
    records = read_source(str(tmp_path))
    assert records.column(0) == ["one", "two\n\ntwo"]
    assert (list(records.lines), records.unit) == ([1, 2], "row")
    assert "1 empty files left out, e.g. c.txt" in records.notes[1]
    before = records.sha256
    write("a.txt", "other")
    assert read_source(str(tmp_path)).sha256 != before


def test_a_folder_of_splits_is_read_by_split(write: Write, tmp_path: Path) -> None:
    write("train.txt", "one\n\ntwo")
    write("test.txt", "three")
    assert read_source(str(tmp_path)).column(0) == ["one", "two"]
    assert read_source(str(tmp_path), prefer=("test", "validation")).column(0) == ["three"]
    assert read_source(f"{tmp_path}", split="test").column(0) == ["three"]
    with pytest.raises(DataError, match="no split 'tset'.*did you mean 'test'"):
        read_source(str(tmp_path), split="tset")


@pytest.mark.parametrize(
    ("content", "told"),
    [(b" \n\n", "is empty"), (b"ok\ncaf\xe9", ":2: byte 0xe9"), ("x".encode("utf-16"), "UTF-16")],
)
def test_what_is_no_text_is_refused(write: Write, content: bytes, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_source(write("a.txt", content))
