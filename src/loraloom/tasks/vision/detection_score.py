"""COCO's mean average precision by pycocotools, with 95 % intervals by a bootstrap over the pictures."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loraloom.errors import DataError, MissingExtraError

try:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
except ImportError:  # told when a score is asked for: training and prediction work without
    COCO = COCOeval = None

MOST_BOXES = 100
"""Boxes of a picture that COCO looks at."""
RESAMPLES = 200
_SIZES = {"map_small": 3, "map_medium": 4, "map_large": 5}  # places in COCOeval's list of statistics
_FEWEST = 2  # pictures: of fewer there is nothing to draw


class Detections(NamedTuple):
    """What the model finds in one picture, best first."""

    boxes: list[list[float]]
    """[x, y, width, height] in pixels of the file's picture."""
    labels: list[int]
    scores: list[float]
    """0 to 1, falling."""


@dataclass(frozen=True)
class Truth:
    """The boxes that a picture is annotated with."""

    size: tuple[int, int]
    """Width and height in pixels."""
    boxes: list[list[float]]
    labels: list[int]
    areas: list[float]
    """In pixels: what COCO's classes of size go by."""
    crowd: list[bool]


def check_installed() -> None:
    """Raise MissingExtraError where pycocotools is not installed."""
    if COCO is None:
        raise MissingExtraError('scoring boxes takes pycocotools: pip install "loraloom[detection]"')


def score_boxes(found: Sequence[Detections], truths: Sequence[Truth], names: Sequence[str]) -> dict[str, float]:
    """mAP over IoU 0.5 to 0.95 as "map", at 0.5 and 0.75, by size of box where there are any, and of each class.

    "map_low", "map_high" and the same of "map50" bound 95 % by the percentile bootstrap over pictures (Efron
    1979), always the same draws. Raises DataError when there is nothing to score, MissingExtraError.
    """
    check_installed()
    if not any(len(truth.boxes) > sum(truth.crowd) for truth in truths):
        raise DataError(f"evaluation: {len(truths)} pictures without any box, there is nothing to score")
    judged = _judged(found, truths, names)
    stats = [float(value) for value in judged.stats]
    scores = {"map": stats[0], "map50": stats[1], "map75": stats[2]}
    scores |= {key: stats[place] for key, place in _SIZES.items() if stats[place] >= 0}
    classes = _by_class(judged, len(truths))
    if len(truths) >= _FEWEST:
        scores |= _intervals(classes, len(truths))
    alone = average_precision(classes, np.ones((1, len(truths))))
    for number, name in enumerate(names):
        if not np.isnan(alone[0, number, 0]):
            scores[f"map50_{name}"] = float(alone[0, number, 0])
    return {**scores, "n": float(len(truths))}


