"""One part of a data set while it is checked: what was read, the figures gathered, the findings."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from loraloom.data.check.findings import Findings, shortened
from loraloom.data.labels import Labels, label_name
from loraloom.data.table import Example
from loraloom.errors import DataError

FEW = 5
"""Examples below which a label has hardly enough to learn from."""

DOMINANT = 0.9
"""Share of one label from which accuracy says little."""

Progress = Callable[[str, int, int], None]
"""Hears what is being read, how many files are done and how many there are."""


@dataclass(frozen=True)
class Tokens:
    """A base model's tokenizer, as far as a check needs it."""

    base: str
    """The base's name, for the report."""
    count: Callable[[Sequence[str]], list[int]]
    """Tokens of each text, special ones included."""
    limit: int | None
    """The most tokens that it takes; None for any number."""


@dataclass
class Part:
    """The training or the evaluation data."""

    name: str
    """"train", "test" …, or "data" where there is one part alone."""
    source: str
    """The file or folder, as it is read."""
    split: str | None = None
    """The split of a dataset that is read."""
    examples: list[Example] = field(default_factory=list)
    """What can be used. `values["text"]` is what a text is told by, `values["label"]` its label if it has one."""
    rows: int = 0
    """How many rows or files there are, with those that cannot be used."""
    columns: dict[str, str] = field(default_factory=dict)
    """Role to column."""
    notes: list[str] = field(default_factory=list)
    series: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Figures by name, e.g. "words" or "seconds"."""
    tallies: dict[str, Counter[str]] = field(default_factory=dict)
    """Counts by role, e.g. "label" or "speaker": how many examples have each value."""
    findings: Findings = field(default_factory=Findings)

    def place(self, example: Example) -> str:
        """Where an example is, without the path that all of them share."""
        if "file" in example.values:
            return short_name(str(example.values["file"]), self.source)
        return self.at(example.line)

    def at(self, line: int) -> str:
        """A line of a file, or a row of a dataset."""
        name = self.source.replace("\\", "/").rpartition("/")[2]
        return f"{name if '.' in name else self.name}:{line}"

    def tally(self, role: str) -> Counter[str]:
        """Count the values of a role, as label names, and keep the counts."""
        found = Counter(label_name(one.values[role]) for one in self.examples if role in one.values)
        if found:
            self.tallies[role] = found
        return found


def short_name(file: str, source: str) -> str:
    """A file's name below the folder that was asked for."""
    return file.removeprefix(source).lstrip("/\\") or file


def check_labels(part: Part) -> None:
    """Count the labels and note what is odd about them."""
    labelled = [example for example in part.examples if "label" in example.values]
    if not labelled:
        return
    counts = part.tally("label")
    try:
        Labels.from_examples(labelled, column=part.columns.get("label"))
    except DataError as error:
        part.findings.add("not-classes", str(error).removeprefix(f"{part.source}, "))
        return
    check_balance(part, counts)


def check_balance(part: Part, counts: Counter[str]) -> None:
    """Note labels that are rare, dominant, or written in several ways."""
    for name, count in sorted(counts.items(), key=lambda entry: (entry[1], entry[0])):
        if count < FEW:
            part.findings.add("few-examples", f"{shortened(name, 30)!r} ({count})")
    name, most = counts.most_common(1)[0]
    if most > DOMINANT * counts.total():
        part.findings.add("dominant-label", f"{shortened(name, 30)!r} ({100 * most / counts.total():.1f} %)")
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(counts):
        alike[re.sub(r"[\s_-]+", " ", name.strip().casefold())].append(name)
    for names in alike.values():
        if len(names) > 1:
            part.findings.add("labels-alike", " = ".join(repr(shortened(name, 30)) for name in names))


def compare_labels(train: Part, held_out: Part, findings: Findings, role: str = "label") -> None:
    """Note the labels that only one of two parts has."""
    known, asked = train.tallies.get(role, Counter()), held_out.tallies.get(role, Counter())
    if not known or not asked:
        return
    for name in sorted(set(asked) - set(known)):
        findings.add("unseen-label", f"{shortened(name, 30)!r} ({asked[name]} in {held_out.name})")
    for name in sorted(set(known) - set(asked)):
        findings.add("unmet-label", f"{shortened(name, 30)!r} ({held_out.name})")
