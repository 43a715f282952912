"""What the rows and columns of a sheet can vary, and how each value changes a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loraloom.errors import ConfigError
from loraloom.imaging.grid.notation import numbers, split_list, split_texts, split_words
from loraloom.imaging.recipe import AdapterUse, Recipe
from loraloom.imaging.samplers import find_sampler

Value = str | int | float


@dataclass(frozen=True)
class Turn:
    """One value of one axis, to be put into a recipe."""

    value: Value
    names: tuple[str, ...] = ()
    """The adapters that a weight axis turns, the text that a word axis replaces."""


@dataclass(frozen=True)
class Kind:
    """One thing that can vary."""

    help: str
    read: Callable[[str], tuple[Value, ...]]
    """The values in what was written behind the colon."""
    apply: Callable[[Recipe, Turn], Recipe]
    check: Callable[[Value], None] = lambda value: None
    """Raises ConfigError for a value that cannot be."""
    named: str = ""
    """What the words between kind and colon stand for; empty where there must be none."""
    heading: str = "{kind}"
    label: Callable[[Value], str] = str


# -- adapters ---------------------------------------------------------------------------------------


def uses_of(text: str) -> tuple[AdapterUse, ...]:
    """The adapters of a set-up: "pencil:0.6 neon:0.5:0.2"; "none" for no adapter. Raises ConfigError."""
    words = split_words(text)
    if words == ["none"]:
        return ()
    if not words:
        raise ConfigError("an empty set-up; no adapter is written as none")
    uses = tuple(AdapterUse.parse(word) for word in words)
    for name in {use.name for use in uses if [other.name for other in uses].count(use.name) > 1}:
        raise ConfigError(f"{text!r} names the adapter {name!r} twice")
    return uses


def short_name(name: str) -> str:
    """An adapter as a label shows it: a file without its folder and its ending."""
    return Path(name).stem if name.endswith(".safetensors") else Path(name).name


def setup_label(uses: Iterable[AdapterUse]) -> str:
    """Adapters and their weights, one a line."""
    return "\n".join(f"{short_name(use.name)} {_weights(use)}" for use in uses)


def _setup_label(value: Value) -> str:
    return setup_label(uses_of(str(value))) or "no adapter"


def _adapter_label(value: Value) -> str:
    uses = uses_of(str(value))
    return (
        " ".join(short_name(use.name) + ("" if use.te == use.unet == 1 else f" {_weights(use)}") for use in uses)
        or "none"
    )


def _weights(use: AdapterUse) -> str:
    return f"{use.unet:g}" if use.te == use.unet else f"{use.unet:g} (text {use.te:g})"


def _checkpoint_label(value: Value) -> str:
    name = short_name(str(value))
    head, _, digits = name.rpartition("-")
    return f"{head.rpartition('-')[2]} {int(digits)}" if head and digits.isdigit() else name


def _put_setup(recipe: Recipe, turn: Turn) -> Recipe:
    return replace(recipe, adapters=uses_of(str(turn.value)))


def _put_adapter(recipe: Recipe, turn: Turn) -> Recipe:
    return _with(recipe, uses_of(str(turn.value)))


def _put_checkpoint(recipe: Recipe, turn: Turn) -> Recipe:
    return _with(recipe, (AdapterUse(str(turn.value)),))


def _with(recipe: Recipe, uses: tuple[AdapterUse, ...]) -> Recipe:
    """More adapters; one that was there already has its new weight."""
    names = {use.name for use in uses}
    return replace(recipe, adapters=(*(use for use in recipe.adapters if use.name not in names), *uses))


def _put_weight(recipe: Recipe, turn: Turn) -> Recipe:
    return _turned(recipe, turn, te=float(turn.value), unet=float(turn.value))


def _put_te(recipe: Recipe, turn: Turn) -> Recipe:
    return _turned(recipe, turn, te=float(turn.value))


def _put_unet(recipe: Recipe, turn: Turn) -> Recipe:
    return _turned(recipe, turn, unet=float(turn.value))


def _turned(recipe: Recipe, turn: Turn, **weights: Any) -> Recipe:
    """Other weights for the adapters of these names; one that is not there is added."""
    uses = list(recipe.adapters)
    for name in turn.names:
        places = [place for place, use in enumerate(uses) if name in (use.name, short_name(use.name))]
        if not places:
            uses, places = [*uses, AdapterUse(name)], [len(uses)]
        for place in places:
            uses[place] = replace(uses[place], **weights)
    return replace(recipe, adapters=tuple(uses))


def _scale(recipe: Recipe, turn: Turn) -> Recipe:
    factor = float(turn.value)
    uses = (replace(use, te=use.te * factor, unet=use.unet * factor) for use in recipe.adapters)
    return replace(recipe, adapters=tuple(uses))


# -- words ------------------------------------------------------------------------------------------


def _put_word(recipe: Recipe, turn: Turn) -> Recipe:
    """Another text in the place of the axis' own, in prompt and negative prompt."""
    (word,), text = turn.names, str(turn.value)
    return replace(recipe, prompt=recipe.prompt.replace(word, text), negative=recipe.negative.replace(word, text))


