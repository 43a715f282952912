"""A model with every kind of layer, adapters for it on the disk, and their ΔW by plain numpy from the files alone."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loraloom.adapters import adapters_of, attach
from loraloom.formats.peft import save_adapter

KINDS = ("linear", "transposed", "lookup", "conv1", "conv2", "grouped")
HEADS = ("classifier",)


class Everything(nn.Module):
    """Tokens (B, T) → scores (B, 3), through one layer of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.lookup = nn.Embedding(11, 6)
        self.linear = nn.Linear(6, 9)
        self.transposed = Conv1D(5, 9)
        self.conv1 = nn.Conv1d(5, 7, 3, padding=1)
        self.conv2 = nn.Conv2d(1, 4, (3, 1), padding=(1, 0))
        self.grouped = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.classifier = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.transposed(torch.tanh(self.linear(self.lookup(tokens))))
        x = torch.tanh(self.conv1(x.transpose(1, 2)))
        x = self.grouped(torch.tanh(self.conv2(x[:, None])))
        scores: Tensor = self.classifier(x.mean((2, 3)))
        return scores


TOKENS = torch.arange(24).reshape(3, 8) % 11


def model(seed: int = 0) -> Everything:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Everything().eval()


def adapter(folder: Path, seed: int, **spec: Any) -> Path:
    """A PEFT folder of an adapter with random factors, heads and biases."""
    base = model()
    settings = {"rank": 4, "alpha": 3.0, "targets": list(KINDS), **spec}
    dtype = settings.pop("written", None)
    adapters = attach(base, name="made", **settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.4
    if dtype is not None:
        for parameter in adapters.parameters():
            parameter.data = parameter.data.to(dtype)
    save_adapter(adapters, "made", folder)
    return folder


def outputs(folders: dict[str, tuple[Path, float]] | Path, head: str | None = None) -> Tensor:
    """What the model gives with one adapter from the disk, or with several, each by its weight."""
    from loraloom.formats import load_any

    base = model()
    if isinstance(folders, Path):
        load_any(base, folders)
    else:
        for name, (folder, _) in folders.items():
            load_any(base, folder, name=name)
        adapters = adapters_of(base)
        assert adapters is not None
        adapters.activate({name: weight for name, (_, weight) in folders.items()}, head=head)
    with torch.no_grad():
        scores: Tensor = base(TOKENS)
    return scores


def dense(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """ΔW of every layer of a PEFT folder as a matrix (out, in·k), in float64, by loops and numpy alone.

    Of an embedding it is (dim, number), of a grouped convolution the wide matrix of all inputs that A reads.
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = {key: tensor.double().numpy() for key, tensor in load_file(folder / "adapter_model.safetensors").items()}
    found = {}
    for key, a in tensors.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_(?:A\.weight|embedding_A)", key)
        if match is None:
            continue
        path = match[1]
        b = tensors[key.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B")]
        rank = _pattern(config.get("rank_pattern"), path, config["r"])
        alpha = _pattern(config.get("alpha_pattern"), path, config["lora_alpha"])
        assert rank == a.shape[0], key
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        found[path] = scale * _product(b.reshape(len(b), -1), a.reshape(len(a), -1))
    return found


def _product(b: np.ndarray[Any, Any], a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    groups = len(a) // b.shape[1]
    out, own = len(b) // groups, b.shape[1]
    rows = [b[g * out : (g + 1) * out] @ a[g * own : (g + 1) * own] for g in range(groups)]
    return np.concatenate(rows)


def _pattern(patterns: dict[str, Any] | None, path: str, default: float) -> float:
    return next((v for k, v in (patterns or {}).items() if re.match(rf"(.*\.)?({k})$", path)), default)
