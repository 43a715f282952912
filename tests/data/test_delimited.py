"""CSV and TSV: the delimiter, the lines, and every way in which such a file can be wrong."""

from __future__ import annotations

import csv
import io

import pytest

from loraloom.errors import DataError


def texts(table):
    return [example.values["text"] for example in table.examples]


def lines(table):
    return [example.line for example in table.examples]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_detected_and_stated(write, read, delimiter):
    rows = [["text", "label"], [f"a{delimiter} b; c, d", "1"], ["plain", "0"]]
    table = read(write("a.csv", as_csv(rows, delimiter)))
    assert texts(table) == [f"a{delimiter} b; c, d", "plain"]
    assert f": delimiter {delimiter!r} (detected)" in table.notes[0]


def test_a_given_delimiter_is_taken_and_not_stated_as_detected(write, read):
    table = read(write("a.csv", "text^label\nfine, really^1\nbad^0\n"), delimiter="^")
    assert texts(table) == ["fine, really", "bad"]
    assert not any(": delimiter " in note for note in table.notes)


def test_the_header_decides_when_the_text_is_full_of_other_delimiters(write, read):
    body = "".join(f"one, two, three, four {i};1\n" for i in range(20))
    assert len(texts(read(write("a.csv", "text;label\n" + body)))) == 20


def test_a_quoted_field_with_line_breaks_does_not_shift_the_lines_that_follow(write, read):
    content = 'text,label\n"one\ntwo\n\nthree",1\nplain,0\n\n\n"last\r\nline",1\n'
    table = read(write("a.csv", content))
    assert texts(table) == ["one\ntwo\n\nthree", "plain", "last\r\nline"]
    assert lines(table) == [2, 6, 9]


def test_windows_line_ends_and_a_byte_order_mark(write, read):
    table = read(write("a.csv", b"\xef\xbb\xbftext,label\r\nfine,1\r\nbad,0\r\n"))
    assert table.columns == {"text": "text", "label": "label"}
    assert texts(table) == ["fine", "bad"] and lines(table) == [2, 3]


def test_a_field_longer_than_the_csv_module_allows_and_its_limit_is_put_back(write, read):
    csv.field_size_limit(131_072)
    table = read(write("a.csv", f"text,label\n{'x' * 200_000},1\nbad,0\n"))
    assert len(texts(table)[0]) == 200_000
    assert csv.field_size_limit() == 131_072


def test_rows_of_delimiters_alone_are_left_out_and_counted(write, read):
    table = read(write("a.csv", "text,label\nfine,1\n,\nbad,0\n , \n"))
    assert texts(table) == ["fine", "bad"] and lines(table) == [2, 4]
    assert any("2 rows without any value left out" in note for note in table.notes)


def test_a_single_column_may_hold_commas(write, read):
    source = write("a.csv", "text\nHello, world\nwell, well, well\n")
    assert texts(read(source, required_roles=["text"])) == ["Hello, world", "well, well, well"]


def test_a_tsv_prefers_the_tab(write, read):
    table = read(write("a.tsv", "text\tlabel\na,b\t1\nc,d\t0\n"))
    assert texts(table) == ["a,b", "c,d"]


@pytest.mark.parametrize(
    ("name", "columns"), [("a.tsv", {"text": "very,text", "label": "label"}), ("a.csv", {"label": "very"})]
)
def test_of_two_delimiters_that_fit_alike_the_suffix_decides(write, read, name, columns):
    content = "very,text\tlabel\n" + "".join(f"yes,fine {i}\t{i % 2}\n" for i in range(9))
    table = read(write(name, content), columns=columns, required_roles=list(columns))
    assert table.columns | columns == table.columns


def test_a_tsv_of_commas_is_read_all_the_same(write, read):
    assert texts(read(write("a.tsv", "text,label\nfine,1\nbad,0\n"))) == ["fine", "bad"]


def test_a_tsv_with_bare_quotation_marks_is_read_as_it_stands_and_says_so(write, read):
    table = read(write("a.tsv", 'text\tlabel\n"Fine" he said\t1\n"never closed\t0\n'))
    assert texts(table) == ['"Fine" he said', '"never closed']
    assert any("quotation marks are read as part of the text" in note for note in table.notes)


def test_a_tsv_with_proper_quotes_is_unquoted(write, read):
    table = read(write("a.tsv", 'text\tlabel\n"two\nlines"\t1\n"say ""so"""\t0\n'))
    assert texts(table) == ["two\nlines", 'say "so"'] and lines(table) == [2, 4]


def test_wrong_delimiter(write, refused):
    message = refused(write("a.csv", "text,label\nfine,1\nbad,0\n"), delimiter=";", kind=DataError)
    assert message == (
        ":1: with the delimiter ';' the file has one column, 'text,label'; the delimiter ',' gives 2: 'text', 'label'"
    )


def test_ragged_rows_are_all_named(write, refused):
    message = refused(write("a.csv", "text,label\nfine,1\na, b,1\n\nlonely\nbad,0\n"), kind=DataError)
    assert message == (
        ":3: the header names 2 columns ('text', 'label'), but line 3 has 3, line 5 has 1; put text that "
        "holds ',' between quotation marks"
    )


def test_many_ragged_rows_are_counted(write, refused):
    body = "".join("a,b,c\n" for _ in range(12))
    assert "and 7 more rows differ" in refused(write("a.csv", "text,label\nfine,1\n" + body), delimiter=",")


def test_a_quote_that_is_never_closed_is_found_where_it_opens(write, refused):
    message = refused(write("a.csv", 'text,label\nfine,1\n"open,0\nbad,0\n'), kind=DataError)
    assert message.startswith(':3: a field that begins with " on this line is never closed')


def test_a_lone_quote_within_quotes(write, refused):
    message = refused(write("a.csv", 'text,label\n"He said "fine" to me",1\n'), kind=DataError)
    assert message.startswith(":2: ") and 'twice ("")' in message


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json"])
def test_empty_file(write, refused, name, content):
    assert refused(write(name, content), kind=DataError) == " is empty; expected at least one example"


def test_only_a_header(write, refused):
    message = refused(write("a.csv", "text,label\n"), kind=DataError)
    assert message == " names the columns 'text', 'label' but has no rows"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_bytes_that_are_not_utf8(write, refused, name, mark):
    data = mark + b"text,label\nfine,1\ncaf\xe9,0\n"
    message = refused(write(name, data), kind=DataError)
    assert message.startswith(f":3: byte 0xe9 at offset {data.index(0xE9)} is not UTF-8; ")


def test_utf16_is_named(write, refused):
    assert ":1: the file is UTF-16" in refused(write("a.csv", "text,label\nfine,1\n".encode("utf-16")))


def as_csv(rows, delimiter=","):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue()
