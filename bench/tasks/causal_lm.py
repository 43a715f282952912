"""Language models: a base that has read one novel, adapted to Shakespeare; and what it forgot of the novel."""

from __future__ import annotations

from bench.tasks.common import Claim, HeldOut, Row, Scores

NEW = "Shakespeare"
OLD = "Austen"
DATA = "../shared/data/causal_lm"


def claims(scores: Scores) -> list[Claim]:
    """The perplexity on the new text falls by a third at least; what happened to the old one stands beside it."""
    new = {name: found[NEW]["perplexity"] for name, found in scores.items()}
    fall = 1 - new["LoRA"] / new["base"]
    return [
        Claim(
            f"LoRA's perplexity on held-out Shakespeare is {fall:.0%} below the base's "
            f"({new['base']:.0f} → {new['LoRA']:.0f}; a third at least was wanted)",
            fall >= 1 / 3,
        ),
    ]


ROW = Row(
    name="causal-lm",
    title="Language model: from Austen's prose to Shakespeare's verse",
    base="examples/causal_lm/base.yaml",
    lora="examples/causal_lm/lora.yaml",
    held_out={
        NEW: HeldOut(f"{DATA}/tinyshakespeare/test.jsonl"),
        OLD: HeldOut(f"{DATA}/pride_and_prejudice/test.jsonl"),
    },
    metrics=("perplexity", "bits_per_byte"),
    claims=claims,
    full={"learning_rate": 1e-3},
    says="A model of a million numbers that has read one novel writes no sense; what it shows is the method: how far "
    "a small update of its weights goes towards another style, and at what cost to the first. Perplexities are per "
    "token of the base's own 2,048 pieces, which were made of Austen's text and fit Shakespeare's worse; bits per "
    "byte do not depend on them.",
)
