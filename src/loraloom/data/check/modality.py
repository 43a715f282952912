"""What a kind of data has to know for being checked: one class per kind, of no more than this."""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol

from loraloom.data.check.findings import Findings
from loraloom.data.check.part import Part, Progress, Tokens
from loraloom.data.config import DataConfig

Sheet = Literal["texts", "pictures", "captions", "recordings"]
"""What a sample sheet shows."""

Layout = Literal["table", "folders", "annotations"]
"""Where the splits of a data set are: tables beside each other, folders, or folders with annotations beside them."""


class Modality(Protocol):
    """Texts, pairs, conversations, pictures, boxes or recordings."""

    sheet: ClassVar[Sheet]
    layout: ClassVar[Layout]

    def read(self, part: Part, data: DataConfig, progress: Progress | None) -> None:
        """Fill a part with what can be used; what cannot goes to its findings.

        Raises DataError or ConfigError only where nothing can be read at all, or the columns are not known.
        """
        ...

    def examine(self, part: Part, tokens: Tokens | None) -> None:
        """Gather the figures of a part, and note what is odd in it."""
        ...

    def compare(self, train: Part, held_out: Part, findings: Findings) -> None:
        """Note what two parts share and should not, and what only one of them has."""
        ...
