"""Parquet, dataset folders, and names that no dataset answers to."""

from __future__ import annotations

import json

import pytest

from loraloom.errors import ConfigError, DataError

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

COLUMNS = {"text": ["fine", "bad", "so so"], "label": [1, 0, 2]}
NAMES = ["negative", "positive", "mixed"]


@pytest.fixture
def named():
    """A dataset whose labels are class numbers with names."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)})
    return datasets.Dataset.from_dict(COLUMNS, features=features)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def values(table):
    return [(example.values["text"], example.values["label"]) for example in table.examples]


def test_parquet(tmp_path, read):
    pq.write_table(pa.table({"id": [7, 8, 9], **COLUMNS}), tmp_path / "a.parquet")
    table = read(str(tmp_path / "a.parquet"))
    assert values(table) == [("fine", 1), ("bad", 0), ("so so", 2)]
    assert [example.line for example in table.examples] == [1, 2, 3]
    assert len(table.sha256) == 64


def test_parquet_written_by_datasets_keeps_its_class_names(tmp_path, read, named):
    named.to_parquet(tmp_path / "a.parquet")
    assert [label for _, label in values(read(str(tmp_path / "a.parquet")))] == ["positive", "negative", "mixed"]


def test_a_row_without_class_is_a_row_without_label(tmp_path, refused, named):
    features = named.features
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, -1]}, features=features)
    data.to_parquet(tmp_path / "a.parquet")
    message = refused(str(tmp_path / "a.parquet"), kind=DataError)
    assert message.startswith(", column 'label': one row has no label (row 2)")


@pytest.mark.parametrize("content", [b"text,label\nfine,1\n", b"PAR1", b"PAR1" * 10])
def test_what_is_no_parquet(write, refused, content):
    message = refused(write("a.parquet", content), kind=DataError)
    assert message.startswith(" is not a Parquet file, or is damaged (")


def test_empty_parquet(write, refused):
    assert refused(write("a.parquet", b"")) == " is empty; expected at least one example"


def test_a_folder_saved_by_datasets(tmp_path, read, named):
    named.save_to_disk(tmp_path / "saved")
    table = read(str(tmp_path / "saved"))
    assert values(table) == [("fine", "positive"), ("bad", "negative"), ("so so", "mixed")]
    again = read(str(tmp_path / "saved"))
    assert table.sha256 == again.sha256 and len(table.sha256) == 64


def test_splits_are_chosen_and_stated(tmp_path, read, refused, named):
    data = datasets.DatasetDict(train=named, test=named.select([1, 2]))
    data.save_to_disk(tmp_path / "saved")
    source = str(tmp_path / "saved")
    train = read(source)
    assert len(train.examples) == 3 and "split 'train' of 'train', 'test'" in train.notes[0]
    assert len(read(source, split="test").examples) == 2
    assert len(read(source, prefer_splits=("test", "validation")).examples) == 2
    assert "it has 'train', 'test'; did you mean 'test'?" in refused(source, split="tests", kind=DataError)
    assert "say which one is meant" in refused(source, prefer_splits=("validation",), kind=DataError)


def test_a_folder_of_files_is_a_dataset(tmp_path, read):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.csv").write_text("text,label\nfine,1\nbad,0\n", encoding="utf-8")
    (tmp_path / "set" / "test.csv").write_text("text,label\nso so,1\n", encoding="utf-8")
    assert values(read(str(tmp_path / "set"))) == [("fine", 1), ("bad", 0)]
    assert values(read(str(tmp_path / "set"), split="test")) == [("so so", 1)]


def test_progress_bars_are_left_as_they_were(tmp_path, read, named):
    named.save_to_disk(tmp_path / "saved")
    datasets.enable_progress_bars()
    read(str(tmp_path / "saved"))
    assert not datasets.are_progress_bars_disabled()


def test_a_folder_without_data(tmp_path, refused):
    (tmp_path / "notes.md").write_text("nothing", encoding="utf-8")
    message = refused(str(tmp_path), kind=DataError)
    assert message.startswith(" is a folder without data files; expected a file (.csv, ")


def test_a_folder_that_datasets_cannot_read(tmp_path, refused):
    (tmp_path / "train.jsonl").write_text("{broken\n", encoding="utf-8")
    assert refused(str(tmp_path), kind=DataError).startswith(" is neither a file here nor a dataset")


@pytest.mark.parametrize("name", ["no-such-set", "nobody/no-such-set", "nobody/no-such-set/config"])
def test_a_name_that_cannot_be_reached(refused, monkeypatch, name):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = refused(name, kind=DataError)
    assert message.startswith(" is neither a file here nor a dataset that can be loaded (")
    assert message.endswith("and the connection if it is on the Hugging Face Hub")


def test_name_config_and_split_reach_the_library(read, monkeypatch, named):
    asked = []

    def load(*arguments):
        asked.append(arguments)
        return datasets.DatasetDict(train=named, validation=named.select([0]))

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(read("owner/name/config:validation").examples) == 1
    assert len(read("owner/name").examples) == 3
    assert asked == [("owner/name", "config"), ("owner/name", None)]


def test_a_file_has_no_splits(write, refused):
    source = write("a.jsonl", json.dumps({"text": "fine", "label": 1}))
    message = refused(source, split="test", kind=ConfigError)
    assert "split 'test' was asked of" in message and "which is a file" in message
