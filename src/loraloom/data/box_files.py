"""What annotation files say, COCO JSON or Pascal VOC XML, before any picture is opened."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from loraloom.data.arrow_files import choose_split
from loraloom.data.pictures import PICTURES
from loraloom.data.records import decode, quoted
from loraloom.errors import ConfigError, DataError, suggest

_COCO_NAME = re.compile(r"_?(?:annotations?|instances)[._-]?(?P<split>.*?)\d*(?:[._]coco)?", re.IGNORECASE)
_PICTURE_FOLDERS = ("images", "JPEGImages")


@dataclass(frozen=True)
class Box:
    """One labelled box as it is written down."""

    sides: list[Any]
    """[x, y, width, height] in pixels from the top left corner; not checked yet."""
    label: str
    place: str
    """Where it stands, for errors: "annotation 17", "img_3.xml"."""
    crowd: bool = False
    """Whether it holds a group of things that were not told apart."""
    given_area: float | None = None

    @property
    def area(self) -> float:
        """Pixels: as given (of the outline, where there is one), else width × height."""
        return float(self.sides[2] * self.sides[3]) if self.given_area is None else self.given_area


@dataclass
class Picture:
    """One picture as it is written down."""

    name: str
    size: tuple[int, int] | None
    """Width and height in pixels as the annotations claim; None where they do not."""
    line: int
    """Its number in the source, from 1."""
    boxes: list[Box] = field(default_factory=list)


@dataclass
class Annotated:
    """The pictures of one source."""

    source: str
    pictures: list[Picture]
    roots: Sequence[Path]
    """Folders that names of pictures may be relative to, in the order in which they are tried."""
    columns: Mapping[str, str]
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """What cannot be used and was left out of `pictures`."""

    def path_of(self, name: str) -> Path:
        """The picture's file in the first folder that has it; in the first folder where none has."""
        return next((root / name for root in self.roots if (root / name).is_file()), self.roots[0] / name)


def read_annotations(source: str, split: str | None, prefer: Sequence[str]) -> Annotated:
    """Read the annotations of a COCO JSON file, or of a folder of one of the layouts in `data.boxes`.

    Raises DataError for what is no such thing or is broken, ConfigError for a split that cannot be had.
    """
    path = Path(source).expanduser()
    if not path.exists():
        near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{source} does not exist{suggest(path.name, near)}")
    if path.is_dir():
        return _read_folder(path, source, split, prefer)
    if path.suffix.lower() == ".xml":
        return _read_voc(source, [path], [path.parent, *(path.parent.parent / name for name in _PICTURE_FOLDERS)])
    if path.suffix.lower() != ".json":
        raise DataError(f"{source}: boxes are read from COCO .json files and Pascal VOC folders, found {path.suffix!r}")
    if split is not None:
        raise ConfigError(f"split {split!r} was asked of {source}, which is one file; give the folder that holds it")
    return _read_coco(path, source)


def _read_folder(folder: Path, source: str, split: str | None, prefer: Sequence[str]) -> Annotated:
    if found := _coco_files(folder):
        names = {_split_of(file, folder): file for file in found}
        if list(names) == [""] and split is None:
            return _read_coco(found[0], source)
        chosen = choose_split(source, sorted(name for name in names if name), split, prefer)
        annotated = _read_coco(names[chosen], source)
        annotated.notes.insert(0, f"{source}: split {chosen!r}, from {names[chosen].name}")
        return annotated
    xml_folder = next((folder / name for name in ("Annotations", "annotations") if (folder / name).is_dir()), folder)
    files = sorted(file for file in xml_folder.glob("*.xml") if not file.name.startswith("."))
    if not files:
        raise DataError(
            f"{source} holds neither COCO annotations (annotations*.json, instances_*.json) nor Pascal VOC files "
            "(Annotations/*.xml); expected one of these beside its pictures"
        )
    files, notes = _voc_split(folder, files, source, split, prefer)
    annotated = _read_voc(source, files, [*(folder / name for name in _PICTURE_FOLDERS), folder])
    annotated.notes += [*notes, *_without_annotation(annotated, files if split is None and not notes else None)]
    return annotated


# --- COCO


def _coco_files(folder: Path) -> list[Path]:
    """COCO files of a folder, of its annotations/, of its sub-folders, or those that its parent has for it."""
    places = [folder, folder / "annotations", *sorted(entry for entry in folder.iterdir() if entry.is_dir())]
    for files in (_named_files(places[:1]), _named_files(places[1:2]), _named_files(places[2:])):
        if files:
            return files
    return [file for file in _named_files([folder.parent]) if _split_name(file) == folder.name]


