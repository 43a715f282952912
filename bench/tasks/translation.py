"""Translation: a base that has read short sentences, adapted to longer ones; and what it forgot of the short ones."""

from __future__ import annotations

from bench.tasks.common import Claim, HeldOut, Row, Scores, apart

NEW = "7 words or more"
OLD = "up to 6 words"
TEST = "../shared/data/translation/tatoeba_en_nl/test.csv"


def claims(scores: Scores) -> list[Claim]:
    """chrF on longer sentences rises clearly over the base's; what became of the short ones is told beside it."""
    new = {name: found[NEW] for name, found in scores.items()}
    old = {name: found[OLD]["chrf"] for name, found in scores.items()}
    return [
        Claim(
            f"LoRA's chrF on longer sentences is above the base's ({new['base']['chrf']:.1f} → "
            f"{new['LoRA']['chrf']:.1f}), and their intervals do not overlap",
            apart(new["base"], new["LoRA"], "chrf"),
        ),
        Claim(
            f"it is that of full fine-tuning ({new['full fine-tuning']['chrf']:.1f}) within the intervals",
            not apart(new["LoRA"], new["full fine-tuning"], "chrf"),
        ),
        Claim(
            f"on sentences as short as the base's own, LoRA keeps what the base knew: chrF {old['base']:.1f} → "
            f"{old['LoRA']:.1f} (full fine-tuning: {old['full fine-tuning']:.1f})",
            old["LoRA"] > old["base"] - 3,
        ),
    ]


ROW = Row(
    name="translation",
    title="Translation: English to Dutch, from short sentences to longer ones",
    base="examples/translation/base.yaml",
    lora="examples/translation/lora.yaml",
    held_out={NEW: HeldOut(TEST, {"words": "7-"}), OLD: HeldOut(TEST, {"words": "1-6"})},
    metrics=("chrf", "bleu"),
    claims=claims,
    full={"learning_rate": 1e-3},
    says="Two million numbers that have seen some 15,000 short sentences do not translate well; what the row shows is "
    "how far an adapter takes them towards sentences of a length they never met. Scores are sacrebleu's over greedy "
    "translations; the signatures are in run.json.",
)
