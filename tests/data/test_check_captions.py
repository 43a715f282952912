"""What a check finds in pictures with captions, and that it reads them as training does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loraloom.data import DataConfig
from loraloom.data.captions import absent_caption, caption_file, read_caption
from loraloom.data.check import Finding, Report, Tokens, check_data
from loraloom.data.check.captions import shape_of
from loraloom.data.check.sheet import draw_sheet
from loraloom.errors import DataError
from loraloom.tasks import create_task

WORDS = ("a red house", "two cats asleep", "the open sea", "a road at night", "some trees in fog", "an old clock")


def checked(train: Path, **settings: Any) -> Report:
    return check_data("text-to-image", DataConfig(train=str(train), **settings)).report


def found(report: Report) -> dict[str, Finding]:
    return {finding.kind: finding for _, finding in report.findings()}


def folder_of(folder: Path, *, table: bool = False, first: int = 0, size: tuple[int, int] = (96, 80)) -> Path:
    """Six pictures with captions of their own, in a table or in text files."""
    folder.mkdir(parents=True)
    for number, text in enumerate(WORDS):
        draw = np.random.default_rng(first + number)
        coarse = Image.fromarray(draw.integers(0, 255, (7, 8, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"{text}\n", "utf-8")
    if table:
        into_table(folder, [(f"{number}.png", text) for number, text in enumerate(WORDS)])
    return folder


def into_table(folder: Path, rows: list[tuple[str, str | None]], column: str = "text") -> None:
    for path in folder.glob("*.txt"):
        path.unlink()
    lines = [json.dumps({"file_name": name, column: text}) for name, text in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines), "utf-8")


@pytest.mark.parametrize("table", [True, False])
def test_sound_captions_have_nothing_amiss(tmp_path: Path, table: bool) -> None:
    checked_ = check_data("text-to-image", DataConfig(train=str(folder_of(tmp_path / "a", table=table))))
    (part,) = checked_.report.parts
    assert checked_.report.findings() == []
    assert (part.usable, part.rows) == (6, 6)
    assert [example.values["text"] for example in checked_.parts[0].examples] == list(WORDS)
    assert (part.lengths["words"].min, part.lengths["words"].max) == (3, 4)
    assert part.lengths["width / height"].max == pytest.approx(1.2)


def test_missing_empty_and_spoilt_captions_are_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a")
    (folder / "0.txt").rename(folder / "00.txt")
    (folder / "1.txt").write_text(" \n")
    (folder / "2.txt").write_bytes(b"caf\xe9")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:200])
    report = checked(folder)
    kinds = found(report)
    assert kinds["no-caption"].places == ["0.png: 0.txt is not there; did you mean '00.txt'?"]
    assert kinds["empty-caption"].places == ["1.txt"]
    assert kinds["bad-caption"].places == ["2.txt"]
    assert "is not UTF-8" in kinds["bad-caption"].what
    assert kinds["bad-file"].places == ["3.png"]
    assert kinds["lone-caption"].places == ["00.txt"]
    assert (report.parts[0].usable, report.parts[0].rows) == (2, 6)
    read = create_task("text-to-image").read(DataConfig(train=str(folder), eval=str(folder), skip_bad=True), seed=0)
    assert len(read.train) == 2


def test_an_empty_cell_is_told_and_a_file_beside_fills_it(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a")
    into_table(folder, [("0.png", WORDS[0]), ("1.png", ""), ("2.png", None), ("3.png", WORDS[3])])
    (folder / "2.txt").write_text("from\n the file")
    checked_ = check_data("text-to-image", DataConfig(train=str(folder)))
    kinds = found(checked_.report)
    assert kinds["empty-caption"].places == ["1.png"]
    assert "text column 'text'" in kinds["empty-caption"].what
    assert kinds["not-listed"].places == ["4.png", "5.png"]
    assert [one.values["text"] for one in checked_.parts[0].examples] == [WORDS[0], "from the file", WORDS[3]]


def test_a_column_of_another_name_is_found_or_given_and_its_absence_told(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a")
    into_table(folder, [(f"{number}.png", text) for number, text in enumerate(WORDS)], "what_is_seen")
    report = checked(folder)
    assert report.parts[0].columns == {"file": "file_name", "text": "what_is_seen"}
    assert (report.parts[0].rows, report.findings()) == (6, [])
    assert checked(folder, columns={"text": "what_is_seen"}).parts == report.parts
    into_table(folder, [(f"{number}.png", "x") for number in range(6)], "what_is_seen")
    with pytest.raises(DataError, match="no column known to hold the text"):
        checked(folder)


def test_pictures_of_one_prompt_are_kept_and_looked_at(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a")
    for path in folder.glob("*.txt"):
        path.unlink()
    report = checked(folder)
    assert [(finding.kind, finding.count) for _, finding in report.findings()] == [("uncaptioned", 6)]
    assert "options.instance_prompt" in report.problems[0][1].advice
    assert report.parts[0].usable == 6
    assert "words" not in report.parts[0].lengths
    draw_sheet(tmp_path / "sheet.png", check_data("text-to-image", DataConfig(train=str(folder))))
    assert (tmp_path / "sheet.png").is_file()


def test_tables_in_sub_folders_are_pointed_at(tmp_path: Path) -> None:
    for name in ("dog", "vase"):
        folder_of(tmp_path / "both" / name, table=True, first=len(name))
    report = checked(tmp_path / "both")
    assert report.parts[0].balance["folder"].counts == {"dog": 6, "vase": 6}
    told = {finding.what.partition("(")[2] for _, finding in report.problems}
    assert told == {f"{name}/metadata.jsonl is not read: check and train on {name})" for name in ("dog", "vase")}


def test_captions_that_many_share_and_odd_ones(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a")
    for number, text in enumerate(("A cat.", "a cat", "a  CAT", "a dog", "a dog", "!")):
        (folder / f"{number}.txt").write_text(text)
    kinds = found(checked(folder))
    assert kinds["shared-caption"].places == ["'A cat.' (3 pictures)"]
    assert [place.split()[0] for place in kinds["near-empty"].places] == ["5.png"]


def test_doubles_and_leaks_of_pictures_are_found_whatever_is_said_of_them(tmp_path: Path) -> None:
    train, test = folder_of(tmp_path / "train"), folder_of(tmp_path / "test", first=50)
    shutil.copy(train / "0.png", train / "5.png")
    shutil.copy(train / "1.png", test / "0.png")
    with Image.open(train / "2.png") as image:
        image.resize((192, 160)).save(test / "1.png")
    report = checked(tmp_path)
    assert [part.name for part in report.parts] == ["train", "test"]
    kinds = found(report)
    assert kinds["duplicate"].places == ["5.png = 0.png"]
    assert kinds["leak"].places == ["test/0.png = train/1.png"]
    assert kinds["near-leak"].places == ["test/1.png ≈ train/2.png"]


def test_shapes_are_named_and_counted(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", size=(96, 96))
    Image.new("RGB", (160, 90), "red").save(folder / "0.png")
    Image.new("RGB", (60, 90), "red").save(folder / "1.png")
    assert checked(folder).parts[0].balance["shape"].counts == {"1:1": 4, "16:9": 1, "2:3": 1}
    assert [shape_of(*size) for size in ((100, 99), (99, 100), (4000, 400), (768, 1024))] == [
        "1:1",
        "1:1",
        "3:1",
        "3:4",
    ]


def test_captions_longer_than_the_base_takes(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a")
    tokens = Tokens("a base", lambda texts: [len(text.split()) + 2 for text in texts], 5)
    report = check_data("text-to-image", DataConfig(train=str(folder)), tokens=tokens).report
    assert report.parts[0].lengths["tokens"].max == 6
    assert found(report)["cut"].places == ["3.png (6 tokens)", "4.png (6 tokens)"]


def test_a_sheet_of_captions_that_are_hard_to_draw(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a")
    odd = ("costs $5 or $x^$", "日本語のテキスト", "word " * 300, "w" * 200, "<b>{x}\\n _a_", "short")
    for number, text in enumerate(odd):
        (folder / f"{number}.txt").write_text(text, "utf-8")
    Image.new("RGB", (900, 40), (10, 200, 30)).save(folder / "5.png")
    draw_sheet(tmp_path / "sheet.png", check_data("text-to-image", DataConfig(train=str(folder))))
    with Image.open(tmp_path / "sheet.png") as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 24) or []}
        assert sheet.width == 1400
    assert (10, 200, 30) in colours


def test_a_file_of_a_caption(tmp_path: Path) -> None:
    picture = tmp_path / "one.two.png"
    assert caption_file(picture) is None
    assert absent_caption(picture).endswith("one.two.png has no caption: one.two.txt is not there")
    (tmp_path / "one.two.caption").write_bytes(b"\xef\xbb\xbf a\tb \n\nc")
    assert caption_file(picture) == tmp_path / "one.two.caption"
    assert read_caption(tmp_path / "one.two.caption") == "a b c"
    (tmp_path / "one.two.txt").write_bytes(b"\xef\xbb\xbf\n\xc2\xa0")
    assert caption_file(picture) == tmp_path / "one.two.txt"
    assert read_caption(tmp_path / "one.two.txt") == ""
    with pytest.raises(DataError, match="cannot be read"):
        read_caption(tmp_path)


@pytest.mark.parametrize(("name", "counts"), [("fontawesome_black", (608, 67)), ("dreambooth_subjects/dog", (5,))])
def test_real_sets_are_read_whole_and_are_sound(name: str, counts: tuple[int, ...], shared_data: Path) -> None:
    report = checked(shared_data / "text_to_image" / name)
    assert tuple(part.usable for part in report.parts) == counts
    assert report.problems == []
