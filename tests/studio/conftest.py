"""A desk over a fake painter, in folders of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.studio.fakes import FakePainter

from loraloom.studio.desk import Desk
from loraloom.studio.places import Places

ADAPTERS = ("glass", "neon", "pencil")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    for name in ("adapters", "data"):
        (tmp_path / name).mkdir()
    for name in ADAPTERS:
        (tmp_path / "adapters" / f"{name}.safetensors").write_bytes(b"weights")
    return Places((tmp_path / "adapters",), tmp_path / "pictures", tmp_path / "runs", (tmp_path / "data",))


@pytest.fixture
def painter(places: Places) -> FakePainter:
    return FakePainter(places.adapters[0])


@pytest.fixture
def desk(painter: FakePainter, places: Places) -> Iterator[Desk]:
    made = Desk(painter, places)
    yield made
    made.close()
