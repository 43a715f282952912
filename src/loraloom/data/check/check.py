"""A whole data set, read without training: which parts it has, what is in each, what they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loraloom.data.box_files import read_annotations
from loraloom.data.check.boxes import Boxes
from loraloom.data.check.captions import Captioned
from loraloom.data.check.findings import Findings
from loraloom.data.check.modality import Layout, Modality
from loraloom.data.check.pairs import Pairs
from loraloom.data.check.part import Part, Progress, Tokens
from loraloom.data.check.pictures import Pictures
from loraloom.data.check.recordings import Recordings
from loraloom.data.check.report import Report
from loraloom.data.check.text import LabelledTexts
from loraloom.data.check.writing import Writing
from loraloom.data.config import DataConfig
from loraloom.data.files import SPLITS
from loraloom.data.sources import PACKAGED, READERS
from loraloom.errors import ConfigError, DataError, suggest

MODALITIES: dict[str, type[Modality]] = {
    "text-classification": LabelledTexts,
    "causal-lm": Writing,
    "translation": Pairs,
    "image-classification": Pictures,
    "object-detection": Boxes,
    "speech-recognition": Recordings,
    "speech-synthesis": Recordings,
    "text-to-image": Captioned,
}
"""Task to what its data are."""


@dataclass(frozen=True)
class Checked:
    """A report, and the parts it was made from, for a sample sheet."""

    report: Report
    parts: list[Part]
    modality: Modality


def check_data(
    task: str, data: DataConfig, *, tokens: Tokens | None = None, progress: Progress | None = None
) -> Checked:
    """Read `data.train`, and `data.eval` or the splits beside it, and say what is in them.

    Goes on past rows and files that cannot be used. Raises ConfigError for an unknown task, DataError where
    there is nothing that can be read.
    """
    if task not in MODALITIES:
        known = ", ".join(MODALITIES)
        raise ConfigError(f"task: {task!r} is unknown, {known} can be used{suggest(task, MODALITIES)}")
    modality = MODALITIES[task]()
    parts = find_parts(data, modality)
    for part in parts:
        modality.read(part, data, progress)
        modality.examine(part, tokens)
    between = Findings()
    for held_out in parts[1:]:
        modality.compare(parts[0], held_out, between)
    return Checked(Report.of(task, parts, between), parts, modality)


def find_parts(data: DataConfig, modality: Modality) -> list[Part]:
    """The parts of a data set: what is given, else the splits that a folder or packaged set holds."""
    if data.eval is not None:
        return [Part("train", data.train, data.split), Part("evaluation", data.eval, data.eval_split)]
    if data.split is not None or data.eval_split is not None:
        held_out = [Part(data.eval_split, data.train, data.eval_split)] if data.eval_split else []
        return [Part(data.split or "train", data.train, data.split or "train"), *held_out]
    path = Path(data.train).expanduser()
    if not path.exists() and data.train in PACKAGED:
        return [Part(name, data.train, name) for name in PACKAGED[data.train]]
    if path.is_dir():
        found = _SPLITS[modality.layout](path)
        if found:
            return found
    return [Part("data", data.train)]


def _folders(path: Path) -> list[Part]:
    """Splits as sub-folders; none where there are other folders too, which then are classes."""
    beside = {entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    if beside - set(SPLITS):
        return []
    return [Part(name, str(path / name)) for name in SPLITS if name in beside]


def _tables(path: Path) -> list[Part]:
    """Splits as tables named train.csv, test.csv and the like."""
    files = [path / f"{name}{suffix}" for name in SPLITS for suffix in READERS]
    return [Part(file.stem, str(file)) for file in files if file.is_file()]


def _annotated(path: Path) -> list[Part]:
    """Splits that a folder has annotations for."""
    return [Part(name, str(path), name) for name in SPLITS if _has_annotations(path, name)]


def _has_annotations(path: Path, split: str) -> bool:
    try:
        read_annotations(str(path), split, ())
    except ConfigError:
        return False
    except DataError as error:
        return f"has no split {split!r}" not in str(error)  # anything else is told when the part is read
    return True


_SPLITS: dict[Layout, Callable[[Path], list[Part]]] = {"table": _tables, "folders": _folders, "annotations": _annotated}
