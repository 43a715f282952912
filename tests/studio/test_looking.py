"""Adapters looked into from their files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loraloom.formats import describe_adapter
from loraloom.imaging.shelf import ShelfEntry
from loraloom.studio.looking import facts_of, layer_rows, layers_of, metadata_of, side_by_side

PATH = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A PEFT folder with one layer of rank 4, of which two directions are used."""
    folder = tmp_path / "pencil"
    folder.mkdir()
    down, up = torch.eye(4, 16), torch.zeros(8, 4)
    up[0, 0], up[1, 1] = 3.0, 4.0
    name = f"base_model.model.{PATH}"
    save_file(
        {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up},
        folder / "adapter_model.safetensors",
        metadata={"note": "<b>by hand</b>"},
    )
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["to_q"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def entry(path: Path, name: str = "pencil") -> ShelfEntry:
    return ShelfEntry(name, path, describe_adapter(path), None)


def test_a_layer_is_measured_without_its_base(adapter: Path) -> None:
    verdict, (site,) = layers_of(adapter)
    assert site.path == PATH and site.rank == 4 and site.rank_99 == 2
    assert site.change == pytest.approx(10.0), "alpha / rank is 2: the norm of (3, 4) doubled"
    assert "99 % of the update lies in 2 of 4 directions" in verdict
    columns, rows = layer_rows([site])
    assert len(columns) == len(rows[0])


def test_facts_in_words_alone_and_side_by_side(adapter: Path) -> None:
    told = facts_of(entry(adapter))
    assert told["format"] == "peft" and told["rank"] == "4" and told["sites"] == "1" and "KiB" in told["size"]
    columns, rows = side_by_side([entry(adapter), entry(adapter, "other")])
    assert columns == ["", "pencil", "other"] and all(
        row[1] == row[2] for row in rows if row[0] not in ("size", "path")
    )
    assert metadata_of(ShelfEntry("x", adapter, None, None)) == {}
    assert facts_of(ShelfEntry("x", adapter, None, None))["file"] == "pencil"
