"""What occurs twice, as it is or nearly so: within a part, and between training and evaluation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from loraloom.data.check.findings import Findings, shortened
from loraloom.data.check.part import Part
from loraloom.data.check.perceptual import PictureIndex
from loraloom.data.labels import label_name
from loraloom.data.near import NearIndex, pair_frequency, plain_text, word_pairs
from loraloom.data.split import find_leaks
from loraloom.data.table import Example


def check_same_texts(part: Part) -> None:
    """Note texts that are the same but for case, punctuation and spacing, those with several labels, and near ones."""
    groups: defaultdict[str, list[Example]] = defaultdict(list)
    for example in part.examples:
        groups[plain_text(str(example.values["text"]))].append(example)
    for group in groups.values():
        _note_group(part, group)
    _note_near(part, groups)


def _note_group(part: Part, group: list[Example]) -> None:
    first = group[0]
    for other in group[1:]:
        part.findings.add("duplicate", f"{part.place(other)} = {part.place(first)} {_said(first)}")
    labels = {label_name(one.values["label"]): one for one in reversed(group) if "label" in one.values}
    if len(labels) > 1:
        told = ", ".join(f"{shortened(name, 30)!r} in {part.place(one)}" for name, one in sorted(labels.items()))
        part.findings.add("conflicting-labels", f"{_said(first)}: {told}")


def _note_near(part: Part, groups: dict[str, list[Example]]) -> None:
    firsts = [group[0] for group in groups.values()]
    pairs = [word_pairs(text) for text in groups]
    index = NearIndex(pair_frequency(pairs))
    for example, its in zip(firsts, pairs, strict=True):
        if near := index.near(its):
            number, score = max(near, key=lambda found: found[1])
            told = f"{part.place(example)} ≈ {part.place(firsts[number])} {_said(example)} ({score:.2f})"
            part.findings.add("near-duplicate", told)
        index.add(its)


def compare_texts(train: Part, held_out: Part, findings: Findings, *, ignore: Collection[str], short: int = 0) -> None:
    """Note evaluation texts that training shows, as they are or nearly so; those under `short` words by themselves."""
    for leak in find_leaks(train.examples, held_out.examples, ignore=ignore):
        there, here = train.place(leak.train), held_out.place(leak.evaluation)
        if leak.exact:
            kind = "short-leak" if len(str(leak.evaluation.values["text"]).split()) < short else "leak"
            findings.add(kind, f"{here} = {there} {_said(leak.evaluation)}{_other_label(leak.train, leak.evaluation)}")
        else:
            findings.add("near-leak", f"{here} ≈ {there} {_said(leak.evaluation)} ({leak.similarity:.2f})")


def _other_label(one: Example, other: Example) -> str:
    names = [label_name(example.values["label"]) for example in (one, other) if "label" in example.values]
    return f", labelled {names[0]!r} there and {names[1]!r} here" if len(set(names)) > 1 else ""


def _said(example: Example) -> str:
    return repr(shortened(example.values.get("text", ""), 40))


def check_same_files(part: Part) -> None:
    """Note files of the same content, those of them with several labels, and pictures that look the same."""
    groups: defaultdict[str, list[Example]] = defaultdict(list)
    for example in part.examples:
        groups[example.values["sha256"]].append(example)
    firsts, index = [group[0] for group in groups.values()], PictureIndex()
    for number, first in enumerate(firsts):
        _note_same_files(part, groups[first.values["sha256"]])
        if (look := first.values.get("look")) is not None:
            if (near := index.nearest(look)) is not None:
                part.findings.add("near-duplicate", f"{part.place(first)} ≈ {part.place(firsts[near])}")
            index.add(number, look)


def _note_same_files(part: Part, group: list[Example]) -> None:
    for other in group[1:]:
        part.findings.add("duplicate", f"{part.place(other)} = {part.place(group[0])}")
    labels = {label_name(one.values["label"]): one for one in reversed(group) if "label" in one.values}
    if len(labels) > 1:
        told = ", ".join(f"{shortened(name, 30)!r} in {part.place(one)}" for name, one in sorted(labels.items()))
        part.findings.add("conflicting-labels", told)


def compare_files(train: Part, held_out: Part, findings: Findings) -> None:
    """Note evaluation files that training has as well, byte for byte, and pictures that look the same."""
    known = {example.values["sha256"]: example for example in reversed(train.examples)}
    index = PictureIndex()
    for number, example in enumerate(train.examples):
        if (look := example.values.get("look")) is not None:
            index.add(number, look)
    for example in held_out.examples:
        here, look = f"{held_out.name}/{held_out.place(example)}", example.values.get("look")
        if (same := known.get(example.values["sha256"])) is not None:
            findings.add("leak", f"{here} = {train.name}/{train.place(same)}")
        elif look is not None and (near := index.nearest(look)) is not None:
            findings.add("near-leak", f"{here} ≈ {train.name}/{train.place(train.examples[near])}")
