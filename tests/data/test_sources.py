"""What a name means: a file, the packaged set or a dataset; and the sentence when it means nothing."""

from __future__ import annotations

import importlib.resources
import subprocess
import sys

import pytest

from loraloom.errors import DataError


def test_missing_file_names_the_nearest(write, refused, tmp_path):
    write("reviews.csv", "text,label\nfine,1\n")
    message = refused(str(tmp_path / "review.csv"), kind=DataError)
    assert message == " does not exist; did you mean 'reviews.csv'?"


def test_missing_folder(refused, tmp_path):
    message = refused(str(tmp_path / "nowhere" / "a.csv"), kind=DataError)
    assert message == f" does not exist, nor does its folder {tmp_path / 'nowhere'}"


@pytest.mark.parametrize("name", ["a.docx", "a.xlsx", "a.csv.gz", "a"])
def test_unknown_suffix(write, refused, name):
    message = refused(write(name, "text,label\nfine,1\n"), kind=DataError)
    assert "expected one of .csv, .tsv, .jsonl, .json, .parquet" in message


def test_a_misspelt_suffix_gets_the_nearest(write, refused):
    assert refused(write("a.jsnl", "{}")).endswith("did you mean '.jsonl' or '.json'?")


def test_suffixes_in_capitals(write, read):
    assert len(read(write("A.CSV", "text,label\nfine,1\nbad,0\n")).examples) == 2


def test_a_missing_file_is_not_looked_for_on_the_hub(refused):
    assert "does not exist" in refused("reviews.csv", kind=DataError)
    assert "does not exist" in refused("./reviews", kind=DataError)


def test_a_home_folder_is_expanded(write, read, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write("a.csv", "text,label\nfine,1\nbad,0\n")
    assert read("~/a.csv").name == "~/a.csv"


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A package folder with a small set in it, instead of our own."""
    (tmp_path / "sentiment").mkdir()
    for split, row in (("train", "fine,positive\nbad,negative"), ("test", "so so,negative")):
        (tmp_path / "sentiment" / f"{split}.csv").write_text(f"text,label\n{row}\n", encoding="utf-8")
    monkeypatch.setattr(importlib.resources, "files", lambda _package: tmp_path)
    return tmp_path


def test_the_packaged_set(packaged, read):
    assert [example.place for example in read("sentiment").examples] == ["sentiment:2", "sentiment:3"]
    assert len(read("sentiment:train").examples) == 2
    assert len(read("sentiment:test").examples) == 1
    assert len(read("sentiment", prefer_splits=("test",)).examples) == 1
    assert len(read("sentiment", split="test").examples) == 1


def test_the_packaged_set_has_no_such_split(packaged, refused):
    assert "has no split 'dev'; it has 'train', 'test'" in refused("sentiment:dev", kind=DataError)


def test_the_packaged_set_is_gone(packaged, refused):
    (packaged / "sentiment" / "test.csv").unlink()
    assert "is not installed" in refused("sentiment:test", kind=DataError)


def test_importing_the_data_layer_is_light():
    heavy = "{'torch', 'datasets', 'pyarrow', 'pandas', 'numpy', 'transformers'}"
    code = f"import sys, loraloom.data; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
