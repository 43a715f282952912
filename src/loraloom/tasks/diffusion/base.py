"""A text-to-image base as its adapters, prompts and training see it: named parts over one diffusers pipeline.

diffusion = load_diffusion("scenes")            # or a diffusers folder, a .safetensors checkpoint, a Hub name
adapters = attach(diffusion.parts, targets=["to_q", "to_v"])      # paths are diffusers' own: unet.down_blocks.0.…
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import nn

from loraloom.errors import BaseModelError, MissingExtraError
from loraloom.tasks.diffusion.places import BasePlace, find_base, read_index
from loraloom.tasks.diffusion.single_file import load_single_file
from loraloom.tasks.models.bases import fingerprint
from loraloom.tasks.models.loading import silent

Kind = Literal["sd1", "sd2", "sdxl", "sd3", "flux"]
KINDS: tuple[Kind, ...] = get_args(Kind)

PIPELINES = {
    "StableDiffusionPipeline": "sd1",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
}
"""diffusers' pipeline class → family; SD 2.x shares the class of SD 1.x and is told by its U-Net."""

DENOISERS = ("unet", "transformer")
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass(frozen=True)
class Defaults:
    """What a base is best sampled with; None where it does not say (its folder's defaults.json)."""

    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    example: str | None = None
    """A prompt to start with."""


@dataclass(frozen=True, eq=False)
class Diffusion:
    """One loaded base. Its parts are frozen, in evaluation mode, and shared by everyone who holds it."""

    kind: Kind
    pipeline: Any
    """diffusers' pipeline: vae, tokenizers, scheduler and the parts below."""
    name: str
    """As the user gave it."""
    source: str = "made"
    """"package", "folder", "file", "cache" or "hub"; "made" for a pipeline made in the program."""
    weights: tuple[Path, ...] = ()
    """The files that its weights came from."""
    folder: Path | None = None
    """Where its configuration lies, None for a single file."""
    parts: nn.ModuleDict = field(init=False)
    """"unet" or "transformer", "text_encoder", "text_encoder_2", …: adapters are attached to this container, so
    that their paths are diffusers' own ("unet.down_blocks.0.…", "text_encoder.text_model.…")."""

    def __post_init__(self) -> None:
        names = [name for name in (*DENOISERS, *ENCODERS) if getattr(self.pipeline, name, None) is not None]
        parts = nn.ModuleDict({name: getattr(self.pipeline, name) for name in names})
        for module in (parts, self.vae):
            module.eval().requires_grad_(False)
        object.__setattr__(self, "parts", parts)

    @classmethod
    def of(cls, pipeline: Any, *, name: str = "made here") -> Diffusion:
        """A pipeline that was made in the program. Raises BaseModelError for one of an unknown family."""
        return cls(kind_of(pipeline), pipeline, name)

    @cached_property
    def fingerprint(self) -> str:
        """sha256, hexadecimal, of the weight files in the order of their names; "" for one made in the program.

        Of a single file it is that file's own sha256, whose first ten digits the web UI shows as the model's hash.
        """
        return fingerprint(list(self.weights)) if self.weights else ""

    @property
    def denoiser(self) -> nn.Module:
        """The U-Net, or the transformer."""
        return self.parts[self.denoiser_name]

    @property
    def denoiser_name(self) -> str:
        """ "unet" or "transformer"."""
        return next(name for name in DENOISERS if name in self.parts)

    @property
    def text_encoders(self) -> dict[str, Any]:
        """By part name, in order."""
        return {name: self.parts[name] for name in ENCODERS if name in self.parts}

    @property
    def tokenizers(self) -> dict[str, Any]:
        """By the name of the text encoder that each is for."""
        return {name: getattr(self.pipeline, name.replace("text_encoder", "tokenizer")) for name in self.text_encoders}

    @property
    def vae(self) -> Any:
        """The autoencoder between pictures and latents."""
        return self.pipeline.vae

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """The settings of the noise schedule that the base was trained with."""
        return dict(self.pipeline.scheduler.config)

    @property
    def prediction_type(self) -> str:
        """ "epsilon", "v_prediction", "sample", or "flow" for SD 3 and Flux."""
        if self.kind in ("sd3", "flux"):
            return "flow"
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @property
    def latent_factor(self) -> int:
        """Pixels per latent along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def size_step(self) -> int:
        """What a picture's sides must be multiples of: the latent factor, times the patch of a transformer."""
        return self.latent_factor * (2 if self.kind in ("sd3", "flux") else 1)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.vae.config.latent_channels)

    @property
    def default_size(self) -> tuple[int, int]:
        """Width and height in pixels that the base was trained for."""
        if self.defaults.width and self.defaults.height:
            return self.defaults.width, self.defaults.height
        sample = getattr(cast(Any, self.denoiser).config, "sample_size", None) or 128
        height, width = sample if isinstance(sample, list | tuple) else (sample, sample)
        return width * self.latent_factor, height * self.latent_factor

    @cached_property
    def defaults(self) -> Defaults:
        """Sampler, steps, guidance and size that the base's maker recommends."""
        file = None if self.folder is None else self.folder / "defaults.json"
        if file is None or not file.is_file():
            return Defaults()
        try:
            found = json.loads(file.read_text("utf-8"))
            return Defaults(**{key: found[key] for key in Defaults.__dataclass_fields__ if key in found})
        except (ValueError, TypeError) as error:
            raise BaseModelError(f"base model: {file} cannot be read ({error})") from error

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the denoiser's weights are in."""
        return next(self.denoiser.parameters()).dtype


