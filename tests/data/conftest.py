"""Shared by the tests of the data layer: roles, files in a temporary folder, and what an error says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loraloom.data import Role, Table, read_table
from loraloom.errors import LoraloomError

TEXT = Role("text", ("text", "sentence", "review"))
LABEL = Role("label", ("label", "class", "stars"), "label")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    """Write a file and return its path; line breaks are written as they are."""

    def writer(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        return str(path)

    return writer


@pytest.fixture
def read() -> Callable[..., Table]:
    """Read a source as text and label."""

    def reader(source: str, **settings: Any) -> Table:
        return read_table(source, [TEXT, LABEL], **settings)

    return reader


@pytest.fixture
def refused(read: Callable[..., Table]) -> Callable[..., str]:
    """The one sentence with which a source is refused, without its path; fails if it is accepted."""

    def refuser(source: str, *, kind: type[LoraloomError] = LoraloomError, **settings: Any) -> str:
        with pytest.raises(kind) as caught:
            read(source, **settings)
        message = str(caught.value)
        assert "\n" not in message
        return message.removeprefix(source)

    return refuser
