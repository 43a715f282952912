"""How an estimate looks: what each part takes, and what smaller micro-batches would need."""

from __future__ import annotations

from loraloom.cli.output import duration, file_size, say, show_table
from loraloom.training.estimate import Estimate
from loraloom.training.memory import MIB


def show(found: Estimate, out: str) -> None:
    """Print memory and time by part, and a sentence on what they are of."""
    show_table(("memory", ""), [[_name(part), _size(mib)] for part, mib in found.memory_mib.items()])
    show_table(("time", ""), [[_name(part), duration(seconds)] for part, seconds in found.seconds.items()])
    if found.smaller:
        rows = [[str(entry.size), _size(entry.peak_mib)] for entry in found.smaller]
        show_table(("micro-batch", "peak above base"), [[str(found.micro_batch), _size(_peak(found))], *rows])
    say(
        f"{found.method} on {found.base}: {found.steps} steps and {found.evaluations} evaluations, "
        f"{found.micro_batch} examples per forward pass, {found.precision} on {found.device}: about "
        f"{duration(found.seconds['total'])} and {_size(_peak(found))} above the base model's own",
        f"nothing was written; without --estimate the result goes to {out}",
    )


def _peak(found: Estimate) -> float:
    return found.memory_mib["peak_above_base"]


def _name(part: str) -> str:
    return part.replace("_", " ")


def _size(mib: float) -> str:
    return file_size(mib * MIB)
