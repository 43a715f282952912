"""The adapters on the page: what is in the folders, and what the page says of their weights."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from loraloom.errors import ConfigError, suggest

_THUMBNAIL = 96
_LARGEST_THUMBNAIL = 20_000_000
_MOST_WEIGHT = 10.0


@dataclass(frozen=True)
class Use:
    """One adapter that is on, with its weights."""

    name: str
    te: float
    """On the text encoders."""
    unet: float
    """On the denoiser."""
    blocks: tuple[tuple[str, float], ...] = ()
    """Factors by block, and `steps` by step: the page has no knobs for them, it carries a recipe's along."""
    steps: tuple[tuple[int, float], ...] = ()


def uses_of(said: Any, known: list[str]) -> list[Use]:
    """The adapters that are on, from what the page's rack says. Raises ConfigError.

    `said` is {name: {"on": bool, "unet": weight, "te": weight, "split": bool}}; names that are not `known` are
    refused, as are weights that are no numbers.
    """
    if said in (None, ""):
        return []
    if not isinstance(said, Mapping):
        raise ConfigError("the adapters' weights did not arrive as they should; reload the page")
    return [
        _use(str(name), state, known) for name, state in said.items() if isinstance(state, dict) and state.get("on")
    ]


def _use(name: str, state: Mapping[str, Any], known: list[str]) -> Use:
    if name not in known:
        raise ConfigError(f"there is no adapter {name[:80]!r} in the folders any more{suggest(name, known)}")
    unet = _weight(name, state.get("unet", 1.0))
    te = _weight(name, state.get("te", unet)) if state.get("split") else unet
    blocks = tuple((str(block), _weight(name, factor)) for block, factor in _pairs(state.get("blocks")))
    steps = tuple(
        (int(_weight(name, end, most=1e6)), _weight(name, factor)) for end, factor in _pairs(state.get("steps"))
    )
    return Use(name, te, unet, blocks, steps)


def _pairs(value: Any) -> list[Any]:
    found = value if isinstance(value, list) else []
    return [pair for pair in found if isinstance(pair, list) and len(pair) == 2]


def _weight(name: str, value: Any, *, most: float = _MOST_WEIGHT) -> float:
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not abs(weight) <= most:  # NaN too
        raise ConfigError(f"adapter '{name}': the weight {str(value)[:40]} is no number from -{most:g} to {most:g}")
    return weight


def states_of(uses: list[Use]) -> dict[str, dict[str, Any]]:
    """What the rack shows for these uses: the other way of `uses_of`."""
    return {
        use.name: {
            "on": True,
            "unet": use.unet,
            "te": use.te,
            "split": use.te != use.unet,
            "blocks": [list(pair) for pair in use.blocks],
            "steps": [list(pair) for pair in use.steps],
        }
        for use in uses
    }


class Thumbnails:
    """Small pictures of adapters as data addresses, made once per file."""

    def __init__(self) -> None:
        self._made: dict[tuple[Path, int], str] = {}

    def of(self, path: Path | None) -> str:
        """A data address, or "" where there is no picture or none that can be read."""
        if path is None:
            return ""
        try:
            stat = path.stat()
            key = (path, stat.st_mtime_ns)
            if key not in self._made:
                self._made[key] = _data_address(path) if stat.st_size <= _LARGEST_THUMBNAIL else ""
        except OSError:
            return ""
        return self._made[key]


def _data_address(path: Path) -> str:
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (_THUMBNAIL, _THUMBNAIL))
            small = picture.convert("RGB")
            small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def entry_of(entry: Any, thumbnails: Thumbnails) -> dict[str, str]:
    """What the page shows of one `ShelfEntry`."""
    return {"name": entry.name, "info": facts_line(entry.facts), "thumb": thumbnails.of(entry.thumbnail)}


def facts_line(facts: Any) -> str:
    """An adapter in a few words: format, family, rank."""
    if facts is None:
        return "cannot be read"
    rank = getattr(facts, "rank", None)
    told = [getattr(facts, "kind", ""), getattr(facts, "format", ""), f"rank {rank}" if rank else ""]
    return " · ".join(str(word) for word in told if word)
