"""The options that describe a picture, shared by the verbs that paint: flags, and the recipe that they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field
from pydantic.fields import FieldInfo

from loraloom.cli.options import Flag
from loraloom.errors import ConfigError

if TYPE_CHECKING:
    from loraloom.imaging.painter import Painter
    from loraloom.imaging.recipe import Recipe


def _flag(name: str, kind: Any, help: str, default: str = "") -> Flag:
    field: FieldInfo = Field(description=help + (f" [default: {default}]" if default else ""))
    field.annotation = kind
    return Flag(name, name.removeprefix("--").replace("-", "_"), field)


PICTURE_FLAGS = (
    _flag("--prompt", str, "What is to be seen, in the web UI's language."),
    _flag("--negative", str, "What is not to be seen."),
    _flag("--sampler", str, 'As in the web UI: "Euler a", "DPM++ 2M Karras" …', "the base's"),
    _flag("--steps", int, "Sampling steps.", "the base's, or 20"),
    _flag("--guidance", float, "How strictly the prompt is followed.", "the base's, or 7"),
    _flag("--size", str, "WIDTHxHEIGHT in pixels, or one number for a square.", "the base's"),
    _flag("--seed", int, "Seed of the first picture; below 0, a new one.", "a new one"),
    _flag("--clip-skip", int, "Layer of the text encoder to use, counted from the last, 1.", "1"),
    _flag("--image", str, "A picture to start from."),
    _flag("--strength", float, "How much of --image is painted anew, above 0 to 1.", "0.75"),
    _flag("--eta", float, "Noise that DDIM adds at every step, 0 to 1.", "0"),
    _flag("--guidance-rescale", float, "Tones down strong guidance, 0 to 1.", "0"),
    _flag("--rescale-mean", bool, "Restore the mean of an encoded prompt after its weights.", "yes"),
)
"""Every one sets the recipe's field of its name; --size sets width and height."""

Lora = Annotated[
    list[str],
    typer.Option(
        metavar="NAME:WEIGHT[:UNET]",
        help="An adapter and its weight, or its weights on text encoder and U-Net; repeatable. Adds to the tags "
        "<lora:NAME:WEIGHT> in the prompt, also for the same adapter.",
    ),
]
LoraDir = Annotated[
    list[str], typer.Option(metavar="DIR", help="Folder in which adapters are found by name; repeatable.")
]
Embeddings = Annotated[
    str | None, typer.Option(metavar="DIR", help="Folder of textual-inversion embeddings, used by name in a prompt.")
]
PictureBase = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A diffusers folder, a .safetensors checkpoint, a Hub name, or scenes, the small base that comes with "
        "Loraloom. [default: scenes]",
    ),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, mps or auto.")]
Dtype = Annotated[str, typer.Option(metavar="NAME", help="fp32, fp16, bf16 or auto.")]


def opened_painter(
    base: str | None,
    old: Recipe | None,
    *,
    lora_dir: Sequence[str],
    embeddings: str | None,
    device: str = "auto",
    dtype: str = "auto",
) -> Painter:
    """The painter that the options name; `old` is the recipe to make again, if any. Raises LoraloomError."""
    from loraloom.imaging.painter import Painter
    from loraloom.imaging.shelf import AdapterShelf

    name = base or (old.base if old is not None else "scenes")
    shelf = AdapterShelf(*lora_dir, base=name)
    return Painter(name, adapters=shelf, embeddings=embeddings, device=device, dtype=dtype)


def recipe_of(
    painter: Painter, settings: Mapping[str, Any], lora: Sequence[str], *, old: Recipe | None = None
) -> Recipe:
    """The recipe that options mean, over an older one or over the base's own defaults.

    Of an older recipe's adapters, one that `lora` names takes the weight there. Raises ConfigError.
    """
    from loraloom.imaging.recipe import AdapterUse

    used = {name: _checked(name, value) for name, value in settings.items() if name != "size"}
    used |= _sides(settings.get("size"))
    recipe = painter.recipe(**{"seed": -1, **used}) if old is None else replace(old, **used)
    uses = [AdapterUse.parse(text, steps=recipe.steps) for text in lora]
    turned = {use.name for use in uses}
    kept = [use for use in recipe.adapters if use.name not in turned]
    return replace(recipe, adapters=(*kept, *uses))


_WORDS = {int: "a whole number", float: "a number", bool: "yes or no", str: "text"}


def _checked(name: str, value: Any) -> Any:
    """An option's value as the type of its field. Raises ConfigError."""
    kind: Any = next(flag.field.annotation for flag in PICTURE_FLAGS if flag.key == name and flag.field is not None)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind is float and (whole or isinstance(value, float)) and math.isfinite(value):
        return float(value)
    if kind is not float and (whole if kind is int else isinstance(value, kind)):
        return value
    raise ConfigError(f"--{name.replace('_', '-')} is {value!r}: {_WORDS[kind]} is expected")


def _sides(size: str | None) -> dict[str, int]:
    """Width and height of "512x768"; one number is a square. Raises ConfigError."""
    if size is None:
        return {}
    sides = size.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() and len(side) < 7 for side in sides):
        raise ConfigError(f"--size {size!r} is not of the form WIDTHxHEIGHT, such as 512x768")
    return {"width": int(sides[0]), "height": int(sides[-1])}
