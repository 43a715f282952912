"""A recipe: everything that a picture is made of, and the text in which it travels with the picture.

    text = write_parameters(recipe)            # the chunk `parameters` of a PNG, as the web UI writes and reads it
    recipe = read_parameters(text)             # ours and the web UI's
    recipe = read_picture("picture.png")

What the web UI's fields cannot say exactly stands in a last field of ours, `Loraloom`, which it passes over: so every
recipe comes back as it was, whatever its prompt holds. Adapters that were not named in the prompt are written behind
it as tags, so that the web UI loads them too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from loraloom.errors import ConfigError, DataError, suggest
from loraloom.imaging.pngfile import read_text
from loraloom.imaging.prompt import LoraTag, parse_prompt
from loraloom.imaging.samplers import DEFAULT_SAMPLER, SAMPLERS, sampler_name

OURS = "Loraloom"
"""The name of our own field."""
NEGATIVE = "Negative prompt:"
_FIELD = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""A field of the last line, by the web UI's own expression (modules/infotext_utils.py)."""
_LEAST_FIELDS = 3
"""A last line with fewer is a part of the prompt."""

Pairs = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class AdapterUse:
    """One adapter, and how strongly it acts."""

    name: str
    """In the shelf, or a path."""
    te: float = 1.0
    """Weight in the text encoder(s)."""
    unet: float = 1.0
    """Weight in the U-Net."""
    blocks: Pairs = ()
    """Factors on top of that, by block: ("down", 0.5), ("up.1", 0.0) …"""
    steps: tuple[tuple[int, float], ...] = ()
    """Factors of the U-Net's weight over the steps, each up to a last step; () is 1 throughout."""

    @classmethod
    def parse(cls, text: str, *, steps: int = 20) -> AdapterUse:
        """NAME, NAME:WEIGHT, NAME:TE:UNET, and whatever else a `<lora:…>` tag takes. Raises ConfigError.

        `steps` is what shares of the steps in `steps=` are shares of.

        >>> AdapterUse.parse("pencil:0.8")
        AdapterUse(name='pencil', te=0.8, unet=0.8, blocks=(), steps=())
        """
        name = text.strip()
        read = parse_prompt(f"<lora:{name}>", steps=max(1, steps))
        form = "NAME:WEIGHT or NAME:TE:UNET, such as pencil:0.8"
        if len(read.loras) != 1 or read.text.strip():
            raise ConfigError(f"lora {text!r} is not of the form {form}")
        if read.warnings:
            raise ConfigError(f"lora {text!r} is not of the form {form}: {read.warnings[0]}")
        return cls.of(read.loras[0])

    @classmethod
    def of(cls, tag: LoraTag) -> AdapterUse:
        """What a tag in a prompt asks for."""
        return cls(tag.name, tag.te, tag.unet, tuple(tag.blocks.items()), tag.steps)

    @property
    def as_tag(self) -> LoraTag:
        """As if it had been asked for in a prompt."""
        return LoraTag(self.name, self.te, self.unet, dict(self.blocks), self.steps)

    def tag_text(self, name: str) -> str:
        """The tag that asks for it under the name by which other programs know its file: "<lora:pencil:0.8>"."""
        weights = f"{self.te:.12g}" if self.te == self.unet else f"{self.te:.12g}:{self.unet:.12g}"
        blocks = ",".join(f"{block}*{factor:.12g}" for block, factor in self.blocks)
        steps = ",".join(f"{end}*{factor:.12g}" for end, factor in self.steps)
        rest = (f":blocks={blocks}" if blocks else "") + (f":steps={steps}" if steps else "")
        return f"<lora:{name}:{weights}{rest}>"


