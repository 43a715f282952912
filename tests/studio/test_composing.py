"""Comparing and mixing on the page, with the adapters that come with the small base."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.formats.files import sd1_file
from tests.studio.fakes import FakeEntry, FakePainter

from loraloom.errors import ConfigError, OutputError
from loraloom.formats import describe_adapter, read_any
from loraloom.formats.updates import updates_of
from loraloom.imaging.shelf import AdapterShelf
from loraloom.studio.composing import compared, write_mix
from loraloom.studio.desk import Desk
from loraloom.studio.places import Places

STYLES = ("glass", "neon", "pencil")
EXACT, NEAREST = "the exact sum", "the nearest of a rank"


class RealFacts(FakePainter):
    """A fake painter over real files, whose facts are read from them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        shelf = self.shelf
        shelf.all = lambda: [  # type: ignore[method-assign]
            FakeEntry(path.stem, path, describe_adapter(path)) for path in sorted(folder.glob("*.safetensors"))
        ]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    folder = tmp_path / "adapters"
    folder.mkdir()
    for style in STYLES:
        shutil.copy(AdapterShelf().find(style), folder / f"{style}.safetensors")
    made = Desk(RealFacts(folder), Places((folder,), tmp_path / "pictures", tmp_path / "runs", (tmp_path,)))
    yield made
    made.close()


def on(**weights: float) -> dict[str, dict[str, object]]:
    return {name: {"on": True, "unet": weight} for name, weight in weights.items()}


def test_a_comparison_is_told_and_drawn(desk: Desk) -> None:
    found = compared(desk, ["neon", "glass", "pencil"])
    assert [row[0] for row in found.rows] == ["neon · glass", "neon · pencil", "glass · pencil"]
    assert len(found.rows[0]) == len(found.columns)
    assert "cosine" in found.sentences[0] and found.sentences[0][0].isupper()
    assert any("of one size: neon" in sentence for sentence in found.sentences)
    assert found.picture.read_bytes().startswith(b"\x89PNG")


def test_one_adapter_is_not_compared(desk: Desk) -> None:
    with pytest.raises(ConfigError, match="two adapters or more"):
        compared(desk, ["neon"])


def test_the_mix_of_the_rack_is_written_as_one_adapter(desk: Desk, tmp_path: Path) -> None:
    told = write_mix(desk, on(pencil=0.3, neon=-0.5), "both", EXACT, 16)
    assert told.startswith("both.safetensors is written: ")
    folder = tmp_path / "adapters"
    made, *sources = (updates_of(read_any(folder / f"{name}.safetensors"))[0] for name in ("both", "pencil", "neon"))
    for path, update in made.items():
        wanted = 0.3 * sources[0][path].delta() - 0.5 * sources[1][path].delta()
        assert float((update.delta() - wanted).norm()) <= 2e-3 * float(wanted.norm()), path
    desk.look_again()
    assert "both" in desk.names()


def test_the_nearest_of_a_rank(desk: Desk, tmp_path: Path) -> None:
    write_mix(desk, on(pencil=0.3, neon=0.5), "small", NEAREST, 4)
    assert describe_adapter(tmp_path / "adapters" / "small.safetensors").rank == 4
    with pytest.raises(ConfigError, match="which rank"):
        write_mix(desk, on(pencil=0.3, neon=0.5), "other", NEAREST, None)


def test_blocks_go_along_and_text_encoders_that_are_not_there_do_no_harm(desk: Desk, tmp_path: Path) -> None:
    said = {"pencil": {"on": True, "unet": 1.0, "blocks": [["up", 0.0]]}, "neon": {"on": False}}
    write_mix(desk, said, "lower", EXACT, None)
    made = updates_of(read_any(tmp_path / "adapters" / "lower.safetensors"))[0]
    assert made and not any(update.norm() for path, update in made.items() if ".up_blocks." in path)
    assert any(update.norm() for path, update in made.items() if ".down_blocks." in path)


@pytest.mark.parametrize(
    ("said", "name", "told"),
    [
        ({}, "x", "no adapter is on"),
        ({"pencil": {"on": True, "steps": [[5, 0.2]]}}, "x", "follows a schedule"),
        (on(pencil=1), "../x", "name of the new adapter"),
        (on(pencil=1), "", "name of the new adapter"),
    ],
)
def test_what_cannot_be_written(desk: Desk, tmp_path: Path, said: object, name: str, told: str) -> None:
    before = sorted(path.name for path in (tmp_path / "adapters").iterdir())
    with pytest.raises(ConfigError, match=told):
        write_mix(desk, said, name, EXACT, None)
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == before


def test_an_adapter_is_not_written_over(desk: Desk) -> None:
    with pytest.raises(OutputError, match="there already"):
        write_mix(desk, on(pencil=0.5), "neon", EXACT, None)


@pytest.mark.parametrize(("unet", "te"), [(2.0, 0.5), (0.0, 0.5)])
def test_the_text_encoder_has_a_weight_of_its_own(desk: Desk, tmp_path: Path, unet: float, te: float) -> None:
    folder = tmp_path / "adapters"
    sd1_file(folder / "both.safetensors")
    desk.look_again()
    split = {"on": True, "split": True, "unet": unet, "te": te}
    write_mix(desk, {"both": split}, "halves", EXACT, None)
    source, made = (updates_of(read_any(folder / f"{name}.safetensors"))[0] for name in ("both", "halves"))
    for path, update in source.items():
        wanted = (te if path.startswith("text_encoder") else unet) * update.delta()
        found = made[path].delta() if path in made else torch.zeros_like(wanted)
        assert float((found - wanted).norm()) <= 1e-6 * float(update.norm()), path
    assert {path.partition(".")[0] for path in source} == {"unet", "text_encoder"}


def test_a_split_weight_of_an_adapter_without_a_text_encoder(desk: Desk, tmp_path: Path) -> None:
    write_mix(desk, {"pencil": {"on": True, "split": True, "unet": 0.5, "te": 1.0}}, "half", EXACT, None)
    folder = tmp_path / "adapters"
    whole, half = (updates_of(read_any(folder / f"{name}.safetensors"))[0] for name in ("pencil", "half"))
    assert all(half[path].norm() == pytest.approx(0.5 * whole[path].norm(), rel=2e-3) for path in whole)
