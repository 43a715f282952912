"""Texts, each with a label: text classification."""

from __future__ import annotations

from typing import ClassVar

from loraloom.data.check.duplicates import check_same_texts, compare_texts
from loraloom.data.check.findings import Findings
from loraloom.data.check.modality import Layout, Sheet
from loraloom.data.check.part import Part, Progress, Tokens, check_labels, compare_labels
from loraloom.data.check.rows import read_examples, read_rows
from loraloom.data.check.texts import check_texts
from loraloom.data.columns import Role
from loraloom.data.config import DataConfig

TEXT = Role("text", ("text", "sentence", "review", "content", "comment", "tweet", "message", "document", "body"))
LABEL = Role("label", ("label", "labels", "class", "category", "target", "sentiment", "intent", "stars"), "label")


class LabelledTexts:
    """Rows of a text and its label."""

    sheet: ClassVar[Sheet] = "texts"
    layout: ClassVar[Layout] = "table"

    def read(self, part: Part, data: DataConfig, progress: Progress | None = None) -> None:
        """Read every row; those without a text or a label are noted."""
        records = read_rows(part, data)
        read_examples(part, records, (TEXT, LABEL), data.columns, ("text", "label"))

    def examine(self, part: Part, tokens: Tokens | None = None) -> None:
        """Lengths, labels, odd texts, duplicates and texts with several labels."""
        check_texts(part, ("text",), tokens)
        check_labels(part)
        check_same_texts(part)

    def compare(self, train: Part, held_out: Part, findings: Findings) -> None:
        """Leaks, and labels that one part alone has."""
        compare_texts(train, held_out, findings, ignore=("label",))
        compare_labels(train, held_out, findings)
