"""COCO JSON and Pascal VOC folders, whole and broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from loraloom.data.boxes import known_labels, read_boxes, refuse_unknown
from loraloom.data.config import DataConfig
from loraloom.data.table import Table
from loraloom.errors import ConfigError, DataError

Coco = dict[str, Any]


def picture(path: Path, size: tuple[int, int] = (60, 40), colour: tuple[int, int, int] = (90, 120, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def coco() -> Coco:
    """Two pictures of 60 × 40 pixels with a box each, and a third without."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 60, "height": 40},
            {"id": 8, "file_name": "b.png", "width": 60, "height": 40},
            {"id": 9, "file_name": "c.png", "width": 60, "height": 40},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 2, "bbox": [5, 6, 20, 10], "area": 150.5, "iscrowd": 0},
            {"id": 2, "image_id": 8, "category_id": 1, "bbox": [1.5, 2, 30, 30]},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def write(folder: Path, content: Coco, name: str = "annotations.json", pictures: str = ".") -> Path:
    for number, letter in enumerate("abc"):
        picture(folder / pictures / f"{letter}.png", colour=(number * 40, 90, 200))
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")
    return path


def read(source: Path, split: str | None = None, **settings: Any) -> Table:
    return read_boxes(str(source), data=DataConfig(train=str(source), **settings), split=split)


