"""The block of a model to which a layer belongs, by its path: how long tables and pictures are gathered."""

from __future__ import annotations

import re
from collections.abc import Iterable

from loraloom.formats.resolving import canonical
from loraloom.imaging.prompt.parsed import block_names

_NUMBERED = re.compile(r"(.*?\.\d+)(?:\.|$)")
_DIGITS = re.compile(r"(\d+)")


def blocks_of(paths: Iterable[str]) -> dict[str, str]:
    """Path → block, in the order in which the blocks follow each other.

    The denoiser and the text encoders of a pipeline have the names that weights per block are given by ("down.1",
    "mid", "te1"); of another model a block is what comes up to the first number of a path, without what all share.

    >>> blocks_of(["bert.encoder.layer.0.query", "bert.encoder.layer.10.query", "bert.pooler.dense"])
    {'bert.encoder.layer.0.query': 'encoder.layer.0', 'bert.encoder.layer.10.query': 'encoder.layer.10', \
'bert.pooler.dense': 'pooler.dense'}
    """
    named = {path: _pipeline_block(canonical(path)) for path in sorted(paths, key=natural)}
    others = {path: _block(path) for path, name in named.items() if not name}
    shared = _shared(others.values())
    return {path: name or others[path][shared:] for path, name in named.items()}


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts layer.2 before layer.10."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in _DIGITS.split(name) if part)


def _pipeline_block(path: str) -> str:
    """The narrowest name of a pipeline's block, "" outside of all; a folder for a U-Net alone does not name it."""
    found = block_names(path) or block_names(f"unet.{path}") or block_names(f"transformer.{path}")
    return found[0] if found else ""


def _block(path: str) -> str:
    found = _NUMBERED.match(path)
    return found[1] if found else path


def _shared(blocks: Iterable[str]) -> int:
    """How many characters of leading words all of these share; at least one word is left of each."""
    distinct = sorted(set(blocks))
    if len(distinct) < 2:
        return 0
    first, last = distinct[0].split("."), distinct[-1].split(".")
    most = min(len(block.split(".")) for block in distinct) - 1
    count = 0
    # A number is nothing without the word before it: layer.0, not 0.
    while count < most and first[count] == last[count] and not any(b.split(".")[count + 1].isdigit() for b in distinct):
        count += 1
    return sum(len(word) + 1 for word in first[:count])
