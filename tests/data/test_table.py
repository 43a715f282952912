"""Reading a table as a whole: what was written is what is read, empty and odd values, notes and hashes."""

from __future__ import annotations

import csv
import hashlib
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.scaling import grows_about_linearly

from loraloom.data import Example, Role, read_table
from loraloom.data.labels import label_name
from loraloom.errors import DataError

# NUL is left out because the csv module of Python 3.10 refuses it; lone surrogates are not text
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXT = st.text(CHARACTERS, min_size=1, max_size=40).filter(str.strip)
PUNCTUATED = st.text(st.sampled_from('a b,;\t|"\n\r'), min_size=1, max_size=12).filter(str.strip)
ROWS = st.lists(st.tuples(TEXT | PUNCTUATED, TEXT), min_size=1, max_size=12)
ANY_FILE = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def pairs(table):
    return [(example.values["text"], example.values["label"]) for example in table.examples]


@ANY_FILE
@given(rows=ROWS, delimiter=st.sampled_from(",;\t|"), ends=st.sampled_from(["\n", "\r\n"]))
def test_what_is_written_as_csv_is_read_back(write, read, rows, delimiter, ends):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator=ends, quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "label"), *rows])
    assert pairs(read(write("a.csv", out.getvalue()), delimiter=delimiter)) == rows
    assert pairs(read(write("a.csv", out.getvalue()))) == rows


@ANY_FILE
@given(rows=ROWS)
def test_what_is_written_as_tsv_is_read_back(write, read, rows):
    out = io.StringIO()
    csv.writer(out, delimiter="\t").writerows([("text", "label"), *rows])
    assert pairs(read(write("a.tsv", out.getvalue()))) == rows


@ANY_FILE
@given(rows=ROWS, escaped=st.booleans(), gap=st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_what_is_written_as_json_is_read_back(write, read, rows, escaped, gap):
    objects = [{"text": text, "label": label} for text, label in rows]
    lines = gap.join(json.dumps(one, ensure_ascii=escaped) for one in objects)
    assert pairs(read(write("a.jsonl", lines))) == rows
    assert pairs(read(write("a.json", json.dumps(objects, ensure_ascii=escaped, indent=1)))) == rows


@ANY_FILE
@given(rows=ROWS)
def test_every_line_number_is_where_its_row_begins(write, read, rows):
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(("text", "label"))
    begins = []
    for row in rows:
        begins.append(line_of_the_end(out.getvalue()))
        writer.writerow(row)
    assert [example.line for example in read(write("a.csv", out.getvalue())).examples] == begins


@ANY_FILE
@given(data=st.binary(max_size=200), name=st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet"]))
def test_any_bytes_are_read_or_refused_in_words(write, data, name):
    try:
        table = read_table(write(name, data), [Role("text", ("text",))])
    except DataError as error:
        assert name in str(error)
    else:
        assert table.examples and all(example.values["text"].strip() for example in table.examples)


def test_an_example_knows_its_place(write, read):
    source = write("a.csv", "text,label\nfine,1\nbad,0\n")
    example = read(source).examples[1]
    assert example == Example({"text": "bad", "label": "0"}, source, 3)
    assert example.place == f"{source}:3"


def test_the_hash_is_that_of_the_file(write, read):
    content = "text,label\nfine,1\nbad,0\n"
    assert read(write("a.csv", content)).sha256 == hashlib.sha256(content.encode()).hexdigest()


def test_empty_texts_are_all_named(write, refused):
    source = write("a.csv", 'text,label\nfine,1\n,0\n"  ",1\nbad,0\n')
    message = refused(source, kind=DataError)
    assert message == (", column 'text': 2 rows have no text (lines 3, 4); fill it in or remove the row")


def test_many_empty_texts_are_counted(write, refused):
    message = refused(write("a.csv", "text,label\n" + ",0\n" * 9), kind=DataError)
    assert "9 rows have no text (lines 2, 3, 4, 5, 6 and 4 more)" in message


def test_empty_labels(write, refused):
    message = refused(write("a.csv", "text,label\nfine,\nbad,0\n"), kind=DataError)
    assert message.startswith(", column 'label': one row has no label (line 2)")


@pytest.mark.parametrize("empty", ["null", "NaN", '""', '" "'])
def test_what_json_has_for_nothing(write, refused, empty):
    content = f'{{"text": "fine", "label": 1}}\n{{"text": "bad", "label": {empty}}}\n'
    assert "one row has no label (line 2)" in refused(write("a.jsonl", content), kind=DataError)


def test_numbers_in_a_text_column_are_text(write, read):
    table = read(write("a.jsonl", '{"text": 7, "label": true}\n{"text": 0.5, "label": 0.5}\n'))
    assert pairs(table) == [("7", True), ("0.5", 0.5)]


def test_text_is_left_as_it_stands(write, read):
    assert pairs(read(write("a.csv", "text,label\n  two  spaces , x \ny,z\n")))[0] == ("  two  spaces ", " x ")


def test_label_types_meet_across_formats(write, read):
    written = read(write("a.csv", "text,label\nfine,1\nbad,0\n"))
    typed = read(write("a.jsonl", '{"text": "fine", "label": 1.0}\n{"text": "bad", "label": 0}\n'))
    assert [label_name(label) for _, label in pairs(written)] == [label_name(label) for _, label in pairs(typed)]


def test_ten_times_the_rows_take_about_ten_times_the_time(write, read):
    row = "The room was clean and the people at the desk were kind to us,"
    few, many = (
        write(f"{count}.csv", "text,label\n" + "".join(f"{row}{i % 2}\n" for i in range(count)))
        for count in (2_000, 20_000)
    )
    assert len(read(many).examples) == 20_000
    assert grows_about_linearly(lambda: read(few), lambda: read(many), 10)


def line_of_the_end(text):
    """On which line, from 1, something written next would begin; a line break may be \\r, \\n or \\r\\n."""
    return text.replace("\r\n", "\n").replace("\r", "\n").count("\n") + 1
