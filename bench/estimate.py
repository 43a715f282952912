"""What `--estimate` says, held against what the run then takes: peak memory and time of a handful of real runs.

Prediction and run have a process of their own each, since a process does not give its peak back. Time is
this process's own, so that other work on the machine does not count: one thread, CPU only. The runs are MiniLM
on banking77 in ../shared/data: LoRA in bf16 and fp32, over an nf4 base, and in full; and a small Llama that
begins with random weights, on pride_and_prejudice.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.models import MINILM

SHARED = Path(__file__).parents[2] / "shared" / "data"
BANKING = SHARED / "text_classification" / "banking77"
NOVEL = SHARED / "causal_lm" / "pride_and_prejudice"
LIMITS = {"data.limit": 480, "data.eval_limit": 160, "epochs": 2}
MINILM_RUN = {
    **LIMITS,
    "base": MINILM,
    "data.train": str(BANKING / "train.csv"),
    "data.eval": str(BANKING / "test.csv"),
}
RUNS: dict[str, dict[str, Any]] = {
    "MiniLM, LoRA, bf16": {**MINILM_RUN, "precision": "bf16"},
    "MiniLM, LoRA, fp32": {**MINILM_RUN, "precision": "fp32"},
    "MiniLM, LoRA over nf4": {**MINILM_RUN, "precision": "bf16", "quantize": "nf4"},
    "MiniLM, full": {**MINILM_RUN, "method": "full", "epochs": 1},
    "small Llama, full": {
        "task": "causal-lm",
        "base_config": str(Path(__file__).parents[1] / "examples" / "causal_lm" / "tiny"),
        "method": "full",
        "data.train": str(NOVEL / "train.jsonl"),
        "data.eval": str(NOVEL / "test.jsonl"),
        "data.eval_limit": 100,
        "options.pack": True,
        "max_length": 128,
        "max_steps": 60,
        "batch_size": 16,
        "precision": "fp32",
    },
}


def measure() -> dict[str, dict[str, tuple[float, float]]]:
    """By run: (predicted, found) seconds and MiB above the base."""
    found = {}
    for name, settings in RUNS.items():
        said, took = (_child(side, settings) for side in ("estimate", "train"))
        found[name] = {part: (said[part], took[part]) for part in ("seconds", "MiB")}
    return found


def _child(side: str, settings: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.estimate", "--side", side, "--settings", json.dumps(settings)]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=alone).stdout
    answer: dict[str, float] = json.loads(printed.splitlines()[-1])
    return answer


def one_side(side: str, settings: dict[str, Any]) -> dict[str, float]:
    """Predict or run here; seconds of this process and MiB above the base."""
    import time

    time.perf_counter = time.process_time  # before anything of ours takes hold of it
    from loraloom.tasks import create_task
    from loraloom.training.config import load_config
    from loraloom.training.estimate import estimate
    from loraloom.training.run import train

    with tempfile.TemporaryDirectory() as folder:
        config = load_config(None, {**settings, "out": str(Path(folder) / "out"), "device": "cpu"})
        task = create_task(config.task, **config.task_options)
        if side == "estimate":
            said = estimate(config, task)
            return {"seconds": said.seconds["total"], "MiB": said.memory_mib["peak_above_base"]}
        began = time.process_time()
        record = train(config, task).record
        return {"seconds": time.process_time() - began, "MiB": record["memory_mib"]["peak_above_base"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=("estimate", "train"), help="do this side alone, here")
    parser.add_argument("--settings", type=json.loads, default={}, help="of the run, as JSON")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(one_side(arguments.side, arguments.settings)))
    else:
        for name, parts in measure().items():
            for part, (said, took) in parts.items():
                print(f"{said:8.1f} said  {took:8.1f} taken  {100 * (said / took - 1):+6.1f} %  {part:8} {name}")