def _named_files(folders: Sequence[Path]) -> list[Path]:
    files = (file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.json")))
    return [file for file in files if _COCO_NAME.fullmatch(file.stem)]


def _split_name(file: Path) -> str:
    """ "train" of annotations_train.json and instances_train2017.json, "" of annotations.json."""
    match = _COCO_NAME.fullmatch(file.stem)
    return match["split"].strip("._-") if match else ""


def _split_of(file: Path, folder: Path) -> str:
    """The split that a file is for: by its own name, or by that of the sub-folder that it lies in."""
    name = _split_name(file)
    return name or ("" if file.parent in (folder, folder / "annotations") else file.parent.name)


def _read_coco(path: Path, source: str) -> Annotated:
    content = _coco_content(path, source)
    categories, faults = _categories(content["categories"], source), list[str]()
    pictures = _coco_pictures(content["images"], source, faults)
    for position, entry in enumerate(content["annotations"], start=1):
        fault = _place_box(entry, position, pictures, categories)
        if fault:
            faults.append(fault)
    columns = {"file": "file_name", "boxes": "bbox", "labels": "category_id"}
    return Annotated(source, list(pictures.values()), _coco_roots(path), columns, faults=faults)


def _coco_roots(path: Path) -> list[Path]:
    """Folders in which the pictures of a COCO file may lie."""
    split, beside = path.stem, [path.parent]
    if path.parent.name == "annotations":
        beside.append(path.parent.parent)
    names = [_split_name(path), re.sub(r"^(annotations?|instances)[._-]", "", split)]
    inner = ["images", *(name for name in names if name), *(f"images/{name}" for name in names if name)]
    return [*beside, *(folder / name for folder in beside for name in inner)]


def _coco_content(path: Path, source: str) -> dict[str, list[Any]]:
    """The three lists of a COCO file. Raises DataError for anything else."""
    try:
        text = decode(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        cut = "; it is truncated JSON: fetch or write it again" if error.pos >= len(text.rstrip()) - 1 else ""
        raise DataError(f"{path}:{error.lineno}: broken JSON ({error.msg} at column {error.colno}){cut}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: broken JSON ({error})") from None
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict):
        found = "a list, such as predictions are kept in" if isinstance(content, list) else "no object"
        raise DataError(f"{path} is {found}; a COCO file is an object with {quoted(keys)}")
    for key in keys:
        if not isinstance(content.get(key), list):
            state = "holds no list" if key in content else "has no list"
            raise DataError(f"{path} {state} {key!r}; a COCO file has {quoted(keys)}{suggest(key, content)}")
    return content


def _categories(entries: Sequence[Any], source: str) -> dict[Any, str]:
    """Category id to name. Raises DataError for broken ones and for two with the same id or name."""
    named: dict[Any, str] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int) or not _is_name(entry.get("name")):
            raise DataError(f'{source}: a category is {entry!r}, expected {{"id": 1, "name": "…"}}')
        if entry["id"] in named:
            raise DataError(f"{source}: two categories have the id {entry['id']}")
        named[entry["id"]] = entry["name"].strip()
    double = [name for name, count in Counter(named.values()).items() if count > 1]
    if double:
        raise DataError(f"{source}: two categories are named {double[0]!r}; give them different names")
    return named


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _coco_pictures(entries: Sequence[Any], source: str, faults: list[str]) -> dict[Any, Picture]:
    """Picture id to picture, in the file's order; what cannot be one goes to `faults`."""
    pictures: dict[Any, Picture] = {}
    names: set[str] = set()
    for position, entry in enumerate(entries, start=1):
        key, name = (entry.get("id"), entry.get("file_name")) if isinstance(entry, dict) else (None, None)
        if not isinstance(key, int | str) or not _is_name(name):
            faults.append(f"image {position} of {source} is {_short(entry)}, expected an 'id' and a 'file_name'")
        elif key in pictures:
            faults.append(f"the image id {key} stands for {pictures[key].name!r} and again for {name!r}")
        elif name in names:
            faults.append(f"the picture {name!r} has two image ids, the second is {key}")
        else:
            names.add(str(name))
            pictures[key] = Picture(str(name), _claimed_size(entry), position)
    return pictures


def _claimed_size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = entry.get("width"), entry.get("height")
    if not isinstance(width, int | float) or not isinstance(height, int | float):
        return None
    return (round(width), round(height)) if 0 < width < 1e6 and 0 < height < 1e6 else None


def _place_box(entry: Any, position: int, pictures: Mapping[Any, Picture], categories: Mapping[Any, str]) -> str:
    """Give one annotation to its picture; returns what is wrong with it, "" when nothing is."""
    if not isinstance(entry, dict):
        return f"annotation {position} is {_short(entry)}, expected an object"
    place = f"annotation {entry.get('id', f'number {position}')}"
    image, category = entry.get("image_id"), entry.get("category_id")
    if not isinstance(image, int | str) or image not in pictures:
        return f"{place} is for the image id {image!r}, which no image has"
    picture = pictures[image]
    if not isinstance(category, int) or category not in categories:
        known = quoted([f"{key} {name}" for key, name in categories.items()], most=5)
        return f"{place} ({picture.name}): its category id {category!r} is unknown, there are {known}"
    if "bbox" not in entry:
        return f"{place} ({picture.name}) has no 'bbox'"
    crowd, area = bool(entry.get("iscrowd")), _area(entry.get("area"))
    picture.boxes.append(Box(entry["bbox"], categories[category], place, crowd, area))
    return ""