def _judged(found: Sequence[Detections], truths: Sequence[Truth], names: Sequence[str]) -> Any:
    """COCOeval after all its steps, which print, so that nobody sees it."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = _coco_truth(truths, names)
        truth.createIndex()
        results = COCO()
        results.dataset = {**truth.dataset, "annotations": _coco_results(found)}
        results.createIndex()
        judged = COCOeval(truth, results, "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return judged


def _coco_truth(truths: Sequence[Truth], names: Sequence[str]) -> dict[str, Any]:
    annotations = [
        {"image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": int(crowd)}
        for image, truth in enumerate(truths)
        for box, label, area, crowd in zip(truth.boxes, truth.labels, truth.areas, truth.crowd, strict=True)
    ]
    return {
        "info": {},
        "images": [
            {"id": image, "width": truth.size[0], "height": truth.size[1]} for image, truth in enumerate(truths)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
        # ids count from 1: COCOeval marks a match by the id, and takes 0 for none
        "annotations": [{**entry, "id": number} for number, entry in enumerate(annotations, start=1)],
    }


def _coco_results(found: Sequence[Detections]) -> list[dict[str, Any]]:
    entries = [
        {"image_id": image, "category_id": label, "bbox": box, "score": score, "area": box[2] * box[3], "iscrowd": 0}
        for image, one in enumerate(found)
        for box, label, score in zip(one.boxes, one.labels, one.scores, strict=True)
    ]
    return [{**entry, "id": number} for number, entry in enumerate(entries, start=1)]


# --- intervals


@dataclass(frozen=True)
class Matches:
    """The judged boxes of one class, best score first: D of them, T thresholds of IoU."""

    image: NDArray[np.int64]
    """Which picture each is in (D,)."""
    hit: NDArray[np.bool_]
    """Whether it matches an annotated box (T, D)."""
    counts: NDArray[np.bool_]
    """Whether it counts at all (T, D): matches of crowds do not."""
    wanted: NDArray[np.float64]
    """Annotated boxes in each picture."""


def _by_class(judged: Any, pictures: int) -> list[Matches]:
    """COCOeval's matches of boxes of any size, class by class."""
    areas, thresholds = len(judged.params.areaRng), len(judged.params.iouThrs)
    classes = []
    for number in range(len(judged.params.catIds)):
        start = number * areas * pictures
        parts = [(i, part) for i, part in enumerate(judged.evalImgs[start : start + pictures]) if part is not None]
        wanted = np.zeros(pictures)
        for image, part in parts:
            wanted[image] = np.sum(np.asarray(part["gtIgnore"]) == 0)
        scores = np.concatenate([np.zeros(0), *(np.asarray(part["dtScores"]) for _, part in parts)])
        order = np.argsort(-scores, kind="mergesort")  # as COCOeval sorts
        empty = np.zeros((thresholds, 0))
        image_of = np.concatenate([np.zeros(0), *(np.full(len(part["dtScores"]), image) for image, part in parts)])
        matched = np.concatenate([empty, *(part["dtMatches"].reshape(thresholds, -1) for _, part in parts)], axis=1)
        ignored = np.concatenate([empty, *(part["dtIgnore"].reshape(thresholds, -1) for _, part in parts)], axis=1)
        classes.append(Matches(image_of[order].astype(np.int64), matched[:, order] > 0, ignored[:, order] == 0, wanted))
    return classes


def average_precision(classes: Sequence[Matches], drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """COCO's average precision where picture i is there `drawn[s, i]` times, of S resamples: (S, classes, T).

    The mean, over 101 levels of recall, of the best precision at that recall or more; nan where a class has no
    box. Counting a picture twice is what COCOeval would do with two copies of it.
    """
    thresholds = len(classes[0].hit)
    result = np.full((len(drawn), len(classes), thresholds), np.nan)
    for number, one in enumerate(classes):
        weights, wanted = drawn[:, one.image], drawn @ one.wanted
        for level in range(thresholds):
            counted = np.nonzero(one.counts[level])[0]
            precision = _precision(weights[:, counted], one.hit[level, counted], wanted)
            result[:, number, level] = np.where(wanted > 0, precision, np.nan)
    return result


def _precision(weights: NDArray[np.float64], hit: NDArray[np.bool_], wanted: NDArray[np.float64]) -> Any:
    """Average precision of S resamples: `weights` (S, D) of boxes best first, `hit` (D,), `wanted` (S,)."""
    hits, all_boxes = np.cumsum(weights * hit, axis=1), np.cumsum(weights, axis=1)
    precision = hits / np.maximum(all_boxes, np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = hits / np.maximum(wanted, 1)[:, None]
    levels = np.linspace(0, 1, 101)
    means = np.zeros(len(weights))
    for row in range(len(weights)):
        places = np.searchsorted(recall[row], levels, side="left")
        means[row] = best[row, places[places < best.shape[1]]].sum() / len(levels)
    return means


def _intervals(classes: Sequence[Matches], pictures: int) -> dict[str, float]:
    """95 % of "map" and "map50" over RESAMPLES draws of the pictures with replacement."""
    drawn = np.random.default_rng(0).multinomial(pictures, np.full(pictures, 1 / pictures), size=RESAMPLES)
    precision = average_precision(classes, drawn.astype(np.float64))
    precision = precision[~np.isnan(precision).all(axis=(1, 2))]  # a draw may hold empty pictures alone
    if not len(precision):
        return {}
    bounds: dict[str, float] = {}
    for key, values in (("map", precision), ("map50", precision[:, :, :1])):
        low, high = np.quantile(np.nanmean(values, axis=(1, 2)), [0.025, 0.975])
        bounds |= {f"{key}_low": float(low), f"{key}_high": float(high)}
    return bounds
