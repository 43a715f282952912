"""The adapters that one training run left behind, from the first to the last."""

from __future__ import annotations

import os
import re
from pathlib import Path

from loraloom.errors import ConfigError
from loraloom.imaging.grid.run_checkpoints import is_checkpoint, write_adapter

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_SUBFOLDERS = ("checkpoints", "snapshots")


def checkpoints_in(place: str) -> tuple[str, ...]:
    """Adapter files and folders below `place`, in the order of the numbers in their names, the final one last.

    A file, or a folder that is itself an adapter and holds no others, stands for itself; checkpoints of a run that is
    not finished are made adapters. Raises ConfigError where there is none, FormatError for a damaged one.
    """
    path = Path(os.path.expanduser(place))
    if not path.is_dir():
        return (place,)
    if is_checkpoint(path):
        return (str(write_adapter(path)),)
    entries = [entry for folder in _folders(path) for entry in folder.iterdir()]
    entries = [write_adapter(entry) if is_checkpoint(entry) else entry for entry in entries]
    found = sorted(filter(_is_adapter, entries), key=_order)
    if _is_adapter(path):
        found.append(path)
    if not found:
        raise ConfigError(
            f"the folder {place!r} holds no adapters: neither .safetensors files nor folders with {_WEIGHTS}"
        )
    return tuple(map(str, found))


def _folders(path: Path) -> list[Path]:
    """The folder itself, but not where it is an adapter's own, and those in which runs keep what is on the way."""
    own = [] if _is_adapter(path) else [path]
    return own + [path / name for name in _SUBFOLDERS if (path / name).is_dir()]


def _is_adapter(path: Path) -> bool:
    if path.is_dir():
        return (path / _WEIGHTS).is_file() or (path / "pytorch_lora_weights.safetensors").is_file()
    return path.suffix == ".safetensors" and not path.name.startswith(".")


def _order(path: Path) -> tuple[str, tuple[int, ...], str]:
    """Numbers by their value; a name without one comes last, as trainers write the final file."""
    digits = tuple(int(number) for number in re.findall(r"\d+", path.stem))
    stem = re.sub(r"\d+.*", "", path.stem)
    return stem.rstrip("-_"), digits or (1 << 62,), path.name
