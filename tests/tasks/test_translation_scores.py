"""BLEU and chrF are sacrebleu's own, and their intervals hold what they promise."""

from __future__ import annotations

import random
import sys

import pytest

sacrebleu = pytest.importorskip("sacrebleu", reason="translations are scored with sacrebleu")

from tests.scaling import NOISE_S, seconds_of  # noqa: E402

from loraloom.errors import DataError, MissingExtraError  # noqa: E402
from loraloom.tasks.language.translation_scores import signatures, translation_scores  # noqa: E402
from loraloom.tasks.translation import Translated, Translation, TranslationOptions  # noqa: E402

WORDS = [
    "de",
    "kat",
    "hond",
    "zit",
    "loopt",
    "op",
    "onder",
    "het",
    "huis",
    "een",
    "grote",
    "kleine",
    "tafel",
    ".",
    ",",
    "niet",
    "wel",
]


def corpus(rows: int, wrong: float, seed: int = 0) -> tuple[list[str], list[str]]:
    """References, and copies of them in which a share of the words is another."""
    draw = random.Random(seed)
    references = [" ".join(draw.choices(WORDS, k=draw.randint(5, 12))) for _ in range(rows)]
    found = [
        " ".join(draw.choice(WORDS) if draw.random() < wrong else word for word in reference.split())
        for reference in references
    ]
    return found, references


@pytest.mark.parametrize("tokenizer", ["13a", "char", "intl", "none"])
def test_scores_are_sacrebleus(tokenizer: str) -> None:
    found, references = corpus(60, 0.3)
    scores = translation_scores(found, references, tokenizer=tokenizer)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(found, [references]).score, abs=1e-9)
    bleu = sacrebleu.corpus_bleu(found, [references], tokenize=tokenizer)
    assert scores["bleu"] == pytest.approx(bleu.score, abs=1e-9)
    assert scores["n"] == 60


def test_all_right_and_all_wrong() -> None:
    _, references = corpus(20, 0)
    right = translation_scores(references, references)
    assert right["chrf"] == right["chrf_low"] == right["chrf_high"] == pytest.approx(100)
    assert right["bleu"] == pytest.approx(100)
    nothing = translation_scores([""] * 20, references)
    assert (nothing["chrf"], nothing["bleu"], nothing["chrf_high"]) == (0, 0, 0)


def test_intervals_are_repeatable_and_shrink_with_more_rows() -> None:
    few, many = (translation_scores(*corpus(rows, 0.3)) for rows in (50, 800))
    assert few == translation_scores(*corpus(50, 0.3))
    for name in ("chrf", "bleu"):
        assert all(scores[f"{name}_low"] < scores[name] < scores[f"{name}_high"] for scores in (few, many))
        widths = [scores[f"{name}_high"] - scores[f"{name}_low"] for scores in (few, many)]
        assert widths[0] / widths[1] == pytest.approx(4, rel=0.5)  # sixteen times the rows


def test_the_interval_holds_the_true_score_about_nineteen_times_in_twenty() -> None:
    truth = translation_scores(*corpus(1500, 0.3))["chrf"]
    runs = [translation_scores(*corpus(40, 0.3, seed)) for seed in range(1, 21)]
    assert sum(scores["chrf_low"] <= truth <= scores["chrf_high"] for scores in runs) >= 17


def test_resampling_costs_no_scoring_anew() -> None:
    """A thousand resamples of a corpus take less than scoring it twenty times."""
    found, references = corpus(600, 0.3)
    plain = seconds_of(lambda: sacrebleu.CHRF().corpus_score(found, [references]))
    assert seconds_of(lambda: translation_scores(found, references)) < 20 * plain + NOISE_S


def test_signatures() -> None:
    assert signatures() == {
        "chrf": f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{sacrebleu.__version__}",
        "bleu": f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}",
    }
    assert "tok:char" in Translation(TranslationOptions(bleu_tokenizer="char")).signatures["bleu"]


def test_the_task_scores_texts() -> None:
    found, references = corpus(30, 0.2)
    scores = Translation().score([Translated(text) for text in found], references)
    assert scores == translation_scores(found, references)
    with pytest.raises(DataError, match="no examples to score"):
        Translation().score([], [])


def test_without_sacrebleu_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(MissingExtraError, match=r'pip install "loraloom\[translation\]"'):
        translation_scores(["a"], ["a"])