def refused(source: Path, **settings: Any) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        read(source, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def changed(change: Callable[[Coco], Any]) -> Coco:
    content = coco()
    change(content)
    return content


# --- COCO


def test_boxes_labels_and_facts(tmp_path: Path) -> None:
    table = read(write(tmp_path, coco()))
    first, second, third = (example.values for example in table.examples)
    assert (first["boxes"], first["labels"], first["areas"]) == ([[5, 6, 20, 10]], ["dog"], [150.5])
    assert (second["boxes"], second["areas"], second["crowd"]) == ([[1.5, 2, 30, 30]], [900.0], [False])
    assert (third["boxes"], third["width"], third["height"]) == ([], 60, 40)
    assert Path(first["file"]) == tmp_path / "a.png" and len(first["sha256"]) == 64
    assert any("3 pictures, 2 boxes: cat (1), dog (1)" in note for note in table.notes)
    assert any("1 pictures have no box and are kept as background" in note for note in table.notes)
    assert known_labels(table.examples) == ("cat", "dog")


@pytest.mark.parametrize(
    ("name", "pictures", "asked"),
    [
        ("annotations.json", ".", "."),
        ("annotations.json", "images", "annotations.json"),
        ("annotations_train.json", "train", "."),
        ("annotations_train.json", "images/train", "annotations_train.json"),
        ("annotations/instances_train2017.json", "train2017", "."),
        ("train/_annotations.coco.json", "train", "."),
        ("annotations_train.json", "train", "train"),
    ],
)
def test_layouts(name: str, pictures: str, asked: str, tmp_path: Path) -> None:
    write(tmp_path, coco(), name, pictures)
    table = read(tmp_path / asked)
    assert [Path(example.values["file"]) for example in table.examples] == [
        tmp_path / pictures / f"{letter}.png" for letter in "abc"
    ]


def test_a_split_is_chosen_or_asked_for(tmp_path: Path) -> None:
    write(tmp_path, coco(), "annotations_train.json", "train")
    write(tmp_path, changed(lambda c: c["images"].pop()), "annotations_test.json", "test")
    assert len(read(tmp_path).examples) == 3
    assert len(read(tmp_path, "test").examples) == 2
    with pytest.raises(DataError, match="no split 'tset'.*did you mean 'test'"):
        read(tmp_path, "tset")
    with pytest.raises(ConfigError, match="which is one file"):
        read(tmp_path / "annotations_test.json", "test")


def test_the_digest_is_of_contents_and_not_of_places(tmp_path: Path) -> None:
    one, other = read(write(tmp_path / "one", coco())), read(write(tmp_path / "two", coco()))
    assert one.sha256 == other.sha256
    moved = changed(lambda c: c["annotations"][0].update(bbox=[5, 6, 20, 11]))
    assert read(write(tmp_path / "three", moved)).sha256 != one.sha256


def test_boxes_that_stick_out_are_cut_and_counted(tmp_path: Path) -> None:
    content = changed(lambda c: c["annotations"][0].update(bbox=[-5, 30, 20, 30], area=600))
    table = read(write(tmp_path, content))
    assert table.examples[0].values["boxes"] == [[0, 30, 15, 10]]
    assert table.examples[0].values["areas"] == [150.0]
    assert any("1 boxes stuck out of their picture and were cut" in note for note in table.notes)
    rounding = changed(lambda c: c["annotations"][0].update(bbox=[40, 30, 20.4, 10.4]))
    table = read(write(tmp_path, rounding))
    assert table.examples[0].values["boxes"] == [[40, 30, 20, 10]]
    assert not any("stuck out" in note for note in table.notes)


def test_crowds_are_told(tmp_path: Path) -> None:
    table = read(write(tmp_path, changed(lambda c: c["annotations"][1].update(iscrowd=1))))
    assert table.examples[1].values["crowd"] == [True]
    assert any("1 boxes hold a crowd" in note for note in table.notes)


BAD_BOXES: dict[str, tuple[Callable[[Coco], Any], str]] = {
    "outside": (lambda c: c["annotations"][0].update(bbox=[70, 5, 5, 5]), "lies outside the 60 x 40 picture"),
    "zero": (lambda c: c["annotations"][0].update(bbox=[5, 5, 0, 5]), "is 0 wide and 5 high"),
    "negative": (lambda c: c["annotations"][0].update(bbox=[5, 5, 4, -5]), "is 4 wide and -5 high"),
    "nan": (lambda c: c["annotations"][0].update(bbox=[5, float("nan"), 4, 5]), "is not finite"),
    "infinite": (lambda c: c["annotations"][0].update(bbox=[5, 1, float("inf"), 5]), "is not finite"),
    "three numbers": (lambda c: c["annotations"][0].update(bbox=[5, 5, 4]), "four numbers"),
    "texts": (lambda c: c["annotations"][0].update(bbox=["5", 5, 4, 5]), "four numbers"),
    "no box": (lambda c: c["annotations"][0].pop("bbox"), "has no 'bbox'"),
    "unknown category": (lambda c: c["annotations"][0].update(category_id=3), "category id 3 is unknown.*'1 cat'"),
    "no picture": (lambda c: c["annotations"][0].update(image_id=70), "image id 70, which no image has"),
    "no object": (lambda c: c["annotations"].__setitem__(0, 5), "annotation 1 is 5, expected an object"),
}


@pytest.mark.parametrize("name", BAD_BOXES)
def test_a_bad_box_is_named_or_left_out(name: str, tmp_path: Path) -> None:
    change, expected = BAD_BOXES[name]
    path = write(tmp_path, changed(change))
    message = refused(path)
    assert "annotation 1" in message
    with pytest.raises(DataError, match=expected):
        read(path)
    table = read(path, skip_bad=True)
    assert [len(example.values["boxes"]) for example in table.examples] == [0, 1, 0]
    assert any(note.endswith("left out") and "annotation 1" in note for note in table.notes)


BAD_PICTURES: dict[str, tuple[Callable[[Coco], Any], str]] = {
    "missing": (lambda c: c["images"][0].update(file_name="aa.png"), "aa.png does not exist; did you mean 'a.png'"),
    "size": (lambda c: c["images"][0].update(width=30, height=20), "a.png is 60 x 40 pixels but annotated as 30 x 20"),
    "turned": (lambda c: c["images"][0].update(width=40, height=60), "as if its EXIF data turned it"),
    "same id": (lambda c: c["images"].insert(0, {"id": 8, "file_name": "z.png"}), "image id 8 stands for 'z.png' and"),
    "same file": (lambda c: c["images"][0].update(file_name="b.png"), "'b.png' has two image ids"),
    "no name": (lambda c: c["images"][0].pop("file_name"), "image 1 of .* expected an 'id' and a 'file_name'"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_bad_picture_is_named_or_left_out(name: str, tmp_path: Path) -> None:
    change, expected = BAD_PICTURES[name]
    path = write(tmp_path, changed(change))
    with pytest.raises(DataError, match=expected):
        read(path)
    assert len(read(path, skip_bad=True).examples) in (1, 2)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, coco())
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:60])
    assert "b.png" in refused(path)
    assert len(read(path, skip_bad=True).examples) == 2


def test_faults_are_told_together_and_the_first_named(tmp_path: Path) -> None:
    def spoil(content: Coco) -> None:
        content["annotations"] = [{"id": n, "image_id": 7, "category_id": 1, "bbox": [0, 0, 0, 0]} for n in range(1, 9)]

    message = refused(write(tmp_path, changed(spoil)))
    assert "8 pictures or boxes cannot be used" in message and message.endswith("and 3 more")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"images": [], "annotations": [{"id"', "truncated JSON"),
        ('{"images": [1,, 2]}', "broken JSON"),
        ("[1, 2]", "is a list, such as predictions are kept in"),
        ("3", "a COCO file is an object"),
        ('{"images": [], "annotation": []}', "has no list 'annotations'.*did you mean 'annotation'"),
        ('{"images": {}, "annotations": [], "categories": []}', "holds no list 'images'"),
        ('{"images": [], "annotations": [], "categories": []}', "names no pictures"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "a category is"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "id 1"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}', "named"),
        ("", "is empty"),
    ],
)
def test_what_is_no_coco_file(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(text, "utf-8")
    with pytest.raises(DataError, match=expected):
        read(path)


def test_what_is_no_source(tmp_path: Path) -> None:
    write(tmp_path, coco())
    assert "did you mean 'annotations.json'" in refused(tmp_path / "anotations.json")
    (tmp_path / "empty").mkdir()
    assert "neither COCO annotations" in refused(tmp_path / "empty")
    assert "found '.png'" in refused(tmp_path / "a.png")


def test_labels_may_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path, coco())
    table = read(path, where={"label": ["dog"]})
    assert [example.values["labels"] for example in table.examples] == [["dog"], [], []]
    assert "no box of" in refused(path, where={"label": ["dgo"]})
    assert "only the column 'label'" in refused(path, where={"speaker": ["a"]})