@dataclass(frozen=True)
class Recipe:
    """Everything that a picture is made of. `Painter.recipe` makes one with a base's own defaults."""

    prompt: str = ""
    negative: str = ""
    adapters: tuple[AdapterUse, ...] = ()
    """Beside those that the prompt names in tags; weights of one that both name add up."""
    sampler: str = DEFAULT_SAMPLER
    steps: int = 20
    guidance: float = 7.0
    width: int = 512
    height: int = 512
    """Pixels."""
    seed: int = 0
    clip_skip: int = 1
    """Which layer of the text encoder is used, counted from the last, which is 1."""
    strength: float | None = None
    """How much of `image` is painted anew, above 0 to 1; None without a picture to start from."""
    image: str | None = None
    """Path of the picture to start from."""
    base: str = "scenes"
    eta: float | None = None
    """Noise that DDIM adds at every step, 0 to 1; None is 0."""
    guidance_rescale: float = 0.0
    """How far a guided prediction is brought back to the spread of the unguided one, 0 to 1 (arXiv 2305.08891)."""
    rescale_mean: bool = True
    """Whether the mean of an encoded prompt is restored after its weights were applied, as the web UI does."""
    embeddings: str | None = None
    """Folder of the textual-inversion embeddings."""

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON data."""
        return asdict(self) | {"adapters": [_use_json(use) for use in self.adapters]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_json`. Raises DataError for what is not a recipe's."""
        return cls(**_fields_of(data))


def _use_json(use: AdapterUse) -> dict[str, Any]:
    found: dict[str, Any] = {"name": use.name, "te": use.te, "unet": use.unet}
    if use.blocks:
        found["blocks"] = dict(use.blocks)
    if use.steps:
        found["steps"] = [list(stage) for stage in use.steps]
    return found


def _use_of(data: Any) -> AdapterUse:
    blocks = tuple((str(block), float(factor)) for block, factor in data.get("blocks", {}).items())
    steps = tuple((int(end), float(factor)) for end, factor in data.get("steps", []))
    return AdapterUse(str(data["name"]), float(data["te"]), float(data["unet"]), blocks, steps)


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str | None": (str, type(None)),
    "float | None": (int, float, type(None)),
}


def _fields_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a recipe from JSON data. Raises DataError."""
    kinds = {entry.name: str(entry.type) for entry in fields(Recipe)}
    found: dict[str, Any] = {}
    value: Any
    for name, value in data.items():
        if name not in kinds:
            raise DataError(f"a recipe has no field {name!r}{suggest(str(name), kinds)}")
        if name == "adapters":
            found[name] = _uses_of(value)
        elif isinstance(value, _KINDS[kinds[name]]) and (kinds[name] == "bool" or not isinstance(value, bool)):
            found[name] = float(value) if "float" in kinds[name] and isinstance(value, int) else value
        else:
            raise DataError(f"the recipe's {name} is {value!r}: {kinds[name]} is expected")
    return found


def _uses_of(value: Any) -> tuple[AdapterUse, ...]:
    try:
        return tuple(_use_of(entry) for entry in value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"the recipe's adapters cannot be read: {value!r}") from error


# -- the text ---------------------------------------------------------------------------------------


def write_parameters(recipe: Recipe, facts: Mapping[str, str] | None = None) -> str:
    """The text of the PNG chunk `parameters`.

    `facts` are fields of the web UI that only the painter knows: "Model", "Model hash", "Lora hashes", "Version".
    """
    head = _shown(recipe.prompt + _tags(recipe.adapters))
    if recipe.negative:
        head += f"\n{NEGATIVE} {_shown(recipe.negative)}"
    known = facts or {}
    sampler = SAMPLERS.get(recipe.sampler)
    listed: dict[str, Any] = {
        "Steps": recipe.steps,
        "Sampler": recipe.sampler if sampler is None else sampler.method,
        "Schedule type": sampler.schedule or None if sampler is not None else None,
        "CFG scale": recipe.guidance,
        "Seed": recipe.seed,
        "Size": f"{recipe.width}x{recipe.height}",
        "Model hash": known.get("Model hash"),
        "Model": known.get("Model") or Path(recipe.base).stem,
        "Denoising strength": recipe.strength,
        "Clip skip": recipe.clip_skip if recipe.clip_skip > 1 else None,
        "Eta": recipe.eta,
        "Lora hashes": known.get("Lora hashes"),
        "TI hashes": known.get("TI hashes"),
        "Version": known.get("Version"),
    }
    line = ", ".join(f"{name}: {_quoted(value)}" for name, value in listed.items() if value is not None)
    text = f"{head}\n{line}".lstrip("\n")
    return f"{text}, {OURS}: {json.dumps(_rest(recipe, text))}"


def _tags(adapters: tuple[AdapterUse, ...]) -> str:
    return "".join(f" {use.tag_text(_file_name(use.name))}" for use in adapters)


def _file_name(name: str) -> str:
    leaf = re.split(r"[/\\]", name.rstrip("/\\"))[-1].removesuffix(".safetensors")
    return re.sub(r"[:<>\s]", "_", leaf) or "adapter"


def _shown(text: str) -> str:
    """Without what a text chunk cannot hold."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def _quoted(value: Any) -> str:
    """A field's value, in quotes where it holds what separates fields (the web UI's `quote`)."""
    text = _shown(f"{value:.12g}" if isinstance(value, float) else str(value))
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ",\n:") else text


