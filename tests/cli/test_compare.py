"""`loraloom compare`: what a user reads before mixing, and what is refused."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from tests.cli.commands import Call
from tests.compose.made import folder, updates


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [folder(tmp_path / "ink", updates(1)), folder(tmp_path / "glass", updates(2, rank=3))]


def test_it_is_read_in_ten_seconds(call: Call, two: list[Path], tmp_path: Path) -> None:
    done = call("compare", *two, "--png", tmp_path / "maps.png")
    assert done.status == 0, done.err
    assert "ink · glass" in done.out and "balanced weight" in done.out and "with equal norms: loraloom mix" in done.out
    assert (tmp_path / "maps.png").read_bytes()[:4] == b"\x89PNG"
    assert "layers.0" in call("compare", *two, "--blocks").out
    assert len(call("compare", *two, "--quiet").out.splitlines()) == 2


def test_weights_and_json(call: Call, two: list[Path]) -> None:
    plain = call("compare", *two, "--json").data
    turned = call("compare", f"{two[0]}:-2", two[1], "--json").data
    assert turned["pairs"][0]["cosine"] == pytest.approx(-plain["pairs"][0]["cosine"])
    assert turned["adapters"][0]["norm"] == pytest.approx(2 * plain["adapters"][0]["norm"])
    assert turned["adapters"][0]["balanced_weight"] < 0 < turned["adapters"][1]["balanced_weight"]
    assert plain["verdict"] and plain["findings"][0]["sentence"].startswith("ink and glass ")
    assert set(plain["pairs"][0]["blocks"]) == {"layers.0", "layers.1"} and len(plain["pairs"][0]["sites"]) == 4


def test_the_balanced_command_can_be_given_as_it_is(call: Call, two: list[Path], tmp_path: Path) -> None:
    told = call("compare", f"{two[0]}:2", two[1], "--json").data["command"]
    words = shlex.split(told)
    assert words[:2] == ["loraloom", "mix"] and words[4:] == ["--how", "exact", "--out", "mixed"]
    norms = [one["norm"] for one in call("compare", *words[2:4], "--json").data["adapters"]]
    assert norms[0] == pytest.approx(norms[1], rel=6e-3)
    assert call(*words[1:-1], tmp_path / "mixed").status == 0


def test_three_with_a_picture_and_shipped_styles(call: Call, two: list[Path], tmp_path: Path) -> None:
    three = [*two, folder(tmp_path / "third", updates(3))]
    assert call("compare", *three, "--png", tmp_path / "maps.png", "--quiet").status == 0
    done = call("compare", "glass:0.5", "neon", "--json")
    assert done.status == 0 and done.data["command"].startswith("loraloom mix glass:")
    assert set(done.data["cancellation_per_block"]) >= {"down.0", "up.2"}


def test_many_adapters_are_told_by_the_strongest_pairs(call: Call, two: list[Path], tmp_path: Path) -> None:
    many = [*two, *(folder(tmp_path / f"more-{seed}", updates(seed)) for seed in range(3, 8))]
    done = call("compare", *many, "--png", tmp_path / "maps.png", "--blocks")
    assert done.status == 0 and "the 15 pairs furthest from independent of 21" in done.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ink"], "two adapters are needed to compare"),
        (["ink", "none"], "there is no lora 'none'"),
        (["ink", "./none"], "there is no adapter at none"),
        (["ink:much", "glass"], "the weight 'much' is not a number"),
        (["ink:nan", "glass"], "expected a finite number"),
        (["ink", "glass", "--png", "missing/x.png"], "there is no such folder"),
        (["ink", "glass", "--png", "x.pdf"], "must end in .png"),
        (["ink", "wide"], "different bases"),
        (["ink:1:blocks=layers.9*2", "glass"], "blocks: 'layers.9'"),
    ],
)
def test_what_cannot_be_compared(
    words: list[str], told: str, call: Call, two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path / "wide", updates(3, sites={"model.layers.0.attn.q": (12, 11)}))
    monkeypatch.chdir(tmp_path)
    done = call("compare", *words)
    assert done.status == 2 and told in done.err and done.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["glass", "ink", "wide"]
