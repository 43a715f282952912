"""The curve as SVG."""

from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree

from loraloom.studio.curve import draw_curve, losses_of, scores_of


def entries(count: int, metric: str = "macro_f1") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for step in range(1, count + 1):
        found.append({"kind": "step", "step": step, "epoch": 0.1, "loss": 2.0 / step, "learning_rate": 1e-3})
        if step % 10 == 0:
            found.append({"kind": "evaluation", "step": step, "epoch": 0.1, metric: step / count})
    return found


def svg(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def test_nothing_yet_is_a_sentence() -> None:
    assert "appears with the first steps" in draw_curve([])
    assert "appears" in draw_curve([{"kind": "step", "step": 1, "loss": math.nan}])


def test_losses_scores_and_legend() -> None:
    figure = svg(draw_curve(entries(40), steps=100))
    lines = figure.findall(".//polyline")
    assert [line.get("class") for line in lines] == ["ll-each", "ll-mean", "ll-scores"]
    assert len(lines[0].get("points", "").split()) == 40 and len(figure.findall(".//circle")) == 4
    assert "macro f1 1" in "".join(figure.itertext()) and "training loss" in "".join(figure.itertext())


def test_everything_stays_inside_the_picture_and_falls_as_the_loss_does() -> None:
    figure = svg(draw_curve(entries(200), steps=400))
    _, _, width, height = map(float, figure.find("svg").get("viewBox", "").split())  # type: ignore[union-attr]
    for line in figure.findall(".//polyline"):
        for point in line.get("points", "").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width and 0 <= y <= height
    first, *_, last = figure.findall(".//polyline")[0].get("points", "").split()
    assert float(first.split(",")[1]) < float(last.split(",")[1]), "y grows downward"


def test_a_long_run_is_thinned_and_one_step_is_enough() -> None:
    assert len(losses_of(entries(10_000))) <= 400
    assert svg(draw_curve(entries(1))).find(".//polyline") is not None
    assert scores_of(entries(5)) == ("", [])


def test_names_from_the_log_are_text() -> None:
    assert "<script>" not in draw_curve(entries(10, metric="<script>"))
