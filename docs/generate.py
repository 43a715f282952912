"""Writes the pages that are made from the code: configuration.md, tasks.md and cli.md.

python docs/generate.py
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from pathlib import Path

from loraloom.cli.main import VERBS, main
from loraloom.tasks import option_fields, task_names
from loraloom.training.config import reference_yaml

HERE = Path(__file__).parent
WIDTH = "80"

CONFIGURATION = """# Every setting of a run

What a configuration file for `loraloom train CONFIG.yaml` may hold, with the default of each setting; `...` marks
those that have none. `--set KEY=VALUE` sets one from the command line by its dotted key, e.g. `--set adapter.rank=16`.
An unknown key is refused, with the nearest right one. Ready files to start from are in [examples](../examples).

This page is made by `python docs/generate.py` from `src/loraloom/training/config.py` and
`src/loraloom/data/config.py`; `loraloom train --reference` prints the same.

```yaml
{settings}```
"""

COMMANDS = """# The command line

Exit status: 0 done; 1 a failure of ours, or a demo without a clear gain; 2 something for the user to mend;
130 interrupted. Results go to stdout, all else to stderr; with `--json` stdout holds one JSON object.

This page is made by `python docs/generate.py` from what `--help` says.

{verbs}"""

TASKS = """# The tasks, and what each of them reads

`task: NAME` in a configuration, `--task NAME` on the command line. `options: {{image_size: 96}}`, or
`--set options.image_size=96`, sets what a task alone knows; an unknown option is refused, with the nearest right one.
`loraloom data check PATH --task NAME` reads a data set without training and says what it found. Every task takes
`data.where`, `data.words`, `data.limit`, `data.eval_limit` and `data.skip_bad` ([configuration.md](configuration.md)).

This page is made by `python docs/generate.py`, the tables from the options' own descriptions.

{tasks}"""

READS = {
    "text-to-image": """
A folder of pictures with captions: `metadata.jsonl` or `.csv`, or a `.txt` beside each picture; or a few pictures of
one subject, with `instance_prompt` (a rare token) and `class_prompt` for prior preservation. Stable Diffusion 1.x, 2.x,
SDXL; `--base scenes` comes with Loraloom. The U-Net's attention and feed-forward layers learn, `convolutions` and
`text_encoder` by option; latents and texts are encoded once and kept. Score: the loss on held-out pictures at fixed
timesteps and noise. `sample_prompts` are painted at every evaluation; `train_embedding` learns a word in place of an
adapter. Beside the folder lie diffusers' file and, with `--also kohya`, one for the web UI. `loraloom predict RUN
--text PROMPT --save DIR` paints with it, as does `loraloom generate --lora RUN:0.8`.
""",
    "text-classification": """
A table (CSV, TSV, JSONL, JSON, Parquet, or a dataset by name) with a text and a label. Any model of
`AutoModelForSequenceClassification`. Scores: accuracy, macro-F1.
""",
    "causal-lm": """
`.txt` files; or a table with `text`; with `prompt` and `completion` (also `instruction`, `input`,
`output`); or with `messages`, a chat in the tokenizer's own template. Any model of `AutoModelForCausalLM`.
The loss is on completions alone unless `train_on: all`. Scores: perplexity, bits per byte (comparable
across tokenizers), token accuracy. `loraloom predict RUN --text PROMPT --stream --temperature 0.8 --top-p
0.9 --seed 1` writes on.
""",
    "translation": """
A table with two columns, source and target. Any model of `AutoModelForSeq2SeqLM`: Marian, T5, mBART,
M2M100, NLLB; language codes where the model has them. Scores: chrF and BLEU by sacrebleu. `loraloom predict
RUN --data FILE --out FILE.jsonl --beams 4` translates a file.
""",
    "image-classification": """
A folder per class; or a table with paths and labels; splits as `train/` and `test/`. Any model of
`AutoModelForImageClassification`: ViT, DeiT, Swin, ConvNeXt, ResNet. EXIF orientation is respected; CMYK,
palette, 16-bit and transparent pictures become RGB on white; of an animation the first frame is taken.
Scores: accuracy, macro-F1, and a confusion matrix as `confusion.png`.
""",
    "object-detection": """
COCO JSON (a file, or a folder that holds `annotations*.json`) or a Pascal VOC folder. DETR, Conditional and
Deformable DETR, YOLOS, RT-DETR. Scores: COCO's mAP, mAP50 and their kin by pycocotools. `loraloom predict
RUN --file PICTURE --save FOLDER --threshold 0.5` draws the boxes.
""",
    "speech-recognition": """
A folder with `metadata.jsonl` or `.csv` beside the recordings, or a table: file and text. wav, flac, ogg,
mp3; resampled with an anti-aliasing filter, mixed down to one channel. CTC (Wav2Vec2, HuBERT, WavLM) and
Whisper. Scores: word and character error rate by jiwer, after a stated normalisation.
""",
    "speech-synthesis": """
The same files, the other way round: text to recording, with `speaker` where there are several. SpeechT5
(with a HiFi-GAN vocoder, or Griffin-Lim where none is given) and VITS/MMS-TTS (transformers has no training
loss for it; ours has no adversarial part). Scores: mel-cepstral distortion after dynamic time warping,
real-time factor. `loraloom predict RUN --text TEXT --save FOLDER` writes wav files.
""",
}
"""What a user has to know of a task before its options."""


def tasks() -> str:
    """The page of all tasks."""
    return TASKS.format(tasks="\n\n".join(_task(name) for name in task_names()) + "\n")


def _task(name: str) -> str:
    rows = [
        f"| `{option}` | {_default(field.get_default(call_default_factory=True))} | {field.description} |"
        for option, field in option_fields(name).items()
    ]
    table = "\n".join(["| option | default | what it does |", "|---|---|---|", *rows])
    return f"## {name}\n\n{READS[name].strip()}\n\n{table}"


def _default(value: object) -> str:
    return "–" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def configuration() -> str:
    """The page of all settings."""
    return CONFIGURATION.format(settings=reference_yaml())


def commands() -> str:
    """The page of all verbs."""
    pages = [f"## loraloom {verb}".rstrip() + f"\n\n```\n{help_of(verb)}```\n" for verb in _verbs()]
    return COMMANDS.format(verbs="\n".join(pages))


def _verbs() -> list[str]:
    """The program itself, its verbs, and the verbs of these."""
    found = [""]
    for verb in VERBS:
        below = getattr(importlib.import_module(f"loraloom.cli.{verb}"), "SUBVERBS", {})
        found += [verb, *(f"{verb} {name}" for name in below)]
    return found


def help_of(verb: str) -> str:
    """What `loraloom VERB --help` prints on a terminal of 80 columns."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            main([*verb.split(), "--help"])
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


PAGES = {"configuration.md": configuration, "tasks.md": tasks, "cli.md": commands}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
