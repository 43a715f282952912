"""Which column plays which role: given, by name, by content, or refused with the nearest name."""

from __future__ import annotations

import pytest

from loraloom.errors import ConfigError, DataError


def test_given_and_detected_are_stated(write, read):
    table = read(write("a.csv", "review,stars,label\nfine,5,x\nbad,1,y\n"), columns={"label": "stars"})
    assert table.columns == {"text": "review", "label": "stars"}
    assert table.notes[-1].endswith("text column 'review' (detected), label column 'stars' (given)")
    assert table.examples[0].values == {"text": "fine", "label": "5"}


def test_names_match_whatever_their_case_and_spaces(write, read):
    table = read(write("a.csv", " Sentence ,STARS\nfine,5\nbad,1\n"))
    assert table.columns == {"text": "Sentence", "label": "STARS"}


def test_the_most_telling_name_wins(write, read):
    assert read(write("a.csv", "review,text,label\na,b,1\nc,d,0\n")).columns["text"] == "text"


def test_content_tells_when_names_do_not(write, read):
    body = "".join(f"{i},we came back at {i},{'yes' if i % 2 else 'no'}\n" for i in range(12))
    table = read(write("a.csv", "nr,what,again\n" + body))
    assert table.columns == {"text": "what", "label": "again"}
    assert "(detected)" in table.notes[-1]


def test_content_that_fits_two_columns_is_no_answer(write, refused):
    body = "".join(f"we came back at {i},{i % 2},{i % 3}\n" for i in range(12))
    message = refused(write("a.csv", "text,again,kind\n" + body), kind=DataError)
    assert message.startswith(" has no column known to hold the label: it has 'text', 'again', 'kind'")


def test_numbers_of_rows_are_not_taken_for_labels(write, refused):
    body = "".join(f"we came back at {i},{i}\n" for i in range(30))
    assert "no column known to hold the label" in refused(write("a.csv", "text,nr\n" + body))


def test_missing_column_names_the_nearest(write, refused):
    source = write("a.csv", "text,lable\nfine,1\nbad,0\n")
    message = refused(source, kind=DataError)
    assert "it has 'text', 'lable'; did you mean 'lable'?; give it with 'columns'" in message
    message = refused(source, columns={"label": "label"}, kind=DataError)
    assert message == " has no column 'label' (given for the label); it has 'text', 'lable'; did you mean 'lable'?"


def test_a_file_without_header_is_told_so(write, refused):
    message = refused(write("a.csv", "I liked this very much,1\nnot me,0\n"), kind=DataError)
    assert message.endswith("the first line of the file must name the columns")


def test_an_unknown_delimiter_is_hinted_at(write, refused):
    assert refused(write("a.csv", "text^label\nfine^1\n")).endswith("give the 'delimiter' between them")


def test_unknown_role_and_one_column_for_two(write, refused):
    source = write("a.csv", "text,label\nfine,1\nbad,0\n")
    message = refused(source, columns={"lable": "label"}, kind=ConfigError)
    assert "'lable' is no role of this task; it has 'text', 'label'; did you mean 'label'?" in message
    message = refused(source, columns={"text": "text", "label": "text"}, kind=ConfigError)
    assert "'text' is given for two roles" in message


@pytest.mark.parametrize("columns", [{}, {"text": "text"}])
def test_a_column_named_twice(write, refused, columns):
    message = refused(write("a.csv", "text,label,text\na,1,b\nc,0,d\n"), columns=columns, kind=DataError)
    assert message == ": the header names the column 'text' 2 times; rename all but one"


def test_a_doubled_column_that_nobody_reads_is_no_matter(write, read):
    assert len(read(write("a.csv", "text,label,x,x\na,1,b,c\nc,0,d,e\n")).examples) == 2


def test_an_optional_role_is_read_where_it_is(write, read):
    source = write("a.csv", "text,label\nfine,1\nbad,\n")
    table = read(source, required_roles=["text"])
    assert [example.values for example in table.examples] == [{"text": "fine", "label": "1"}, {"text": "bad"}]
    assert "label" not in read(write("b.csv", "text\nfine\n"), required_roles=["text"]).columns