# -- numbers ----------------------------------------------------------------------------------------


def _field(name: str) -> Callable[[Recipe, Turn], Recipe]:
    def put(recipe: Recipe, turn: Turn) -> Recipe:
        changed: dict[str, Any] = {name: turn.value}
        return replace(recipe, **changed)

    return put


def _whole(text: str) -> tuple[Value, ...]:
    return numbers(text, whole=True)


def _real(text: str) -> tuple[Value, ...]:
    return numbers(text, whole=False)


def _listed(text: str) -> tuple[Value, ...]:
    return tuple(split_list(text))


def _samplers(text: str) -> tuple[Value, ...]:
    return tuple(find_sampler(name).name for name in split_list(text))


def _texts(text: str) -> tuple[Value, ...]:
    return tuple(split_texts(text))


def _between(least: float, most: float, *, whole: bool = False) -> Callable[[Value], None]:
    """A check that a value is a number within bounds."""

    def check(value: Value) -> None:
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not least <= value <= most:  # type: ignore[arg-type,operator]
            wanted = f"{'a whole' if whole else 'a'} number"
            raise ConfigError(f"{value!r} is not {wanted} from {least:g} to {most:g}")

    return check


def _size_of(value: Value) -> tuple[int, int]:
    """Width and height of "512x768"; one number is a square. Raises ConfigError."""
    sides = str(value).lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() and 1 <= int(side[:9]) <= 8192 for side in sides):
        raise ConfigError(f"{value!r} is not a size such as 64 or 512x768")
    return int(sides[0]), int(sides[-1])


def _put_size(recipe: Recipe, turn: Turn) -> Recipe:
    width, height = _size_of(turn.value)
    return replace(recipe, width=width, height=height)


def _size_label(value: Value) -> str:
    return "{}×{}".format(*_size_of(value))


def _number(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_uses(value: Value) -> None:
    uses_of(str(value))


_WEIGHT = _between(-10, 10)

KINDS: dict[str, Kind] = {
    "prompt": Kind("whole prompts, between bars", _texts, _field("prompt")),
    "negative": Kind("whole negative prompts", _texts, _field("negative"), heading="negative prompt"),
    "word": Kind(
        "texts in the place of TEXT, in both prompts", _listed, _put_word, named="TEXT", heading="“{name}” becomes"
    ),
    "setup": Kind(
        "sets of adapters: none | pencil:1 | soft = pencil:0.6 neon:0.5",
        _texts,
        _put_setup,
        _check_uses,
        heading="adapters",
        label=_setup_label,
    ),
    "adapter": Kind(
        "one adapter more: pencil, neon:0.8, none", _listed, _put_adapter, _check_uses, label=_adapter_label
    ),
    "checkpoint": Kind("the adapters in a folder, one by one", _listed, _put_checkpoint, label=_checkpoint_label),
    "weight": Kind(
        "weight of the adapter NAME", _real, _put_weight, _WEIGHT, named="[NAME]", heading="{name}", label=_number
    ),
    "te": Kind(
        "its weight in the text encoder",
        _real,
        _put_te,
        _WEIGHT,
        named="[NAME]",
        heading="{name} in the text encoder",
        label=_number,
    ),
    "unet": Kind(
        "its weight in the U-Net",
        _real,
        _put_unet,
        _WEIGHT,
        named="[NAME]",
        heading="{name} in the U-Net",
        label=_number,
    ),
    "scale": Kind("factor on every adapter's weight", _real, _scale, _WEIGHT, heading="all adapters ×", label=_number),
    "seed": Kind("seeds", _whole, _field("seed"), _between(0, 2**63 - 1, whole=True)),
    "steps": Kind("sampling steps", _whole, _field("steps"), _between(1, 1000, whole=True)),
    "guidance": Kind("guidance scale (cfg)", _real, _field("guidance"), _between(0, 100), label=_number),
    "sampler": Kind("samplers, by the web UI's names", _samplers, _field("sampler")),
    "size": Kind("sizes: 64, 512x768", _listed, _put_size, lambda value: _size_of(value) and None, label=_size_label),
    "clip-skip": Kind(
        "layers of the text encoder to leave out",
        _whole,
        _field("clip_skip"),
        _between(1, 24, whole=True),
        heading="clip skip",
    ),
    "strength": Kind("how much of --image is repainted", _real, _field("strength"), _between(0, 1), label=_number),
    "eta": Kind("noise added by DDIM and its like", _real, _field("eta"), _between(0, 1), label=_number),
}
"""By name, in the order in which they are applied to a recipe: what comes later sees what came before."""

ALIASES: Mapping[str, str] = {
    "cfg": "guidance",
    "lora": "adapter",
    "replace": "word",
    "neg": "negative",
    "clip_skip": "clip-skip",
    "clipskip": "clip-skip",
}


def kind_name(word: str, known: Iterable[str] = KINDS) -> str | None:
    """The kind that a word means: itself, its plural, or another program's name of it; None for an unknown one."""
    word = word.lower()
    singular = word.removesuffix("s")
    for candidate in (word, ALIASES.get(word, ""), singular, ALIASES.get(singular, "")):
        if candidate in known:
            return candidate
    return None
