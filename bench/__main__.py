"""Every figure of docs/benchmarks.md, measured anew and written there."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

from bench import estimate, forward, gradients, memory, startup, step, switch, whole_job

REPORT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors")


@dataclass(frozen=True)
class Row:
    """One measured figure and what it is held to."""

    part: str
    name: str
    value: float
    most: float | None
    unit: str = "×"
    digits: int = 3

    def markdown(self) -> str:
        """As a row of the report's table."""
        shown = f"{self.value:.1e}" if self.unit == "" else f"{self.value:.{self.digits}f} {self.unit}"
        if self.most is None:
            return f"| {self.part} | {self.name} | {shown} | – | |"
        bound = f"{self.most:g} {self.unit}".strip()
        return f"| {self.part} | {self.name} | {shown} | {bound} | {'yes' if self.value <= self.most else '**no**'} |"


def job_rows() -> Iterator[Row]:
    """Time of the whole job, and the scores it came to."""
    found = whole_job.measure()
    seconds, accuracy = found["seconds"], found["accuracy"]
    for side, most in (("trainer fp32", 0.25), ("trainer bf16", 0.38)):
        yield Row("whole job", f"time against PEFT + {side}", seconds["loraloom"] / seconds[side], most)
        worse = 100 * (accuracy[side] - accuracy["loraloom"])
        yield Row("whole job", f"points of accuracy below PEFT + {side}", worse, 0.5, "points", 2)
    for side, value in accuracy.items():
        yield Row("whole job", f"accuracy, {side} ({seconds[side]:.0f} s)", 100 * value, None, "%", 2)


def step_rows() -> Iterator[Row]:
    """A training step against the frozen floor."""
    for name, value in step.measure().items():
        yield Row("training step / frozen floor", name, value, 1.25 if "MiniLM" in name else 1.15)


def forward_rows() -> Iterator[Row]:
    """Forward passes against the base's."""
    most = {"one adapter": 1.06, "three weighted": 1.08, "eight routed per sample": 1.20}
    for name, value in forward.measure().items():
        yield Row("forward / base", name, value, most.get(name))


def switch_rows() -> Iterator[Row]:
    """Changing adapters and weights."""
    for name, value in switch.measure().items():
        yield Row("switching", name, value, 0.1, "ms", 4)


def memory_rows() -> Iterator[Row]:
    """Peak memory of training."""
    found = memory.measure()
    for side in ("trainer fp32", "trainer bf16"):
        yield Row("peak memory above the base", f"against PEFT + {side}", found["loraloom"] / found[side], 0.7)
    for side, value in found.items():
        yield Row("peak memory above the base", side, value, None, "MiB", 0)


def startup_rows() -> Iterator[Row]:
    """Import and --help."""
    for (name, value), most in zip(startup.measure().items(), (0.2, 0.4), strict=True):
        yield Row("start-up", name, value, most, "s")


def gradient_rows() -> Iterator[Row]:
    """Errors of the fused gradients."""
    for (name, value), most in zip(gradients.measure().items(), (1e-10, 1e-5), strict=True):
        yield Row("gradients", name, value, most, "")


def estimate_rows() -> Iterator[Row]:
    """What `--estimate` says against what runs take; either way off counts."""
    for name, parts in estimate.measure().items():
        for part, (said, taken) in parts.items():
            off = 100 * abs(said / taken - 1)
            yield Row("estimate", f"{part} off the truth, {name} ({taken:.0f})", off, 25, "%", 1)


PARTS = {
    "gradients": gradient_rows,
    "switch": switch_rows,
    "startup": startup_rows,
    "forward": forward_rows,
    "step": step_rows,
    "memory": memory_rows,
    "estimate": estimate_rows,
    "job": job_rows,
}


def processor() -> str:
    """The processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")] if cpuinfo.exists() else []
    )
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def report(rows: list[Row]) -> str:
    """The page that is written."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    table = "\n".join(row.markdown() for row in rows)
    return f"""# Benchmarks

Measured {date.today()} by `make bench`: {processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads;
Python {platform.python_version()}, {versions}. Ratios are of medians of runs that took turns in one process; what
each row does is told at the head of its script in `bench/`. Shared machines are noisy: ratios move by a few
hundredths from run to run. What was tried, and what did not help, is in [lab-log.md](lab-log.md).

| part | measure | found | at most | reached |
|---|---|---|---|---|
{table}
"""


def main() -> int:
    """Measure the chosen parts; write the report when all are."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"only these of {', '.join(PARTS)}; nothing is written"
    )
    chosen = parser.parse_args().parts
    if unknown := [part for part in chosen if part not in PARTS]:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    rows: list[Row] = []
    for part in chosen or PARTS:
        for row in PARTS[part]():
            rows.append(row)
            print(row.markdown(), flush=True)
    if not chosen:
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(report(rows), encoding="utf-8")
        print(f"written to {REPORT.relative_to(Path.cwd())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