def load_diffusion(base: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Diffusion:
    """Load a base: a diffusers folder, one .safetensors checkpoint, a Hub name, or a short name of the package.

    SD 1.x, SD 2.x and SDXL are understood in full; SD 3 and Flux as far as diffusers runs them. No safety checker is
    loaded. Raises BaseModelError where it is not there, damaged, a pickle or another kind of model;
    MissingExtraError without diffusers.
    """
    place = find_base(base)
    with silent(), _quiet_diffusers():
        pipeline = load_single_file(place.path, dtype) if place.source == "file" else _load_folder(place, dtype)
        pipeline = pipeline.to(device)
    folder = None if place.source == "file" else place.path
    return Diffusion(kind_of(pipeline), pipeline, place.name, place.source, place.weights, folder)


def kind_of(pipeline: Any) -> Kind:
    """The family of a pipeline. Raises BaseModelError for one that makes no pictures from text."""
    kind = PIPELINES.get(type(pipeline).__name__)
    if kind is None:
        raise BaseModelError(_unknown_class(type(pipeline).__name__))
    # SD 2.x brought linear projections around its attention; SD 1.x has 1×1 convolutions there.
    if kind == "sd1" and pipeline.unet.config.use_linear_projection:
        return "sd2"
    return cast(Kind, kind)


def _load_folder(place: BasePlace, dtype: torch.dtype) -> Any:
    name = read_index(place.path)["_class_name"]
    if name not in PIPELINES:
        raise BaseModelError(_unknown_class(name))
    settings: dict[str, Any] = {"dtype": dtype, "variant": place.variant, "use_safetensors": True}
    if name == "StableDiffusionPipeline":
        settings |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    try:
        return getattr(_diffusers(), name).from_pretrained(str(place.path), local_files_only=True, **settings)
    except Exception as error:  # anything from KeyError to RuntimeError, by what is amiss in the files
        reason = " ".join(str(error).split())[:300]
        raise BaseModelError(f"base model {place.name!r} cannot be loaded from {place.path} ({reason})") from error


def _unknown_class(name: str) -> str:
    return f"base model: its pipeline is a {name}; one of {', '.join(PIPELINES)} is expected"


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtraError('pictures are made by diffusers; pip install "loraloom[images]"') from error
    return diffusers


class _quiet_diffusers:
    """Keep diffusers' bars and remarks to itself while a pipeline loads."""

    def __enter__(self) -> None:
        self._logging = _diffusers().utils.logging
        self._level = self._logging.get_verbosity()
        self._logging.set_verbosity_error()
        self._logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        self._logging.set_verbosity(self._level)
        self._logging.enable_progress_bar()
