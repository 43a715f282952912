"""Peak memory of training above the base model's own, Loraloom against PEFT + Trainer.

Each side runs in a process of its own, since a process does not give its peak back; the resident set is
sampled every 10 ms from the moment when the base model is loaded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

DATA = Path(__file__).parents[2] / "shared" / "data" / "text_classification" / "banking77"
SENTENCES = 1280


def measure(rounds: int = 1, data: Path = DATA) -> dict[str, float]:
    """MiB above the base model, the median of every side."""
    found: dict[str, list[float]] = {"loraloom": [], "trainer fp32": [], "trainer bf16": []}
    for _ in range(rounds):
        for side in found:
            command = [sys.executable, "-m", "bench.memory", "--side", side, "--data", str(data)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[side].append(float(json.loads(printed.splitlines()[-1])))
    return {side: sorted(values)[len(values) // 2] for side, values in found.items()}


def one_side(side: str, data: Path) -> float:
    """Run one side here and return its peak above the base model, in MiB."""
    from bench.trainer_job import JobSettings
    from bench.whole_job import run_loraloom, sample

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train = sample(data / "train.csv", folder / "train.csv", SENTENCES)
        settings = JobSettings(train, sample(data / "test.csv", folder / "test.csv", 256), epochs=1)
        if side == "loraloom":
            record = json.loads((run_loraloom(settings, folder / "out") / "run.json").read_text("utf-8"))
            return float(record["memory_mib"]["peak_above_base"])
        return _trainer_peak(settings, bf16=side == "trainer bf16")


def _trainer_peak(settings: object, *, bf16: bool) -> float:
    """The Trainer's peak, counted like Loraloom's from the loaded base on."""
    import torch

    from bench import trainer_job
    from loraloom.training.memory import PeakMemory

    attach = trainer_job.get_peft_model
    with PeakMemory(torch.device("cpu")) as peak:

        def counted(*arguments: object) -> object:
            peak.begin()
            return attach(*arguments)

        trainer_job.get_peft_model = counted
        trainer_job.run_trainer(settings, bf16=bf16)  # type: ignore[arg-type]
    return peak.peak_mib


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", help="run this side alone, here")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DATA, help="a folder with train.csv and test.csv")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(one_side(arguments.side, arguments.data)))
    else:
        for side, value in measure(arguments.rounds, arguments.data).items():
            print(f"{value:8.1f} MiB  {side}")
