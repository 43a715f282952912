"""The verb: what it refuses, what it sets, and who is asked for a password."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loraloom.cli import studio as verb
from loraloom.cli.main import main
from loraloom.errors import MissingExtraError


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """What the verb would open, without opening it."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(verb, "_open", lambda base, places, address, as_json: calls.append((base, places, address)))
    monkeypatch.setattr(verb, "check_libraries", lambda: None)
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_SHARE", "GRADIO_TEMP_DIR", "GRADIO_ALLOWED_PATHS"):
        monkeypatch.setenv(name, "before")
    monkeypatch.chdir(tmp_path)
    return calls


def test_this_machine_alone_and_no_password_by_default(opened: list[Any], tmp_path: Path) -> None:
    assert main(["studio"]) == 0
    base, places, address = opened[0]
    assert base == "scenes" and address.host == "127.0.0.1" and address.password is None
    assert places.data == (tmp_path,) and places.adapters == ()
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False" and os.environ["GRADIO_SHARE"] == "False"


def test_another_host_asks_for_a_password(opened: list[Any]) -> None:
    assert main(["studio", "--host", "0.0.0.0"]) == 0
    assert main(["studio", "--host", "0.0.0.0"]) == 0
    assert main(["studio", "--host", "0.0.0.0", "--password", "correct horse"]) == 0
    assert main(["studio", "--password", "correct horse"]) == 0
    words = [address.password for _, _, address in opened]
    assert len(words[0]) >= 12 and words[0] != words[1]
    assert words[2:] == ["correct horse"] * 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--adapters", "nowhere"], "--adapters 'nowhere': there is no such folder"),
        (["--data", "nowhere"], "--data 'nowhere'"),
        (["--embeddings", "nowhere"], "--embeddings 'nowhere'"),
        (["--host", "0.0.0.0", "--password", "short"], "8 characters are the least"),
        (["--port", "0"], "--port"),
    ],
)
def test_what_cannot_be_is_refused(
    opened: list[Any], capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main(["studio", *words]) == 2
    assert told in capsys.readouterr().err and opened == []


@pytest.mark.parametrize(("library", "extra"), [("gradio", "studio"), ("diffusers", "images")])
def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, library: str, extra: str) -> None:
    real: Callable[[str], Any] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == library else real(name))
    with pytest.raises(MissingExtraError, match=rf"{library}.*loraloom\[{extra}\]"):
        verb.check_libraries()
