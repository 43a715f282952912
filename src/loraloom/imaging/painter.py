"""The painter: one base, its adapters and embeddings, and pictures from recipes.

    painter = Painter("scenes")
    picture, = painter.paint(painter.recipe(prompt="a red house by the sea <lora:pencil:0.8>", seed=7))
    picture.save("house.png")                 # with its recipe in the chunk `parameters`

The same recipe gives the same picture, to the byte, on the same machine; picture i of a batch is the one that its own
seed, seed + i, makes alone. Files are read once: turning a weight, a seed or a word loads nothing.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

import loraloom
from loraloom.errors import ConfigError
from loraloom.imaging.conditioning import Conditioner, EmbeddingFolder, Schedule
from loraloom.imaging.flow import SAMPLER as FLOW_SAMPLER
from loraloom.imaging.flow import FlowPainting
from loraloom.imaging.mixing import Dose, Mixer
from loraloom.imaging.pictures import encode, fitted
from loraloom.imaging.pngfile import read_image, write_png
from loraloom.imaging.prompt import MOST_STEPS, parse_prompt
from loraloom.imaging.recipe import Recipe, write_parameters
from loraloom.imaging.samplers import SAMPLERS, find_sampler
from loraloom.imaging.sampling import Denoising, Stopped
from loraloom.imaging.shelf import AdapterShelf
from loraloom.tasks.diffusion import Diffusion, load_diffusion

MOST_SIDE = 8192
"""Pixels along a side."""
LAST_SEED = 2**32 - 1
"""Of those that are drawn; one that is given may be larger."""

Progress = Callable[[int, int], None]
"""Told after each step: how many are done, and of how many, over all pictures of the call."""


class Painting(Protocol):
    """One recipe, ready to be painted with any seed."""

    @property
    def length(self) -> int:
        """Steps of one picture."""
        ...

    def picture(
        self,
        seed: int,
        size: tuple[int, int],
        *,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Image.Image:
        """One picture. Raises Stopped where `stop` says so."""
        ...


@dataclass(frozen=True)
class Picture:
    """One picture, and what it was made of."""

    image: Image.Image
    recipe: Recipe
    """Its own: with its own seed."""
    parameters: str
    """The text of the PNG chunk."""
    notes: list[str] = field(default_factory=list)
    """What was odd in prompt, adapters and embeddings, one sentence each."""

    @property
    def seed(self) -> int:
        """The seed of its noise."""
        return self.recipe.seed

    def save(self, path: str | Path) -> None:
        """Write a PNG with the recipe in it, whole or not at all. Raises OutputError."""
        write_png(Path(path), self.image, self.parameters)


class Painter:
    """Makes pictures with one base. Calls from several threads take turns.

    `base` is what `load_diffusion` takes, or a loaded base. `device` "auto" takes a GPU where there is one; `dtype`
    "auto" is float16 there (bfloat16 for SD 3 and Flux) and float32 on a CPU.
    """

    def __init__(
        self,
        base: str | Diffusion = "scenes",
        *,
        adapters: AdapterShelf | None = None,
        embeddings: str | Path | None = None,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        if isinstance(base, str):
            place = _device(device)
            base = load_diffusion(base, dtype=_dtype(dtype, place), device=place)
            if dtype == "auto" and place.type == "cuda" and base.prediction_type == "flow":
                base.pipeline.to(torch.bfloat16)
        self.diffusion = base
        self.shelf = adapters or AdapterShelf()
        self.embeddings = None if embeddings is None else str(embeddings)
        self.mixer = Mixer(base)
        self._conditioner = Conditioner(base)
        self._folders: dict[str, EmbeddingFolder] = {}
        self._hashes: dict[Any, str] = {}
        self._lock = threading.RLock()

    @property
    def base(self) -> str:
        """The base's name, as it was given."""
        return self.diffusion.name

    @property
    def example(self) -> str:
        """A prompt to start with."""
        return self.diffusion.defaults.example or "a photo of a house by a lake"

    def samplers(self) -> list[str]:
        """The names of the samplers that this base can be used with."""
        return [FLOW_SAMPLER] if self._flows else list(SAMPLERS)

    def recipe(self, **given: Any) -> Recipe:
        """A recipe with what is given, and the base's own defaults for the rest."""
        defaults, (width, height) = self.diffusion.defaults, self.diffusion.default_size
        own = {"sampler": defaults.sampler, "steps": defaults.steps, "guidance": defaults.guidance}
        if self._flows:
            own["sampler"] = FLOW_SAMPLER
        own |= {"width": width, "height": height, "base": self.base, "embeddings": self.embeddings}
        return Recipe(**{**{name: value for name, value in own.items() if value is not None}, **given})

    def token_count(self, text: str) -> tuple[int, int]:
        """Tokens and chunks that a prompt comes to."""
        with self._lock:
            self._conditioner.embeddings = self._embeddings(self.embeddings)
            return self._conditioner.token_count(text)

    def check(self, recipe: Recipe) -> Recipe:
        """The recipe as it will be painted: this base, the sampler's own name, a seed drawn where it is negative.

        Raises ConfigError, with one sentence for what cannot be.
        """
        sampler = self._sampler(recipe.sampler)
        seed = recipe.seed if recipe.seed >= 0 else secrets.randbelow(LAST_SEED + 1)
        recipe = replace(recipe, sampler=sampler, base=self.base, seed=seed)
        if recipe.image is not None and recipe.strength is None:
            recipe = replace(recipe, strength=0.75)
        for fault in filter(None, [*_faults(recipe), self._size_fault(recipe)]):
            raise ConfigError(fault)
        return recipe

    def paint(
        self,
        recipe: Recipe,
        *,
        batch: int = 1,
        progress: Progress | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> list[Picture]:
        """Make `batch` pictures: the first with the recipe's seed (a negative one is drawn), the next with seed + 1, …

        `stop` is asked before every step; what is finished by then is returned. Raises ConfigError for a recipe that
        cannot be, FormatError for an adapter that does not fit, DataError for a picture that cannot be read.
        """
        with self._lock:
            recipe = self.check(recipe)
            if batch < 1:
                raise ConfigError(f"batch is {batch}: at least one picture is to be made")
            work, notes, facts = self._prepared(recipe)
            pictures: list[Picture] = []
            total = batch * work.length
            for number in range(batch):
                done = number * work.length
                told = None if progress is None else (lambda step, done=done: progress(done + step, total))
                own = replace(recipe, seed=recipe.seed + number)
                try:
                    image = work.picture(own.seed, (own.width, own.height), progress=told, stop=stop)
                except Stopped:
                    break
                pictures.append(Picture(image, own, write_parameters(own, facts), notes))
            return pictures

    # -- preparing ----------------------------------------------------------------------------------

    def _prepared(self, recipe: Recipe) -> tuple[Painting, list[str], dict[str, str]]:
        """All that pictures of a recipe have in common."""
        prompt = parse_prompt(recipe.prompt, steps=recipe.steps)
        negative = parse_prompt(recipe.negative, steps=recipe.steps, negative=True)
        doses = [Dose(self.shelf.find(tag.name), tag) for tag in prompt.loras]
        doses += [Dose(self.shelf.find(use.name), use.as_tag) for use in recipe.adapters]
        start = None if recipe.image is None else fitted(read_image(recipe.image), (recipe.width, recipe.height))
        notes = self.mixer.take(doses, recipe.steps)
        self.mixer.turn(1)
        conditioner = self._conditioner
        conditioner.embeddings = self._embeddings(recipe.embeddings or self.embeddings)
        conditioner.clip_skip, conditioner.rescale_mean = recipe.clip_skip, recipe.rescale_mean
        size, version = (recipe.width, recipe.height), self.mixer.text_version
        with torch.no_grad():
            texts = [
                conditioner.conditionings(text, recipe.steps, size=size, negative=text is negative, version=version)
                for text in (prompt, negative)
            ]
        warnings = [*prompt.warnings, *negative.warnings, *texts[0].warnings, *texts[1].warnings]
        unused = [f"<{tag.name}:…> is a tag that has no effect here" for tag in prompt.networks]
        return (
            self._painting(recipe, texts[0], texts[1], start),
            list(dict.fromkeys([*warnings, *unused, *notes])),
            self._facts(doses),
        )

    def _painting(self, recipe: Recipe, positive: Schedule, negative: Schedule, start: Image.Image | None) -> Painting:
        strength = 1.0 if recipe.strength is None else recipe.strength
        if self._flows:
            texts = (positive, negative)
            return FlowPainting(self.diffusion, recipe.steps, *texts, recipe.guidance, start, strength, self.mixer.turn)
        return Denoising(
            self.diffusion,
            find_sampler(recipe.sampler),
            recipe.steps,
            positive,
            negative,
            recipe.guidance,
            rescale=recipe.guidance_rescale,
            eta=recipe.eta,
            start=None if start is None else encode(self.diffusion, start),
            strength=strength,
            turn=self.mixer.turn,
        )

    def _facts(self, doses: Sequence[Dose]) -> dict[str, str]:
        """What a picture's text tells of the files."""
        hashes = {dose.path.name.removesuffix(".safetensors"): self._hash(dose.path) for dose in doses}
        facts = {
            "Model": Path(self.base).name.removesuffix(".safetensors"),
            "Version": f"loraloom {loraloom.__version__}",
        }
        if self.diffusion.fingerprint:
            facts["Model hash"] = self.diffusion.fingerprint[:10]
        if hashes:
            facts["Lora hashes"] = ", ".join(f"{name}: {digest}" for name, digest in hashes.items())
        return facts

    def _hash(self, path: Path) -> str:
        file = path if path.is_file() else path / "adapter_model.safetensors"
        if not file.is_file():
            return ""
        key = (file, file.stat().st_mtime_ns, file.stat().st_size)
        if key not in self._hashes:
            self._hashes[key] = tensors_sha256(file)[:12]
        return self._hashes[key]

    def _embeddings(self, folder: str | None) -> EmbeddingFolder | None:
        if folder is None:
            return None
        if folder not in self._folders:
            self._folders[folder] = EmbeddingFolder(folder)
        return self._folders[folder]

    @property
    def _flows(self) -> bool:
        return self.diffusion.prediction_type == "flow"

    def _sampler(self, name: str) -> str:
        if not self._flows:
            return find_sampler(name).name
        if find_sampler(name).method != FLOW_SAMPLER:
            raise ConfigError(f"sampler {name!r} is not for {self.diffusion.kind} bases; take {FLOW_SAMPLER!r}")
        return FLOW_SAMPLER

    def _size_fault(self, recipe: Recipe) -> str:
        step = self.diffusion.size_step
        for name, side in (("width", recipe.width), ("height", recipe.height)):
            if not step <= side <= MOST_SIDE:
                return f"{name} is {side}: from {step} to {MOST_SIDE} pixels can be painted"
            if side % step:
                below = side // step * step
                return f"{name} is {side}, which is no multiple of {step}; take {below or step} or {below + step}"
        return ""


def _faults(recipe: Recipe) -> list[str]:
    """One sentence for each setting that is out of range."""
    share = recipe.strength
    return [
        "" if 1 <= recipe.steps <= MOST_STEPS else f"steps is {recipe.steps}: from 1 to {MOST_STEPS} can be taken",
        _out_of_range("guidance", recipe.guidance, 0.0, 100.0),
        _out_of_range("guidance_rescale", recipe.guidance_rescale, 0.0, 1.0),
        "" if recipe.eta is None else _out_of_range("eta", recipe.eta, 0.0, 1.0),
        "" if recipe.clip_skip >= 1 else f"clip_skip is {recipe.clip_skip}: it counts from 1, the last layer",
        "" if share is None or 0 < share <= 1 else f"strength is {share:g}: it must be above 0 and at most 1",
        "" if share is None or recipe.image else "strength is given, but no picture to start from",
        *(_weight_fault(use.name, weight) for use in recipe.adapters for weight in (use.te, use.unet)),
    ]


def _weight_fault(name: str, weight: float) -> str:
    return "" if math.isfinite(weight) else f"the weight of lora {name!r} is {weight}: it must be finite"


def _out_of_range(name: str, value: float, least: float, most: float) -> str:
    return "" if least <= value <= most else f"{name} is {value:g}: it must be from {least:g} to {most:g}"


def _device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU where there is one. Raises ConfigError for one that is not here."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next((kind for kind in ("cuda", "mps") if there[kind]), "cpu"))
    if not there.get(name.partition(":")[0], False):
        raise ConfigError(f"device {name!r} is not one of auto, {', '.join(kind for kind in there if there[kind])}")
    return torch.device(name)


_DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "fp16": torch.float16,
    "float16": torch.float16,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
}


def _dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    if isinstance(name, torch.dtype):
        return name
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise ConfigError(f"dtype {name!r} is not one of auto, fp32, fp16 and bf16")
    return _DTYPES[name]


def tensors_sha256(file: Path) -> str:
    """sha256 of a safetensors file without its header, by which the web UI knows an adapter whatever its metadata."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        stream.seek(8 + int.from_bytes(stream.read(8), "little"))
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
