"""How far a score can be trusted: 95 % intervals for accuracy and macro-F1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""


def wilson_interval(successes: int, total: int) -> tuple[float, float]:
    """95 % interval of a share, `successes` out of `total` > 0 (Wilson 1927, the score interval).

    >>> tuple(round(bound, 4) for bound in wilson_interval(8, 10))
    (0.4902, 0.9433)
    """
    share = successes / total
    squash = 1 + Z_95**2 / total
    middle = (share + Z_95**2 / (2 * total)) / squash
    reach = Z_95 / squash * (share * (1 - share) / total + Z_95**2 / (4 * total**2)) ** 0.5
    # none and all of them give 0 and 1 exactly, which rounding would miss by a hair
    return (middle - reach if successes else 0.0), (middle + reach if successes < total else 1.0)


def macro_f1_interval(
    predicted: Sequence[int], actual: Sequence[int], *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of macro-F1 by the percentile bootstrap over rows (Efron 1979), repeatable by its seed.

    Drawing n rows with replacement only changes how often each (predicted, actual) pair occurs, so that one
    multinomial draw over the pairs that do occur stands for a resample, whatever the number of rows.
    """
    pairs, counts = np.unique(np.stack([predicted, actual]), axis=1, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), size=resamples)
    scores = _macro_f1(drawn.astype(np.float64), pairs[0], pairs[1])
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)


def _macro_f1(
    drawn: NDArray[np.float64], predicted: NDArray[np.int64], actual: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Macro-F1 of each resample; `drawn` is (resamples, pairs), how often each pair was drawn.

    As in scikit-learn, the mean runs over the classes that occur, predicted or actual.
    """
    classes = np.unique([predicted, actual])
    is_predicted = (predicted[:, None] == classes).astype(np.float64)
    is_actual = (actual[:, None] == classes).astype(np.float64)
    hits = drawn @ (is_predicted * is_actual)
    either = drawn @ is_predicted + drawn @ is_actual
    f1 = np.divide(2 * hits, either, out=np.zeros_like(hits), where=either > 0)
    means: NDArray[np.float64] = f1.sum(axis=1) / (either > 0).sum(axis=1)
    return means
