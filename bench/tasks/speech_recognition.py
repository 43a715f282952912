"""speech-recognition: a model that heard three people say the digits is adapted to a fourth."""

from __future__ import annotations

from bench.tasks.common import Claim, HeldOut, Row, Scores, apart

DIGITS = "../shared/data/speech_recognition/fsdd_4_speakers"
FOURTH = "the fourth speaker"
OTHERS = "the first three"


def claims(scores: Scores) -> list[Claim]:
    """Word error on the fourth speaker at most half of the base's; what was forgotten of the others is told."""
    base, lora, full = (scores[name][FOURTH] for name in ("base", "LoRA", "full fine-tuning"))
    before, after = (scores[name][OTHERS]["wer"] for name in ("base", "LoRA"))
    fall = 1 - lora["wer"] / base["wer"]
    clear = apart(lora, base, "wer")
    return [
        Claim(
            f"word error on the fourth speaker falls by {100 * fall:.0f} %, half is asked for; the intervals of base "
            f"and LoRA {'are' if clear else 'are not'} apart",
            fall >= 0.5,
        ),
        Claim(
            f"full fine-tuning comes to {100 * full['wer']:.1f} %, LoRA to {100 * lora['wer']:.1f} %, and their "
            "intervals overlap",
            not apart(lora, full, "wer") and not apart(full, lora, "wer"),
        ),
        Claim(
            f"on the first three speakers, whom the adapter does not hear, word error goes from {100 * before:.1f} % "
            f"to {100 * after:.1f} %; without the adapter it is what it was",
            True,
        ),
    ]


ROW = Row(
    name="speech-recognition",
    title="Speech recognition: a fourth speaker, for a model that heard three",
    base="examples/speech_recognition/base.yaml",
    lora="examples/speech_recognition/lora.yaml",
    held_out={
        FOURTH: HeldOut(f"{DIGITS}/test", {"where": {"speaker": ["nicolas"]}}),
        OTHERS: HeldOut(f"{DIGITS}/test", {"where": {"speaker": ["george", "jackson", "lucas"]}}),
    },
    metrics=("wer", "cer"),
    claims=claims,
    full={"learning_rate": 1e-3},
    says="Recordings hold one of ten words, and the base heard 360 of them (three minutes) from three people: that a "
    "voice which it does not know is hard for it, and that 120 recordings of that voice mend much of it, is what such "
    "a model can show. It tells nothing of sentences, of noise, or of what a pretrained encoder reaches.",
)
"""The row of docs/results.md."""
