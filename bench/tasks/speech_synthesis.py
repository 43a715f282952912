"""Speech synthesis: a base that spells in tones, adapted to a reader of whom there are two minutes."""

from __future__ import annotations

import runpy

from bench.tasks.common import ROOT, Claim, HeldOut, Row, Scores, apart

READER = "LJ Speech"
DATA = "../shared/data"
PROSE = f"{DATA}/causal_lm/pride_and_prejudice/train.jsonl"
TONES = ROOT / "runs" / "tones"


def prepare() -> None:
    """Draw the recordings that the base learns from, where they are not there."""
    drawing = runpy.run_path(str(ROOT / "examples" / "speech_synthesis" / "draw_tones.py"))
    drawing["draw"](ROOT / PROSE, TONES)


def claims(scores: Scores) -> list[Claim]:
    """The distance to held-out recordings falls, for both; nothing is silent, nothing clipped."""
    found = {name: score[READER] for name, score in scores.items()}
    base, lora, full = found["base"], found["LoRA"], found["full fine-tuning"]
    faults = {
        kind: sum(int(found[name][kind]) for name in ("LoRA", "full fine-tuning")) for kind in ("silent", "clipped")
    }
    return [
        Claim(
            f"the mel-cepstral distortion to held-out recordings falls from {base['mcd']:.2f} dB to "
            f"{lora['mcd']:.2f} dB with LoRA and {full['mcd']:.2f} dB with full fine-tuning, out of its interval",
            apart(lora, base, "mcd") and apart(full, base, "mcd"),
        ),
        Claim(
            f"of the {2 * int(lora['n'])} sentences that both say, {faults['silent']} are silent and "
            f"{faults['clipped']} clipped",
            not any(faults.values()),
        ),
    ]


ROW = Row(
    name="speech-synthesis",
    title="Speech synthesis: from spelling in tones to a reader's voice",
    base="examples/speech_synthesis/base.yaml",
    lora="examples/speech_synthesis/lora.yaml",
    held_out={READER: HeldOut(f"{DATA}/speech_synthesis/ljspeech_mini/test")},
    metrics=("mcd", "mel_l1", "seconds_ratio", "real_time_factor", "silent", "clipped"),
    claims=claims,
    prepare=prepare,
    full={"learning_rate": 1e-3},
    says="The base has heard no voice, the adapter 136 seconds of one. What is learnt is how a reader sounds: the "
    "spectrum's shape, its loudness, its pace. What it says freely is a murmur "
    "that nobody would understand: for words a model of this kind needs "
    "hours. `mcd` is measured on what the model says freely, in dB, `mel_l1` on each step after the recording's own "
    "past, in log10 of the mel amplitudes; `seconds ratio` is how long it speaks for one second of the recordings, and "
    "sound is made of spectrograms by Griffin-Lim.",
)