def test_labels_that_training_never_saw(tmp_path: Path) -> None:
    examples = read(write(tmp_path, coco())).examples
    with pytest.raises(DataError, match=r"1 boxes have labels .*'dog', first in a.png; it knows 'cat', 'dgo'.*'dgo'"):
        refuse_unknown(examples, ["cat", "dgo"])
    with pytest.raises(DataError, match="has a box"):
        known_labels(examples[2:])


# --- Pascal VOC

XML = """<annotation><filename>{name}</filename><size><width>60</width><height>40</height><depth>3</depth></size>
<object><name>cell</name><difficult>0</difficult>
<bndbox><xmin>6</xmin><ymin>7</ymin><xmax>25</xmax><ymax>16</ymax></bndbox></object></annotation>"""


def voc(folder: Path, annotations: str = "Annotations", pictures: str = "JPEGImages") -> Path:
    for letter in "ab":
        picture(folder / pictures / f"{letter}.png")
        path = folder / annotations / f"{letter}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(XML.format(name=f"{letter}.png"), "utf-8")
    return folder


@pytest.mark.parametrize(("annotations", "pictures"), [("Annotations", "JPEGImages"), (".", "."), (".", "images")])
def test_voc_counts_pixels_from_one(annotations: str, pictures: str, tmp_path: Path) -> None:
    table = read(voc(tmp_path, annotations, pictures))
    assert [example.values["boxes"] for example in table.examples] == [[[5, 6, 20, 10]]] * 2
    assert table.examples[0].values["labels"] == ["cell"]


def test_voc_lists_of_splits(tmp_path: Path) -> None:
    voc(tmp_path)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("b\n", "utf-8")
    (lists / "test.txt").write_text("a\n", "utf-8")
    (lists / "cell_train.txt").write_text("b  1\n", "utf-8")  # VOC's lists of one class
    assert [Path(example.values["file"]).name for example in read(tmp_path).examples] == ["b.png"]
    assert [Path(example.values["file"]).name for example in read(tmp_path, "test").examples] == ["a.png"]
    (lists / "train.txt").write_text("z\n", "utf-8")
    assert "names 'z', for which there is no Annotations/z.xml" in refused(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("</annotation>", "", "a.xml is broken XML"),
        ("<xmax>25</xmax>", "<xmax>wide</xmax>", "<xmax> of a 'cell' is 'wide', a number is expected"),
        ("<xmax>25</xmax>", "<xmax>nan</xmax>", "is not finite"),
        ("<xmax>25</xmax>", "<xmax>5</xmax>", "is 0 wide"),
        ("<name>cell</name>", "", "an object has no <name>"),
        ("<width>60</width>", "<width>61</width>", "is 60 x 40 pixels but annotated as 61 x 40"),
        ("a.png", "../../etc/q.png", "q.png does not exist|a.png"),
        ("<annotation>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>', "declares entities"),
        ("annotation>", "notes>", "begins with <notes>"),
    ],
)
def test_broken_voc_files(old: str, new: str, expected: str, tmp_path: Path) -> None:
    file = voc(tmp_path) / "Annotations" / "a.xml"
    file.write_text(file.read_text("utf-8").replace(old, new), "utf-8")
    if "q.png" in new:  # the picture is found beside, whatever folder its name claims
        assert Path(read(tmp_path).examples[0].values["file"]).parent.name == "JPEGImages"
        return
    with pytest.raises(DataError, match=expected):
        read(tmp_path)
    assert len(read(tmp_path, skip_bad=True).examples) in (1, 2)


def test_voc_pictures_without_annotation_are_told(tmp_path: Path) -> None:
    picture(voc(tmp_path) / "JPEGImages" / "c.png")
    table = read(tmp_path)
    assert len(table.examples) == 2
    assert any("1 pictures have no annotation file and are left out, e.g. 'c.png'" in note for note in table.notes)


def test_the_real_set(shared_data: Path) -> None:
    folder = shared_data / "object_detection" / "bccd"
    train, test = (read(folder, split) for split in ("train", "test"))
    assert (len(train.examples), len(test.examples)) == (216, 60)
    assert sum(len(example.values["boxes"]) for example in test.examples) == 779
    assert known_labels(train.examples) == ("Platelets", "RBC", "WBC")
