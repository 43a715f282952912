"""Reading sentences with their translations: columns, pairs by language, bad rows, parts, further files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sacrebleu", reason="translations are scored with sacrebleu")

from loraloom.data.config import DataConfig
from loraloom.errors import ConfigError, DataError
from loraloom.tasks.language.languages import language_names
from loraloom.tasks.translation import Translation, TranslationOptions

NOUNS = ["cat", "dog", "house", "tree", "river", "letter", "garden", "window"]
VERBS = ["waits", "burns", "falls", "shines", "sings"]
ROWS = [
    (f"the {noun} {verb} {more}".strip(), f"{noun}-nl {verb}-nl {more}-nl")
    for noun in NOUNS
    for verb in VERBS
    for more in ("", "by itself in the night without a sound")
]


def write_csv(path: Path, rows: Sequence[Sequence[str]] = ROWS, header: str = "source,target") -> str:
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", "utf-8")
    return str(path)


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def as_pairs(rows: Sequence[tuple[str, str]] = ROWS, first: str = "en", second: str = "nl") -> list[dict[str, Any]]:
    return [{"id": number, "translation": {first: one, second: two}} for number, (one, two) in enumerate(rows)]


def read(train: str, *, seed: int = 0, options: dict[str, Any] | None = None, **data: Any) -> Any:
    task = Translation(TranslationOptions(**(options or {})))
    return task, task.read(DataConfig(train=train, **data), seed=seed)


# --- columns


@pytest.mark.parametrize(
    "header", ["source,target", "src,tgt", "en,translation", "English,Dutch", "input,output", "SOURCE,Target"]
)
def test_columns_are_detected(header: str, tmp_path: Path) -> None:
    task, splits = read(write_csv(tmp_path / "a.csv", header=header))
    first, second = header.split(",")
    assert task._columns == {"source": first, "target": second}
    example = next(example for example in splits.train if example.line == 3)
    assert example.values == {"source": ROWS[1][0], "target": ROWS[1][1]}


def test_given_languages_find_columns_of_their_names(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", [(two, one, "x y z") for one, two in ROWS], header="Dutch,english,en_old")
    task, _ = read(file, options={"source_language": "nld_Latn", "target_language": "eng_Latn"})
    assert task._columns == {"source": "Dutch", "target": "english"}


def test_given_columns_win(tmp_path: Path) -> None:
    task, splits = read(write_csv(tmp_path / "a.csv"), columns={"source": "target", "target": "source"})
    assert task._columns == {"source": "target", "target": "source"}
    assert splits.train[0].values["source"].endswith("-nl")


def test_missing_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column known to hold the target: it has 'source', 'x', 'y'"):
        read(write_csv(tmp_path / "a.csv", [("a b", "1", "2")] * 4, header="source,x,y"))
    with pytest.raises(DataError, match="has no column 'sorce' .* did you mean 'source'"):
        read(write_csv(tmp_path / "b.csv"), columns={"source": "sorce"})
    with pytest.raises(ConfigError, match="'sauce' is no role of this task; it has 'source', 'target'; did you mean"):
        read(write_csv(tmp_path / "c.csv"), columns={"sauce": "source"})


def test_text_and_label_stand_for_source_and_target(tmp_path: Path) -> None:
    """As --text-column and --label-column have it."""
    file = write_csv(tmp_path / "a.csv", header="one,two")
    assert read(file, columns={"text": "one", "label": "two"})[0]._columns == {"source": "one", "target": "two"}


@pytest.mark.parametrize(("row", "said"), [(("", "wat"), "no source"), (("what is it", " "), "no target")])
def test_empty_sides_are_told_with_their_line(row: tuple[str, str], said: str, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", [*ROWS, row])
    with pytest.raises(DataError, match=rf"one row has {said} \(line {len(ROWS) + 2}\)"):
        read(file)
    _, splits = read(file, skip_bad=True)
    assert len(splits.train) + len(splits.evaluation) == len(ROWS)
    assert any("one row of 81 left out" in note for note in splits.notes)


def test_texts_that_are_their_own_translation_are_told(tmp_path: Path) -> None:
    _, splits = read(write_csv(tmp_path / "a.csv", [(one, one) for one, _ in ROWS]))
    assert any("source and target are the same text in" in note for note in splits.notes)
    _, splits = read(write_csv(tmp_path / "b.csv", [*ROWS, ("ok then ok", "ok then ok")]))
    assert not any("the same text" in note for note in splits.notes)


# --- a column of pairs


def test_pairs_by_language_in_their_order(tmp_path: Path) -> None:
    task, splits = read(write_jsonl(tmp_path / "a.jsonl", as_pairs()))
    assert task._columns == {"source": "en", "target": "nl"}
    assert {example.values["source"] for example in [*splits.train, *splits.evaluation]} == {one for one, _ in ROWS}
    assert any("source is 'en', target is 'nl' of each pair" in note for note in splits.notes)


@pytest.mark.parametrize(
    "options", [{"source_language": "nl"}, {"target_language": "eng_Latn", "source_language": "nld_Latn"}]
)
def test_pairs_by_the_languages_asked_for(options: dict[str, str], tmp_path: Path) -> None:
    task, _ = read(write_jsonl(tmp_path / "a.jsonl", as_pairs()), options=options)
    assert task._columns == {"source": "nl", "target": "en"}


def test_pairs_by_given_columns(tmp_path: Path) -> None:
    rows = [{"translation": {"de": "x", "en": one, "nl": two}} for one, two in ROWS]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    _, splits = read(file, columns={"source": "nl", "target": "en"})
    assert splits.train[0].values["source"].endswith("-nl")
    with pytest.raises(DataError, match="its pairs have 'de', 'en', 'nl', and nothing says which is the source"):
        read(file)
    with pytest.raises(DataError, match="its pairs have no 'ne' .given for the target.; they have 'de', 'en', 'nl'"):
        read(file, columns={"source": "nl", "target": "ne"})


def test_pairs_with_an_empty_side(tmp_path: Path) -> None:
    rows = as_pairs([*ROWS, ("what", "")])
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=rf"column 'translation': no text for 'en', 'nl' in row {len(rows)}$"):
        read(file)
    _, splits = read(file, skip_bad=True)
    assert len(splits.train) + len(splits.evaluation) == len(ROWS)


def test_further_pairs_are_read_as_training_read_them(tmp_path: Path) -> None:
    task, _ = read(write_jsonl(tmp_path / "a.jsonl", as_pairs()), options={"source_language": "nl"})
    further = write_jsonl(tmp_path / "b.jsonl", as_pairs([("one two", "een twee")]))
    data = DataConfig(train="unused.csv")
    assert task.read_more(further, data, labelled=True)[0].values == {"source": "een twee", "target": "one two"}
    assert task.read_more(further, data, labelled=False)[0].values == {"source": "een twee"}


# --- parts and further files


def test_words_choose_by_the_source(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv")
    _, short = read(file, words="1-6")
    _, long = read(file, words="7-", eval=write_csv(tmp_path / "e.csv"))
    assert {len(example.values["source"].split()) for example in short.train + short.evaluation} == {3}
    assert {len(example.values["source"].split()) for example in long.train + long.evaluation} == {11}


def test_to_be_translated_is_everything(tmp_path: Path) -> None:
    """What chooses training rows does not choose among the questions of a user."""
    task, _ = read(write_csv(tmp_path / "a.csv"), words="7-")
    further = write_csv(
        tmp_path / "b.csv", [("one two",), ("three four five six seven eight nine ten",)], header="source"
    )
    data = DataConfig(train="unused.csv", words="7-", columns={"source": "source", "target": "target"})
    assert [example.line for example in task.read_more(further, data, labelled=False)] == [2, 3]
    labelled = write_csv(tmp_path / "c.csv")
    assert len(task.read_more(labelled, data, labelled=True)) == len(ROWS) // 2


def test_a_text_file_is_translated_line_by_line(tmp_path: Path) -> None:
    task, _ = read(write_csv(tmp_path / "a.csv"))
    (tmp_path / "lines.txt").write_text("the cat waits\n\nthe dog falls\n", "utf-8")
    found = task.read_more(str(tmp_path / "lines.txt"), DataConfig(train="unused.csv"), labelled=False)
    assert [(example.values["source"], example.line) for example in found] == [
        ("the cat waits", 1),
        ("the dog falls", 3),
    ]
    with pytest.raises(DataError, match=r"gone.txt cannot be read"):
        task.read_more(str(tmp_path / "gone.txt"), DataConfig(train="unused.csv"), labelled=False)


def test_the_same_source_on_both_sides_is_told(tmp_path: Path) -> None:
    held_out = write_csv(tmp_path / "e.csv", [(ROWS[0][0], "anders vertaald"), ("nothing like it here", "niets")])
    _, splits = read(write_csv(tmp_path / "a.csv"), eval=held_out)
    assert any("1 of 2 evaluation examples repeat training examples" in note for note in splits.notes)


def test_real_pairs(shared_data: Path) -> None:
    folder = shared_data / "translation" / "tatoeba_en_nl"
    _, splits = read(str(folder / "train.csv"), eval=str(folder / "test.csv"), words="7-", limit=500)
    assert len(splits.train) == 500 and len(splits.evaluation) == 444


# --- languages


def test_names_of_a_language() -> None:
    assert language_names("Dutch") == language_names("nld") == ["dutch", "nl", "nld"]
    assert language_names("Klingon") == ["klingon"]


def test_no_code_stands_for_two_languages() -> None:
    from loraloom.tasks.language.languages import _LANGUAGES

    words = [word for entry in _LANGUAGES for word in {name.lower() for name in entry}]
    assert len(words) == len(set(words)), sorted({word for word in words if words.count(word) > 1})
    assert all(len(entry) >= 3 and len(entry[1]) == 2 and len(entry[2]) == 3 for entry in _LANGUAGES)
