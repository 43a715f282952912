"""The tiny task, for every test of the training layer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

# The tests are imported by path, so that a module beside them is found only like this.
sys.path.insert(0, str(Path(__file__).parent))

from loraloom.training import results


@pytest.fixture
def pictures() -> None:
    """Asked for by tests in which runs draw their curves."""


@pytest.fixture(autouse=True)
def _pictures_on_request(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture takes a second to draw, and most tests do not look at it."""

    def draw_nothing(path: Path, *_: Any, **__: Any) -> None:
        path.write_bytes(b"")

    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(results, "draw_curves", draw_nothing)
