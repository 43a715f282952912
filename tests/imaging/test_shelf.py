"""The shelf: adapters found by name, in every format, with facts and pictures; what is no adapter; what changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.imaging import tiny
from tests.imaging.adapters_made import attached, write

from loraloom.errors import ConfigError
from loraloom.imaging.shelf import AdapterShelf, stamp_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ink (kohya), sub/neon (diffusers), glass (PEFT), sub/ink (another of the same name), and a file that is none."""
    place = tmp_path_factory.mktemp("adapters")
    adapters = attached(tiny.diffusion(), "ink", "neon", "glass")
    write(adapters, "ink", place, "kohya", "sd1")
    write(adapters, "neon", place / "sub", "diffusers", "sd1")
    write(adapters, "ink", place / "sub", "kohya", "sd1")
    write(adapters, "glass", place, "peft", "sd1")
    (place / "glass" / "checkpoints" / "step-1").mkdir(parents=True)
    save_file({"x": torch.zeros(1)}, place / "glass" / "checkpoints" / "step-1" / "adapter_model.safetensors")
    save_file({"x": torch.zeros(1)}, place / "other.safetensors")
    Image.new("RGB", (4, 4)).save(place / "ink.preview.png")
    return place


def test_what_is_there(folder: Path) -> None:
    entries = {entry.name: entry for entry in AdapterShelf(folder).all()}
    own = {name: entry for name, entry in entries.items() if folder in entry.path.parents}
    assert set(own) == {"ink", "glass", "sub/ink", "neon", "other"}
    assert own["ink"].thumbnail == folder / "ink.preview.png"
    assert own["neon"].thumbnail is None
    assert own["other"].facts is None
    facts = {name: entry.facts for name, entry in own.items() if entry.facts is not None}
    assert {name: fact.format for name, fact in facts.items()} == {
        "ink": "kohya",
        "sub/ink": "kohya",
        "neon": "diffusers",
        "glass": "peft",
    }
    assert all(fact.rank == 4 for fact in facts.values())


def test_adapters_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = AdapterShelf(folder)
    assert shelf.find("ink") == folder / "ink.safetensors"
    assert shelf.find("INK") == folder / "ink.safetensors"
    assert shelf.find("ink.safetensors") == folder / "ink.safetensors"
    assert shelf.find("sub/ink") == folder / "sub" / "ink.safetensors"
    assert shelf.find("glass") == folder / "glass"
    assert AdapterShelf().find(str(folder / "glass")) == folder / "glass"
    assert AdapterShelf().find(str(folder / "sub" / "neon.safetensors")) == folder / "sub" / "neon.safetensors"
    monkeypatch.chdir(folder / "sub")
    assert AdapterShelf().find("neon.safetensors") == Path("neon.safetensors")


def test_an_unknown_adapter_is_told_with_the_nearest_name(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no lora 'nein' in .*did you mean 'neon'"):
        AdapterShelf(folder).find("nein")
    with pytest.raises(ConfigError, match="there are"):
        AdapterShelf(folder).find("zzzzzzzzz")
    with pytest.raises(ConfigError, match="no adapter"):
        AdapterShelf(folder).find(str(folder / "ink.preview.png"))
    with pytest.raises(ConfigError, match="there is no folder"):
        AdapterShelf(folder / "gone")


def test_changes_are_noticed(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes((folder / "ink.safetensors").read_bytes())
    shelf = AdapterShelf(tmp_path)
    assert shelf.changed()
    shelf.all()
    assert not shelf.changed()
    before = stamp_of(file)
    os.utime(file, ns=(1, 1))
    assert shelf.changed() and stamp_of(file) != before
    shelf.all()
    (tmp_path / "a.png").write_bytes(b"")
    assert shelf.changed()
    shelf.all()
    file.unlink()
    assert shelf.changed()
    assert stamp_of(file) == (str(file), 0, 0)