def _rest(recipe: Recipe, text: str) -> str:
    """What the text does not give back, as JSON: read last, it makes the recipe whole."""
    exact = recipe.to_json()
    adapters = {"adapters": exact["adapters"]} if recipe.adapters else {}
    told = _told(text, adapters).to_json()
    rest = adapters | {name: value for name, value in exact.items() if told[name] != value}
    return json.dumps(rest, separators=(",", ":"))


def read_parameters(text: str) -> Recipe:
    """The recipe in such a text, ours or the web UI's. Raises DataError where there is none in it.

    What the text does not say has the value that the web UI would take for it; a sampler that is unknown here is kept
    by its name.
    """
    _, _, listed = _split(text)
    if not listed:
        raise DataError(
            "the text holds no recipe: its last line must list at least three settings, such as "
            "'Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512'"
        )
    try:
        rest = json.loads(listed[OURS]) if OURS in listed else {}
    except ValueError:
        rest = None
    if not isinstance(rest, dict):
        raise DataError(f"the recipe's field {OURS!r} is damaged: {listed[OURS][:60]!r} is no JSON object")
    return _told(text, rest)


def read_picture(path: str | Path) -> Recipe:
    """The recipe that a picture file carries. Raises DataError where it is damaged, no picture, or carries none."""
    text = read_text(Path(path))
    try:
        return read_parameters(text)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _told(text: str, rest: Mapping[str, Any]) -> Recipe:
    """The recipe of the shown text, with the fields of `rest` in the place of those that it shows otherwise."""
    prompt, negative, listed = _split(text)
    own = _fields_of(rest)
    tags = _shown(_tags(own.get("adapters", ())))
    prompt = prompt.removesuffix(tags.strip()).rstrip(" ") if tags else prompt
    size = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", listed.get("Size", ""))
    recipe = Recipe(prompt=prompt, negative=negative, base=listed.get("Model", Recipe.base))
    recipe = replace(
        recipe,
        sampler=_sampler(listed),
        steps=_number(listed, "Steps", int, recipe.steps),
        guidance=_number(listed, "CFG scale", float, recipe.guidance),
        seed=_number(listed, "Seed", int, recipe.seed),
        width=int(size[1]) if size else recipe.width,
        height=int(size[2]) if size else recipe.height,
        clip_skip=_number(listed, "Clip skip", int, recipe.clip_skip),
        strength=_number(listed, "Denoising strength", float, None),
        eta=_number(listed, "Eta", float, None),
    )
    return replace(recipe, **own)


def _sampler(listed: Mapping[str, str]) -> str:
    return sampler_name(listed.get("Sampler", "Euler"), listed.get("Schedule type", ""))


def _number(listed: Mapping[str, str], name: str, kind: Any, default: Any) -> Any:
    if name not in listed:
        return default
    try:
        return kind(listed[name][:40])
    except ValueError:
        raise DataError(f"the recipe's {name} is {listed[name][:40]!r}: a number is expected") from None


def _split(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and the fields of the last line, as the web UI takes such a text apart."""
    *lines, last = text.strip().split("\n")
    found = _FIELD.findall(last)
    if len(found) < _LEAST_FIELDS:
        lines, found = [*lines, last], []
    texts: tuple[list[str], list[str]] = ([], [])
    negative = False
    for line in map(str.strip, lines):
        if line.startswith(NEGATIVE):
            negative, line = True, line[len(NEGATIVE) :].strip()
        texts[negative].append(line)
    return "\n".join(texts[0]), "\n".join(texts[1]), {name: _unquoted(value) for name, value in found}


def _unquoted(value: str) -> str:
    if not (len(value) > 1 and value[0] == value[-1] == '"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
