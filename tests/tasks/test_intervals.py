"""The 95 % intervals against published and hand-made values, and against resampling row by row."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from loraloom.tasks.intervals import _macro_f1, macro_f1_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3 (score, no continuity correction)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_against_published_values(successes: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(successes, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_stays_between_none_and_all() -> None:
    for total in (1, 2, 1000):
        assert wilson_interval(0, total)[0] == 0.0
        assert wilson_interval(total, total)[1] == 1.0


def rows(seed: int, n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    actual = generator.integers(0, classes, n)
    return np.where(generator.random(n) < 0.7, actual, generator.integers(0, classes, n)), actual


@pytest.mark.parametrize("classes", [2, 3, 20])
def test_macro_f1_of_a_resample_is_that_of_sklearn(classes: int) -> None:
    predicted, actual = rows(1, 60, classes)
    pairs, counts = np.unique(np.stack([predicted, actual]), axis=1, return_counts=True)
    drawn = np.random.default_rng(2).multinomial(60, counts / 60, size=5).astype(float)
    for sample, score in zip(drawn, _macro_f1(drawn, pairs[0], pairs[1]), strict=True):
        repeated = np.repeat(pairs, sample.astype(int), axis=1)
        assert score == pytest.approx(f1_score(repeated[1], repeated[0], average="macro", zero_division=0))


def test_macro_f1_interval_is_that_of_resampling_rows() -> None:
    predicted, actual = rows(3, 200, 3)
    generator = np.random.default_rng(4)
    picks = generator.integers(0, 200, (600, 200))
    scores = [f1_score(actual[pick], predicted[pick], average="macro") for pick in picks]
    assert macro_f1_interval(predicted, actual) == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=0.005)


def test_macro_f1_interval_is_repeatable_and_narrows() -> None:
    few, many = rows(5, 50, 2), rows(5, 5000, 2)
    assert macro_f1_interval(*few) == macro_f1_interval(*few)
    assert macro_f1_interval(*few) != macro_f1_interval(*few, seed=1)
    widths = [high - low for low, high in (macro_f1_interval(*few), macro_f1_interval(*many))]
    assert 8 < widths[0] / widths[1] < 13, "a hundred times the rows: a tenth of the width"
    assert macro_f1_interval([0, 1, 1], [0, 1, 1]) == (1.0, 1.0)
