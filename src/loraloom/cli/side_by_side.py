"""What the demo does: LoRA and full fine-tuning from one base, in processes of their own, in one table; and a sheet."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraloom import errors
from loraloom.cli import output
from loraloom.imaging.showcase import NAME as SHEET
from loraloom.imaging.showcase import scene_sheet
from loraloom.tasks import create_task
from loraloom.training.restore import open_run
from loraloom.training.use import predict

BASE = "sentence-transformers/all-MiniLM-L6-v2"
TRAIN, TEST = "sentiment:train", "sentiment:test"
MARKER = "demo.json"
"""Lies in a folder that a demo made: only such a folder is ever replaced."""

RATES = {"lora": "2e-3", "full": "1e-4"}
"""Peak learning rates. On a held-out quarter of the training sentences LoRA did as well at 1e-3 and at 4e-3."""

SENTENCES = (
    "The ramen was gone before I remembered to take a photo.",
    "Two hours on hold, and then the line went dead.",
    "Not the disaster everyone had warned me about; in fact I would stay again.",
    "Gorgeous photography, and I still looked at my watch every five minutes.",
)


def demo_folder(out: str) -> Path:
    """An empty folder for a demo. Raises OutputError for a folder that holds anything but an earlier demo."""
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise errors.OutputError(f"out: '{folder}' is a file, a folder is needed; choose another with --out")
    if folder.is_dir() and any(folder.iterdir()):
        if not _is_a_demo(folder):
            raise errors.OutputError(
                f"out: '{folder}' is not empty and not an earlier demo's; choose another with --out"
            )
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_text(json.dumps({"loraloom": "demo"}), "utf-8")
    except OSError as error:
        raise errors.OutputError(
            f"out: '{folder}' cannot be written: {error.strerror}; choose another with --out"
        ) from error
    return folder


def _is_a_demo(folder: Path) -> bool:
    """Whether a demo made the folder, and nothing else was put into it since."""
    try:
        marked = json.loads((folder / MARKER).read_text("utf-8"))["loraloom"] == "demo"
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return marked and {path.name for path in folder.iterdir()} <= {MARKER, SHEET, *RATES}


def compare(folder: Path, *, epochs: int, seed: int) -> dict[str, Any]:
    """Train both ways and return what the demo tells, as JSON data, which is also written to the folder."""
    records = {method: _train(folder / method, method, epochs, seed) for method in RATES}
    lora = records["lora"]
    rows = [_base_row(lora), *(_trained_row(method, record) for method, record in records.items())]
    result = {
        "loraloom": "demo",
        "base": lora["base"],
        "train_examples": lora["data"]["train_examples"],
        "evaluation_examples": lora["data"]["evaluation_examples"],
        "epochs": epochs,
        "rows": rows,
        "predictions": _predictions(folder / "lora"),
        "adapter": str(folder / "lora"),
        "sheet": _sheet(folder),
        "success": rows[1]["accuracy_low"] > rows[0]["accuracy_high"],
    }
    (folder / MARKER).write_text(json.dumps(output.plain(result), indent=2, ensure_ascii=False) + "\n", "utf-8")
    return result


def _train(out: Path, method: str, epochs: int, seed: int) -> dict[str, Any]:
    """One run by the command line itself, so that its peak memory is its own. Returns run.json's content."""
    settings = {
        "--base": BASE,
        "--data": TRAIN,
        "--eval": TEST,
        "--out": str(out),
        "--method": method,
        "--epochs": str(epochs),
        "--learning-rate": RATES[method],
        "--seed": str(seed),
        # Scored once, at the end: picking the best epoch by the held-out sentences would flatter both methods.
        "--set": "evaluate_every=1000000",
    }
    words = [word for pair in settings.items() for word in pair]
    print(f"\n{'LoRA' if method == 'lora' else 'full fine-tuning'}:", file=sys.stderr, flush=True)
    child = subprocess.run(
        [sys.executable, "-m", "loraloom", "train", *words, "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    if child.returncode:
        raise _child_error(child.stdout, child.returncode)
    record: dict[str, Any] = json.loads(child.stdout)
    return record


def _child_error(stdout: str, status: int) -> Exception:
    """The child's error as if it had been raised here."""
    try:
        told = json.loads(stdout)["error"]
    except (ValueError, KeyError, TypeError):
        return RuntimeError(f"a training process ended with status {status}")
    kind = getattr(errors, told["kind"], RuntimeError)
    return kind(told["message"]) if isinstance(kind, type) else RuntimeError(told["message"])


def _predictions(folder: Path) -> list[dict[str, Any]]:
    """What the adapter says of sentences that are in neither set."""
    found = predict(open_run(folder, create_task), texts=SENTENCES)
    return [{"text": entry.example.values["text"], **entry.result} for entry in found]


def _sheet(folder: Path) -> dict[str, Any]:
    """The sheet of pictures: {"path", "cells", "seconds"}, or {"left_out": why} without the library that paints."""
    print("\npictures:", file=sys.stderr, flush=True)
    try:
        sheet = scene_sheet(folder)
    except errors.MissingExtraError as error:
        return {"left_out": str(error)}
    return {"path": str(sheet.path), "cells": sheet.cells, "seconds": sheet.seconds}


def _scores(metrics: Mapping[str, float]) -> dict[str, float]:
    names = [f"{name}{end}" for name in ("accuracy", "macro_f1") for end in ("", "_low", "_high")]
    return {name: metrics[name] for name in names}


def _base_row(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": "base", **_scores(record["metrics"]["base"]), "trained": 0, "trained_share": 0.0}


def _trained_row(method: str, record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": method,
        **_scores(record["metrics"]["trained"]),
        "trained": record["parameters"]["trained"],
        "trained_share": record["parameters"]["share"],
        "bytes": record["result_bytes"],
        "seconds": record["training"]["seconds"]["training"],
        "memory_mib": record["memory_mib"]["peak_above_base"],
        "learning_rate": record["settings"]["learning_rate"],
        "precision": record["precision"],
    }


def show(result: Mapping[str, Any]) -> None:
    """The table, the predictions, and what to type next."""
    names = {"base": "base, untrained head", "lora": "LoRA", "full": "full fine-tuning"}
    columns = ("", "accuracy (95 %)", "macro-F1 (95 %)", "trained", "share", "on disk", "time", "peak memory")
    output.say(
        "",
        f"{result['base']['name']} on {result['train_examples']} sentences, scored on "
        f"{result['evaluation_examples']} others; peak memory is above the base model's own",
    )
    output.show_table(columns, [[names[row["name"]], *table_cells(row)] for row in result["rows"]])
    output.show_table(
        ("sentence", "LoRA says", "sure"),
        [[entry["text"], entry["label"], output.percent(entry["score"], 0)] for entry in result["predictions"]],
    )
    verdict = "LoRA is clearly better than the untrained base: its interval lies above the base's"
    if not result["success"]:
        verdict = "LoRA is NOT clearly better than the untrained base: their intervals overlap"
    output.say(
        verdict,
        f"the adapter lies in {result['adapter']}",
        _told_sheet(result["sheet"]),
        f'next: loraloom predict {result["adapter"]} --text "your own sentence"',
    )


def _told_sheet(sheet: Mapping[str, Any]) -> str:
    if "left_out" in sheet:
        return f"no sheet of pictures was made: {sheet['left_out']}"
    return f"{sheet['cells']} pictures by three weighted adapters, {output.duration(sheet['seconds'])}: {sheet['path']}"


def table_cells(row: Mapping[str, Any]) -> list[str]:
    """One row of the table as the terminal and the README show it, without its name."""
    scores = [output.with_interval(row, name) for name in ("accuracy", "macro_f1")]
    if row["name"] == "base":
        return [*scores, "–", "–", "–", "–", "–"]
    return [
        *scores,
        f"{row['trained']:,}",
        output.percent(row["trained_share"], 2),
        output.file_size(row["bytes"]),
        output.duration(row["seconds"]),
        f"{row['memory_mib']:.0f} MiB",
    ]
