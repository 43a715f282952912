"""BLEU and chrF by sacrebleu over a whole test set, each with a 95 % interval by the bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loraloom.errors import DataError, MissingExtraError

RESAMPLES = 1000


def check_sacrebleu() -> Any:
    """The library sacrebleu. Raises MissingExtraError, which names the extra that brings it."""
    try:
        import sacrebleu
    except ImportError:
        raise MissingExtraError(
            'translations are scored with sacrebleu, which is not installed; pip install "loraloom[translation]"'
        ) from None
    return sacrebleu


def translation_scores(found: Sequence[str], references: Sequence[str], *, tokenizer: str = "13a") -> dict[str, float]:
    """ "bleu" (Papineni et al. 2002) and "chrf" (Popović 2015), 0 to 100, their bounds, and "n".

    The bounds are the percentile bootstrap's over sentences (Koehn 2004) with always the same draws.
    `tokenizer` is sacrebleu's name of what cuts words for BLEU. Raises DataError when there is nothing to score.
    """
    if not references:
        raise DataError("evaluation: there are no examples to score")
    scores: dict[str, float] = {}
    for name, metric in _metrics(tokenizer).items():
        # The sums per sentence are all that either score is made of, so that resampling means adding them up anew.
        sums = np.array(metric._extract_corpus_statistics(list(found), [list(references)]))
        low, high = _interval(metric, sums)
        scores |= {name: _score(metric, sums.sum(axis=0)), f"{name}_low": low, f"{name}_high": high}
    return {**scores, "n": float(len(references))}


def signatures(tokenizer: str = "13a") -> dict[str, str]:
    """What sacrebleu asks to be published beside its scores, by the score's name.

    Two scores may be compared when their signatures are the same.
    """
    found = {}
    for name, metric in _metrics(tokenizer).items():
        metric.corpus_score(["."], [["."]])  # only then does it know the number of references
        found[name] = metric.get_signature().format()
    return found


def _metrics(tokenizer: str) -> dict[str, Any]:
    metrics = check_sacrebleu().metrics
    # force: else sacrebleu warns of texts that look tokenised, which short sentences often do
    return {"chrf": metrics.CHRF(), "bleu": metrics.BLEU(tokenize=tokenizer, force=True)}


def _interval(metric: Any, sums: NDArray[np.int64], seed: int = 0) -> tuple[float, float]:
    """95 % bounds; `sums` is (sentences, counts). One multinomial draw says how often each sentence comes."""
    total = len(sums)
    drawn = np.random.default_rng(seed).multinomial(total, np.full(total, 1 / total), size=RESAMPLES)
    scores = [_score(metric, counts) for counts in drawn @ sums]
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)


def _score(metric: Any, counts: NDArray[np.int64]) -> float:
    """The score that summed counts (counts,) make."""
    return float(metric._compute_score_from_stats(counts.tolist()).score)
