"""What text-to-image takes beside the settings of every task."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from loraloom.tasks.base import TaskOptions

_Side = Annotated[int, Field(ge=16, le=4096)]


class TextToImageOptions(TaskOptions):
    """Settings of text-to-image."""

    resolution: _Side | tuple[_Side, _Side] | None = Field(
        default=None,
        description="Pixels of a side of the training pictures, or [height, width]. null: as the base was trained.",
    )
    buckets: bool = Field(
        default=True,
        description="Keep the shape of pictures: each goes to the size of like area and nearest aspect. Otherwise all "
        "are cut to one size.",
    )
    flip: bool = Field(default=False, description="Mirror half of the training pictures left to right.")
    convolutions: bool = Field(
        default=False,
        description="Adapt the convolutions of the U-Net too, where adapter.targets names nothing else.",
    )
    train_text_encoder: bool = Field(
        default=False, description="Train the CLIP text encoders too; their output is then computed at every step."
    )
    text_encoder_rate: float = Field(
        default=0.2, gt=0, le=10, description="Rate of the text encoders over that of the denoiser."
    )
    instance_prompt: str | None = Field(
        default=None,
        description="DreamBooth: the caption of every picture, a rare word and the kind of thing, e.g. 'a photo of sks "
        "dog'. null: captions are read.",
    )
    class_prompt: str | None = Field(
        default=None,
        description="DreamBooth: the kind of thing alone, e.g. 'a photo of a dog'; the base's own pictures of it train "
        "beside the subject's, so that it is not forgotten. null: without.",
    )
    class_pictures: int = Field(default=100, ge=1, description="How many pictures of the class.")
    class_folder: str | None = Field(
        default=None, description="Folder of pictures of the class, instead of those that the base makes."
    )
    prior_weight: float = Field(default=1.0, gt=0, description="What the class's pictures count beside the subject's.")
    caption_prefix: str = Field(default="", description="Words put before every caption that is read.")
    caption_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the training captions left empty, which guidance is made of."
    )
    caption_orders: int = Field(
        default=1, ge=1, le=64, description="Orders of a caption's comma-separated tags that training meets by chance."
    )
    noise_offset: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Strength of noise that is alike all over a channel, so that dark and light pictures are learnt; "
        "0.05 is usual.",
    )
    min_snr: float | None = Field(
        default=None,
        gt=0,
        description="Gamma of min-SNR weighting (2303.09556), 5 in the paper: nearly clean pictures count less. null: "
        "all times count alike.",
    )
    prediction: Literal["auto", "epsilon", "v", "flow"] = Field(
        default="auto",
        description="What the denoiser says: noise, velocity or flow. 'auto': as the base's scheduler says.",
    )
    sample_latents: bool = Field(
        default=True, description="Draw latents from what the autoencoder allows; otherwise its mean is taken."
    )
    validation_times: int = Field(
        default=4,
        ge=1,
        le=64,
        description="At how many fixed times of the noise schedule each held-out picture is scored.",
    )
    sample_prompts: list[str] = Field(
        default_factory=list,
        description="Prompts whose pictures are made at the beginning and at each evaluation, into OUT/samples.",
    )
    sample_seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of these pictures.")
    sample_steps: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Steps of a picture, in training and answers. null: the base's own, or 20.",
    )
    guidance: float | None = Field(
        default=None, ge=0, le=50, description="Guidance scale of pictures. null: the base's own, or 5."
    )
    negative_prompt: str = Field(default="", description="What those pictures are steered away from.")
    train_embedding: str | None = Field(
        default=None,
        description="Textual inversion: a new word that captions or instance_prompt hold, e.g. '<mine>', whose vectors "
        "are learnt.",
    )
    embedding_init: str = Field(default="object", description="The word whose vectors the new one begins with.")
    embedding_vectors: int = Field(default=1, ge=1, le=64, description="How many vectors the new word has.")
    embedding_only: bool = Field(
        default=True, description="Learn the new word alone; otherwise an adapter is trained with it."
    )
    also: list[Literal["kohya"]] = Field(
        default_factory=list,
        description="Formats to write beside PEFT's and diffusers': 'kohya' (for the web UI and ComfyUI).",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Compute activations of the denoiser twice instead of keeping them: less memory, more time.",
    )
    cache: str | None = Field(
        default=None,
        description="Folder that keeps latents, text embeddings and class pictures between runs. null: "
        "loraloom/diffusion in the user's cache folder.",
    )
    cache_gib: float = Field(
        default=2.0, ge=0, description="Memory for them, in GiB; those beyond are read from the folder at every use."
    )

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) as given, None when left to the base."""
        if self.resolution is None or isinstance(self.resolution, int):
            return None if self.resolution is None else (self.resolution, self.resolution)
        return self.resolution[1], self.resolution[0]

    @field_validator("sample_prompts", mode="before")
    @classmethod
    def _one_prompt(cls, value: object) -> object:
        """One prompt may stand without its list."""
        return [value] if isinstance(value, str) else value

    @field_validator("also", mode="before")
    @classmethod
    def _comma_separated(cls, value: object) -> object:
        """Names may stand in one text, as on the command line."""
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    def faults(self) -> list[str]:
        """One sentence for each setting that does not go with another."""
        found = []
        for name in ("instance_prompt", "class_prompt", "train_embedding"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                found.append(f"'{name}' is empty; leave it out, or give words")
        if self.class_folder is not None and self.class_prompt is None:
            found.append("'class_folder' needs 'class_prompt', the caption of its pictures")
        word = self.train_embedding
        if word and self.instance_prompt is not None and word not in self.instance_prompt:
            found.append(f"'instance_prompt' does not hold the new word {word!r}")
        return found
