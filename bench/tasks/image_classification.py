"""image-classification: a ResNet that knows five digits of sign language learns all ten."""

from __future__ import annotations

from bench.tasks.common import Claim, HeldOut, Row, Scores, surely_ahead

DIGITS = "../shared/data/image_classification/sign_language_digits"
TEST = "140 test pictures"
HEAD = "new head alone"


def claims(scores: Scores) -> list[Claim]:
    """LoRA within 3 points of full fine-tuning, and well above a new head over the base as it is."""
    lora, full, head = (scores[name][TEST] for name in ("LoRA", "full fine-tuning", HEAD))
    behind = 100 * (full["accuracy"] - lora["accuracy"])
    ahead = 100 * (lora["accuracy"] - head["accuracy"])
    least = 100 * surely_ahead(head, lora, "accuracy")
    return [
        Claim(f"LoRA is {behind:+.1f} points behind full fine-tuning, 3 at most are asked for", behind <= 3),
        Claim(
            f"LoRA is {ahead:.1f} points above a new head alone; the 95 % interval of the difference begins at "
            f"{least:.1f}",
            least > 0,
        ),
    ]


ROW = Row(
    name="image-classification",
    title="Image classification: ten digits of sign language, from a base that knows five",
    base="examples/image_classification/base.yaml",
    lora="examples/image_classification/lora.yaml",
    held_out={TEST: HeldOut(f"{DIGITS}/test")},
    metrics=("accuracy", "macro_f1"),
    claims=claims,
    full={"learning_rate": 1e-3},
    others={HEAD: {"adapter.targets": [], "learning_rate": 2e-2}},
    says=(
        "The base is small, made here from 210 pictures, and has seen only the hands of this set: the row shows that "
        "an adapter of the convolutions does what full fine-tuning does, not how well signs are told apart elsewhere. "
        "Whether one person is on both sides of the split is not known. One picture is 0.7 points. A new head alone "
        "trains at its own rate (2e-2), full fine-tuning at 1e-3."
    ),
)
"""The row of docs/results.md."""