def _area(value: object) -> float | None:
    """An area in pixels; None for what cannot be one."""
    return float(value) if isinstance(value, int | float) and 0 < value < 1e12 else None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}…"


# --- Pascal VOC


def _voc_split(
    folder: Path, files: list[Path], source: str, split: str | None, prefer: Sequence[str]
) -> tuple[list[Path], list[str]]:
    """The annotation files that ImageSets/Main names for a split; all where there are no lists."""
    lists = {file.stem: file for file in sorted((folder / "ImageSets" / "Main").glob("*.txt"))}
    lists = {name: file for name, file in lists.items() if name in ("train", "val", "trainval", "test")}
    if not lists:
        if split is not None:
            raise ConfigError(f"split {split!r} was asked of {source}, which has no ImageSets/Main/{split}.txt")
        return files, []
    chosen = choose_split(source, list(lists), split, [*prefer, "trainval", "val"])
    named = [line.split()[0] for line in decode(lists[chosen].read_bytes(), str(lists[chosen])).splitlines() if line]
    by_stem = {file.stem: file for file in files}
    absent = [name for name in named if name not in by_stem]
    if absent:
        raise DataError(f"{lists[chosen]} names {absent[0]!r}, for which there is no Annotations/{absent[0]}.xml")
    return [by_stem[name] for name in named], [f"{source}: split {chosen!r}, {len(named)} pictures"]


def _read_voc(source: str, files: Sequence[Path], roots: Sequence[Path]) -> Annotated:
    """VOC counts pixels from 1 and names the last one inside: x is xmin − 1, and the width xmax − xmin + 1."""
    present = [root for root in roots if root.is_dir()]
    annotated = Annotated(source, [], present, {"file": "filename", "boxes": "bndbox", "labels": "name"})
    for number, file in enumerate(files, start=1):
        try:
            root = _parsed(file)
            size = _voc_size(root)
            boxes = [_voc_box(entry, file) for entry in root.iter("object")]
        except DataError as error:
            annotated.faults.append(str(error))
            continue
        annotated.pictures.append(Picture(_voc_picture(root, file, annotated), size, number, boxes))
    return annotated


def _parsed(file: Path) -> ElementTree.Element:
    """The root of an annotation file. Raises DataError."""
    try:
        content = file.read_bytes()
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
            raise DataError(f"{file.name} declares entities, which annotations have no need of; it is not read")
        root = ElementTree.fromstring(content)
    except OSError as error:
        raise DataError(f"{file.name} cannot be read: {error.strerror}") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{file.name} is broken XML ({error})") from None
    if root.tag != "annotation":
        raise DataError(f"{file.name} begins with <{root.tag}>, <annotation> is expected")
    return root


def _voc_size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Width and height; some tools write 0 for a size that they do not know."""
    width, height = root.findtext("size/width", "0").strip(), root.findtext("size/height", "0").strip()
    known = width.isdecimal() and height.isdecimal() and int(width) and int(height)
    return (int(width), int(height)) if known else None


def _voc_box(entry: ElementTree.Element, file: Path) -> Box:
    name = entry.findtext("name", "").strip()
    if not name:
        raise DataError(f"{file.name}: an object has no <name>")
    corners = []
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = entry.findtext(f"bndbox/{key}", "").strip()
        try:
            corners.append(float(text))
        except ValueError:
            raise DataError(f"{file.name}: <{key}> of a {name!r} is {text!r}, a number is expected") from None
    left, top, right, bottom = corners
    return Box([left - 1, top - 1, right - left + 1, bottom - top + 1], name, f"{name!r} in {file.name}")


def _voc_picture(root: ElementTree.Element, file: Path, annotated: Annotated) -> str:
    """The picture's name: as written where it is there, else that of the annotation file with a picture's suffix."""
    written = Path(root.findtext("filename", "").strip().replace("\\", "/")).name
    candidates = [written, *(file.stem + suffix for suffix in _suffixes())] if written else _suffixed(file)
    for name in candidates:
        if annotated.path_of(name).is_file():
            return name
    return candidates[0]


def _suffixed(file: Path) -> list[str]:
    return [file.stem + suffix for suffix in _suffixes()]


def _suffixes() -> Iterator[str]:
    for suffix in sorted(PICTURES.suffixes, key=lambda one: (one not in (".jpg", ".png"), one)):
        yield from (suffix, suffix.upper())


def _without_annotation(annotated: Annotated, files: Sequence[Path] | None) -> list[str]:
    """A note on pictures beside that no annotation file is for, where all files were read."""
    if files is None or not annotated.roots:
        return []
    stems = {file.stem for file in files} | {Path(picture.name).stem for picture in annotated.pictures}
    beside = [file for file in sorted(annotated.roots[0].iterdir()) if file.suffix.lower() in PICTURES.suffixes]
    others = [file.name for file in beside if file.stem not in stems]
    if not others:
        return []
    return [f"{annotated.source}: {len(others)} pictures have no annotation file and are left out, e.g. {others[0]!r}"]
