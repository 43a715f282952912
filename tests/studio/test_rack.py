"""What the page says of the adapters, and what it shows of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.studio.fakes import FakeEntry, FakeFacts

from loraloom.errors import ConfigError
from loraloom.studio.rack import Thumbnails, Use, entry_of, states_of, uses_of

KNOWN = ["pencil", "neon"]


def test_only_those_that_are_on_count() -> None:
    said = {"pencil": {"on": True, "unet": 0.5, "te": 0.1, "split": False}, "neon": {"on": False, "unet": 1}}
    assert uses_of(said, KNOWN) == [Use("pencil", 0.5, 0.5)]
    assert uses_of({}, KNOWN) == uses_of(None, KNOWN) == []


def test_a_split_weight_and_what_has_no_knob_come_through_and_back() -> None:
    uses = [Use("pencil", 0.2, -0.5), Use("neon", 1.0, 1.0, (("down", 0.5),), ((10, 0.0), (20, 1.0)))]
    assert uses_of(states_of(uses), KNOWN) == uses


@pytest.mark.parametrize("weight", ["x", None, float("nan"), float("inf"), 11, -10.5, [1], "1e400"])
def test_a_weight_that_is_no_number_is_refused(weight: Any) -> None:
    with pytest.raises(ConfigError, match="adapter 'pencil': the weight"):
        uses_of({"pencil": {"on": True, "unet": weight}}, KNOWN)


@pytest.mark.parametrize("name", ["../pencil", "/etc/passwd", "pencl", ""])
def test_only_names_of_the_folders_are_taken(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no adapter"):
        uses_of({name: {"on": True, "unet": 1}}, KNOWN)
    with pytest.raises(ConfigError, match="did you mean 'pencil'"):
        uses_of({"pencl": {"on": True}}, KNOWN)


def test_anything_else_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="reload the page"):
        uses_of(["pencil"], KNOWN)


def test_an_entry_in_a_few_words(tmp_path: Path) -> None:
    Image.new("RGB", (400, 300), "red").save(tmp_path / "a.png")
    shown = entry_of(FakeEntry("a", tmp_path / "a", thumbnail=tmp_path / "a.png"), Thumbnails())
    assert shown["name"] == "a" and shown["info"] == "sd1 · kohya · rank 4"
    assert shown["thumb"].startswith("data:image/png;base64,") and len(shown["thumb"]) < 2000
    assert entry_of(FakeEntry("b", tmp_path / "b", facts=None), Thumbnails())["info"] == "cannot be read"
    assert entry_of(FakeEntry("c", tmp_path / "c", facts=FakeFacts(rank=0)), Thumbnails())["info"] == "sd1 · kohya"


def test_thumbnails_follow_their_files_and_pass_over_bad_ones(tmp_path: Path) -> None:
    path, thumbnails = tmp_path / "a.png", Thumbnails()
    assert thumbnails.of(None) == thumbnails.of(path) == ""
    path.write_bytes(b"no picture")
    assert thumbnails.of(path) == ""
    Image.new("RGB", (8, 8), "red").save(path)
    assert thumbnails.of(path).startswith("data:")
