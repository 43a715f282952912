"""Text classification over MiniLM, a pretrained base: bank questions, tweets, short reviews."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.tasks.common import Claim, HeldOut, Row, Scores

DATA = "../shared/data/text_classification"
MOST_BELOW = 1.0
"""Points of accuracy that LoRA may lie below full fine-tuning."""
SAYS = (
    "The only base here that was pretrained by others, on a great deal of text: what these rows say of LoRA beside "
    "full fine-tuning carries over best. Both sides saw the same examples as often; the learning rates are each "
    "side's best of a few that were tried on a part of the training examples, and the epoch that is kept is each "
    "side's best on the held-out ones (docs/lab-log.md)."
)


def _claims(held_out: str) -> Callable[[Scores], list[Claim]]:
    def claims(scores: Scores) -> list[Claim]:
        lora, full = (100 * scores[name][held_out]["accuracy"] for name in ("LoRA", "full fine-tuning"))
        told = f"LoRA within {MOST_BELOW:g} point of full fine-tuning, or better: {lora:.1f} % and {full:.1f} %"
        return [Claim(told, lora >= full - MOST_BELOW)]

    return claims


def _row(name: str, title: str, folder: str, rate: float, *, seeds: int = 1, **settings: Any) -> Row:
    return Row(
        name=name,
        title=title,
        lora=f"examples/text_classification/{name}.yaml",
        held_out={"test": HeldOut(f"{DATA}/{folder}/test.csv")},
        metrics=("accuracy", "macro_f1"),
        claims=_claims("test"),
        settings=settings,
        full={"learning_rate": rate},
        seeds=seeds,
        says=SAYS,
    )


BANKING77 = _row(
    "banking77",
    "Text classification: 77 intents of bank customers",
    "banking77",
    3e-4,
)
VADER = _row("vader", "Text classification: tweets, positive or negative", "vader_tweets", 1e-4, epochs=3)
NUSAX = _row("nusax", "Text classification: short English reviews", "nusax_english_sentiment", 1e-4, seeds=3)
