"""Which modules a pattern means: names, globs and regular expressions over module paths."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from torch import nn

from loraloom.errors import ConfigError, suggest

OUTPUT_HEADS = frozenset(
    (
        "lm_head",
        "classifier",
        "score",
        "qa_outputs",
        "embed_out",
        "cls",
        "class_embed",
        "bbox_predictor",
        "class_labels_classifier",
        "proj_out",
        "output_projection",
        "ctc_head",
    )
)
"""Names under which models keep their output head, which "all-linear" leaves alone."""


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern means this path.

    >>> matches("query", "layer.0.query"), matches("layer.*.query", "encoder.layer.0.query")
    (True, True)
    >>> matches("re:.*[qk]_proj", "block.1.q_proj"), matches("ery", "layer.0.query")
    (True, False)
    """
    return _matcher(pattern)(path)


@lru_cache(maxsize=1024)
def _matcher(pattern: str) -> Callable[[str], bool]:
    """What tells whether a path is meant; a pattern is held against every module of a model."""
    if pattern.startswith("re:"):
        whole = _regex(pattern)
        return lambda path: whole.fullmatch(path) is not None
    if any(sign in pattern for sign in "*?["):
        end = re.compile(r"(?s:.*\.)?" + fnmatch.translate(pattern))
        return lambda path: end.match(path) is not None
    behind = f".{pattern}"
    return lambda path: path == pattern or path.endswith(behind)


def _regex(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern[3:])
    except re.error as error:
        raise ConfigError(f"target {pattern!r} is not a regular expression: {error}") from None


def first_match(patterns: Iterable[str], path: str) -> str | None:
    """The first pattern that means this path."""
    return next((pattern for pattern in patterns if matches(pattern, path)), None)


@dataclass(frozen=True)
class Layers:
    """Which blocks of a model are meant, by the first number in a module's path."""

    wanted: frozenset[int] | None

    @classmethod
    def of(cls, numbers: tuple[int, ...] | None, paths: Iterable[str]) -> Layers:
        """Negative numbers count from the last block among `paths`. Raises ConfigError for one that is not there."""
        if numbers is None:
            return cls(None)
        present = {number for path in paths if (number := block_number(path)) is not None}
        last = max(present, default=-1)
        wanted = {number: number if number >= 0 else last + 1 + number for number in numbers}
        if missing := [number for number, block in wanted.items() if block not in present]:
            have = f"has blocks 0 to {last}" if present else "has no numbered blocks"
            raise ConfigError(f"layers names block {missing[0]}, but the model {have}")
        return cls(frozenset(wanted.values()))

    def include(self, path: str) -> bool:
        return self.wanted is None or block_number(path) in self.wanted


def block_number(path: str) -> int | None:
    """The first whole number among the parts of a path.

    >>> block_number("encoder.layer.11.attention.0")
    11
    """
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def is_output_head(path: str, module: nn.Module, model: nn.Module) -> bool:
    """Whether this module, or one that contains it, makes the model's final output."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return module is output or any(part in OUTPUT_HEADS for part in path.split(".")[:2])


def every_path(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules below the root with all their paths; a module in two places comes twice."""
    for path, module in model.named_modules(remove_duplicate=False):
        if path:
            yield path, module


def no_match(pattern: str, paths: Iterable[str], what: str) -> str:
    """The sentence for a pattern that matches nothing, with near names."""
    paths = list(paths)
    leaf = pattern.removeprefix("re:").rpartition(".")[2].strip("*")
    hint = suggest(leaf, {path.rpartition(".")[2] for path in paths if not path.rpartition(".")[2].isdigit()})
    return f"{pattern!r} matches no {what}{hint or suggest(pattern, paths)}"
