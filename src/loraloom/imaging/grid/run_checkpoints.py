"""A training run's own checkpoint as an adapter: PEFT's two files, written beside what training goes on from.

A run keeps its newest checkpoints as long as it lasts (`keep_checkpoints`), so a sheet can be made while it trains.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from loraloom.adapters.targets import first_match
from loraloom.errors import FormatError
from loraloom.formats.peft_file import CONFIG_NAME, WEIGHTS_NAME
from loraloom.formats.tensorfile import read_tensors, tensor_pieces, write_together

STATE, RUN_STATE = "state.safetensors", "run-state.json"
_PREFIX = "weight."


def is_checkpoint(folder: Path) -> bool:
    """Whether this is a complete checkpoint of a run that is not finished."""
    return (folder / STATE).is_file() and (folder / "state.json").is_file()


def write_adapter(folder: Path) -> Path:
    """Make the checkpoint in `folder` an adapter folder, unless it is one; returns it.

    Raises FormatError where it is damaged or holds no adapter, OutputError where it cannot be written.
    """
    if (folder / WEIGHTS_NAME).is_file() and (folder / CONFIG_NAME).is_file():
        return folder
    settings = _settings(folder.parent.parent / RUN_STATE)
    state, _ = read_tensors(folder / STATE)
    trained = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)}
    factors = {name: tensor for name, tensor in trained.items() if name.rpartition("|")[2] in ("A", "B")}
    if not factors or len(factors) < len(trained):
        what = "more than an adapter's factors" if factors else "no adapter"
        raise FormatError(f"the checkpoint '{folder}' holds {what}: it cannot be used to paint")
    config = json.dumps(_config(factors, settings), indent=2, sort_keys=True).encode()
    write_together({folder / WEIGHTS_NAME: tensor_pieces(_peft(factors), {}), folder / CONFIG_NAME: [config]})
    return folder


def _settings(path: Path) -> Mapping[str, Any]:
    """The adapter's settings in a run's state. Raises FormatError."""
    try:
        settings = json.loads(path.read_text("utf-8"))["settings"]
        return {"rank": settings["adapter"]["rank"], **settings["adapter"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"'{path}', which tells how the run's adapter is made, cannot be read ({error!r})") from None


def _peft(factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    split = ((name.rpartition("|"), tensor) for name, tensor in factors.items())
    return {f"base_model.model.{path}.lora_{role}.weight": tensor.contiguous() for (path, _, role), tensor in split}


def _config(factors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's config; ranks are read off the factors, alphas resolved as attaching resolves them."""
    ranks = {name[:-2]: tensor.shape[0] for name, tensor in factors.items() if name.endswith("|A")}
    alphas = {path: _alpha(path, rank, settings) for path, rank in ranks.items()}
    return {
        "peft_type": "LORA",
        "r": settings["rank"],
        "lora_alpha": settings.get("alpha") or 2.0 * settings["rank"],
        "rank_pattern": {path: rank for path, rank in ranks.items() if rank != settings["rank"]},
        "alpha_pattern": alphas,
        "target_modules": sorted(ranks),
        "use_rslora": settings.get("scaling") == "rslora",
        "bias": "none",
        "inference_mode": True,
    }


def _alpha(path: str, rank: int, settings: Mapping[str, Any]) -> float:
    patterns = settings.get("alpha_pattern") or {}
    key = first_match(patterns, path)
    alpha = settings.get("alpha") if key is None else patterns[key]
    return 2.0 * rank if alpha is None else float(alpha)
