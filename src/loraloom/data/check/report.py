"""What a check found, as plain data: made into JSON as it is, or into tables and a picture elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loraloom.data.check.findings import Finding, Findings
from loraloom.data.check.part import FEW, Part


@dataclass(frozen=True)
class Spread:
    """How figures lie: the least, the middle one, that which 95 % do not exceed, the most, and their sum."""

    n: int
    min: float
    median: float
    p95: float
    max: float
    sum: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """Of at least one figure; the quantiles are figures that occur (nearest rank)."""
        ordered = sorted(figures)

        def rank(share: float) -> float:
            return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

        return cls(len(ordered), ordered[0], rank(0.5), rank(0.95), ordered[-1], math.fsum(ordered))


@dataclass(frozen=True)
class Balance:
    """How examples are shared out among the values of one role, e.g. the labels."""

    counts: dict[str, int]
    """From frequent to rare."""
    majority: str
    majority_share: float
    """0 to 1: the accuracy of always saying the most frequent one."""
    below_five: int
    """How many values have fewer than 5 examples."""

    @classmethod
    def of(cls, counts: dict[str, int]) -> Balance:
        """Of at least one count."""
        ordered = dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))
        name = next(iter(ordered))
        few = sum(count < FEW for count in ordered.values())
        return cls(ordered, name, ordered[name] / sum(ordered.values()), few)


@dataclass(frozen=True)
class PartReport:
    """One part: the training or an evaluation set."""

    name: str
    source: str
    rows: int
    """Rows or files, with those that cannot be used."""
    usable: int
    columns: dict[str, str]
    """Role to column."""
    notes: list[str]
    lengths: dict[str, Spread]
    """By unit: "words", "characters", "tokens", "seconds", "width", "height" …"""
    balance: dict[str, Balance]
    """By role: "label", "speaker", "category" …"""
    findings: list[Finding]

    @classmethod
    def of(cls, part: Part) -> PartReport:
        """The figures of a part that was examined."""
        return cls(
            name=part.name,
            source=part.source,
            rows=part.rows,
            usable=len(part.examples),
            columns=dict(part.columns),
            notes=list(part.notes),
            lengths={unit: Spread.of(figures) for unit, figures in part.series.items() if figures},
            balance={role: Balance.of(counts) for role, counts in part.tallies.items() if counts},
            findings=list(part.findings),
        )


@dataclass(frozen=True)
class Report:
    """All of a data set."""

    task: str
    parts: list[PartReport]
    between: list[Finding]
    """What was found between training and evaluation: leaks, labels that only one of them has."""

    @classmethod
    def of(cls, task: str, parts: Sequence[Part], between: Findings) -> Report:
        """The figures of parts that were examined and compared."""
        return cls(task, [PartReport.of(part) for part in parts], list(between))

    def findings(self) -> list[tuple[str, Finding]]:
        """Every finding with the name of its part, "between" for those between parts; problems first."""
        found = [(part.name, finding) for part in self.parts for finding in part.findings]
        found += [("between", finding) for finding in self.between]
        return sorted(found, key=lambda entry: entry[1].severity != "problem")

    @property
    def problems(self) -> list[tuple[str, Finding]]:
        """The findings that should be mended before training."""
        return [entry for entry in self.findings() if entry[1].severity == "problem"]

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return {**asdict(self), "problems": len(self.problems)}
