"""The settings of a run: what a configuration file may hold, checked before anything is done.

Every field says what it means and in which unit; the command line's help, the reference YAML and the
documentation are made from these descriptions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from loraloom.data.config import DataConfig
from loraloom.training import settings_file
from loraloom.training.settings_file import read_settings

LORA_LEARNING_RATE = 1e-3
"""Default rate of the factors: ten to fifteen times that of full fine-tuning (docs/decisions)."""
FULL_LEARNING_RATE = 5e-5

HARMLESS_KEYS = frozenset({"out", "keep_checkpoints", "checkpoint_every", "tensorboard", "log_every"})
"""Settings that leave the trained numbers alone, so that a resumed run may change them."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AdapterConfig(_Settings):
    """Which layers get an adapter, and of what kind. Not used by method 'full'."""

    rank: int = Field(default=8, ge=1, description="Rank R of the update: columns of B and rows of A.")
    alpha: float | None = Field(
        default=None, gt=0, description="Numerator of the scale alpha / rank. null: twice the rank."
    )
    targets: str | list[str] | None = Field(
        default=None,
        description="Modules to adapt: 'all-linear', or names, globs and 're:' expressions (one or a list). null: "
        "'all-linear', and of convolutional models the convolutions too.",
    )
    exclude: list[str] = Field(
        default_factory=list, description="Names, globs or 're:' expressions of modules that stay as they are."
    )
    layers: int | str | list[int] | None = Field(
        default=None,
        description="Block numbers to adapt: 3, [0, 1] or '4-7'; negative ones count from the end. null: all.",
    )
    rank_pattern: dict[str, int] = Field(
        default_factory=dict, description="Rank by pattern of module paths; the first that matches wins."
    )
    alpha_pattern: dict[str, float] = Field(
        default_factory=dict, description="Alpha by pattern of module paths; the first that matches wins."
    )
    scaling: Literal["alpha/r", "rslora"] = Field(
        default="alpha/r", description="Scale of the update: 'alpha/r', or 'rslora' for alpha / sqrt(rank)."
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Share of an adapter's inputs that is zeroed in training, 0 to below 1."
    )
    init: str = Field(default="kaiming", description="How the factors start: 'kaiming' (A random, B zero).")
    bias: Literal["none", "adapted", "all"] = Field(
        default="none", description="Biases that train: none, those of the adapted layers, or all of the model."
    )
    parameters: list[str] = Field(
        default_factory=list, description="Raw parameters to adapt, by path or glob (e.g. expert weights)."
    )
    heads: list[str] = Field(
        default_factory=list,
        description="Modules to train whole beside the task's own new head, by name or glob.",
    )
    tied: Literal["refuse", "share", "separate"] = Field(
        default="refuse", description="What to do with a target whose weight is used elsewhere too."
    )

    def spec_settings(
        self, *, seed: int, heads: tuple[str, ...], targets: str | tuple[str, ...] = "all-linear"
    ) -> dict[str, Any]:
        """These settings as `AdapterSpec.of` takes them, with the run's seed and the task's own heads and targets."""
        own = [head for head in self.heads if head not in heads]
        chosen = targets if self.targets is None else self.targets
        return {**self.model_dump(), "targets": chosen, "seed": seed, "heads": (*heads, *own)}


class TrainConfig(_Settings):
    """One training run."""

    task: str = Field(default="text-classification", description="What to train for, e.g. 'text-classification'.")
    base: str | None = Field(
        default=None, description="Base model: a folder, or a name on the Hugging Face Hub (owner/name)."
    )
    base_config: str | None = Field(
        default=None,
        description="Instead of 'base', with method 'full': a transformers config.json, or the folder that holds it. "
        "The model begins with random weights.",
    )
    quantize: Literal["int8", "int4", "nf4"] | None = Field(
        default=None,
        description="Hold the frozen base's linear layers in fewer bits; 'lora' only. null: as 'precision' says.",
    )
    data: DataConfig = Field(description="Which data to read, and how.")
    out: str = Field(description="Folder for the results; it must not exist yet, or be empty.")
    max_length: int | None = Field(
        default=None,
        ge=1,
        description="Tokens after which a text is cut, special ones included. null: what model and tokenizer take.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="The task's own settings by name, e.g. {image_size: 96}; docs/tasks.md lists them.",
    )
    method: Literal["lora", "full"] = Field(
        default="lora", description="'lora' trains an adapter over the frozen base, 'full' every weight of the base."
    )
    adapter: AdapterConfig = Field(
        default_factory=AdapterConfig, description="The adapter's settings; method 'full' does not use them."
    )
    epochs: int = Field(default=3, ge=1, description="Passes over the training examples.")
    max_steps: int | None = Field(
        default=None, ge=1, description="Stop after this many steps even if epochs remain. null: no limit."
    )
    batch_size: int = Field(
        default=32, ge=1, description="Examples per step, over all processes and micro-batches together."
    )
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Examples per forward pass of one process; smaller needs less memory. null: all of its share.",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description=f"Peak step size of AdamW. null: {LORA_LEARNING_RATE:g} for 'lora', "
        f"{FULL_LEARNING_RATE:g} for 'full'.",
    )
    lr_ratio: float = Field(
        default=1.0, gt=0, le=1000, description="Rate of B over that of A (LoRA+ takes 10 to 16); 'lora' only."
    )
    head_learning_rate: float | None = Field(
        default=None, gt=0, le=10, description="Peak rate of the head. null: the same as learning_rate."
    )
    weight_decay: float = Field(
        default=0.0, ge=0, le=1, description="Decoupled weight decay of AdamW, per unit of learning rate."
    )
    warmup: float = Field(
        default=0.06, ge=0, le=1, description="Share of the steps over which the rate rises from 0 to its peak."
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="How the rate goes from its peak after the warm-up: to 0, or constant."
    )
    max_grad_norm: float | None = Field(
        default=1.0, gt=0, description="Gradients of a larger Euclidean norm are scaled down to it. null: never."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="Number format of the frozen base; adapters and heads stay in fp32. 'full' keeps fp32 weights "
        "and computes in bf16 if asked to. 'auto': bf16 for 'lora' where the processor has bf16 arithmetic.",
    )
    compare_precision: bool = Field(
        default=True, description="After training over a bf16 base, score the adapter over the fp32 base as well."
    )
    device: Literal["auto", "cpu"] = Field(
        default="auto", description="Where to compute: the accelerator if there is one, or always the CPU."
    )
    evaluate_every: int | None = Field(
        default=None, ge=1, description="Steps between two evaluations. null: once per epoch."
    )
    patience: int | None = Field(
        default=None, ge=1, description="Stop after this many evaluations without a better score. null: never."
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of the split, the new weights, order and dropout.")
    base_dropout: bool = Field(
        default=False, description="Let the frozen base use its own dropout while the adapter trains."
    )
    compile: bool = Field(default=False, description="Compile the model with torch.compile before training.")
    checkpoint_every: int | None = Field(
        default=None,
        ge=1,
        description="Steps between two checkpoints. null: at each evaluation and every ten minutes.",
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="Checkpoints to keep while the run lasts.")
    log_every: int = Field(
        default=10,
        ge=1,
        description="Steps between two readings of the loss from an accelerator; on a CPU every step is read.",
    )
    tensorboard: bool = Field(default=False, description="Also write the log for TensorBoard, to OUT/tensorboard.")

    @property
    def rate(self) -> float:
        """The peak learning rate that is meant, whether it was given or not."""
        if self.learning_rate is not None:
            return self.learning_rate
        return LORA_LEARNING_RATE if self.method == "lora" else FULL_LEARNING_RATE

    @property
    def head_rate(self) -> float:
        """The peak learning rate of the head."""
        return self.head_learning_rate if self.head_learning_rate is not None else self.rate

    @property
    def base_name(self) -> str:
        """The base model's name or folder; of a model that begins with random weights, its configuration."""
        return str(self.base if self.base is not None else self.base_config)

    @property
    def task_options(self) -> dict[str, Any]:
        """What the task is made with, beside its name: the options that were given."""
        return {**self.options} if self.max_length is None else {**self.options, "max_length": self.max_length}

    @model_validator(mode="after")
    def _one_base(self) -> TrainConfig:
        """A base model or a configuration, and an adapter only over what was trained before."""
        if self.base is None and self.base_config is None:
            raise ValueError("'base' is missing; give a base model, or a configuration as 'base_config'")
        if self.base is not None and self.base_config is not None:
            raise ValueError("'base' and 'base_config' are both given; only one of them can be meant")
        if self.base_config is not None and self.method == "lora":
            raise ValueError(
                "base_config: a model with random weights is trained with method 'full'; an adapter then takes its "
                "output folder as 'base'"
            )
        return self

    def settings(self) -> dict[str, Any]:
        """Every setting as JSON data, as run.json keeps it."""
        return self.model_dump(mode="json")

    def unused(self) -> list[str]:
        """One sentence for each setting that was given and that the method does not use."""
        given = self.model_fields_set & {"adapter", "lr_ratio", "base_dropout", "compare_precision", "quantize"}
        if self.method == "lora":
            return []
        return [f"method 'full' does not use the setting '{key}'" for key in sorted(given)]


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two nested settings, but for those of HARMLESS_KEYS."""
    changed: list[str] = []
    for key in sorted({*before, *now}):
        path = prefix + key
        old, new = before.get(key), now.get(key)
        if path in HARMLESS_KEYS or old == new:
            continue
        nested = isinstance(old, Mapping) and isinstance(new, Mapping)
        changed += changed_keys(old, new, f"{path}.") if nested else [path]  # type: ignore[arg-type]
    return changed


def load_config(path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """A checked configuration from a YAML file (or none) and values by dotted key, which win over the file.

    Raises ConfigError with the file, the key and the nearest right key for whatever is wrong with it.
    """
    return read_settings(TrainConfig, path, overrides or {})


def reference_yaml() -> str:
    """A configuration file with every setting, what it means, and its default; the docs are made from it."""
    return settings_file.reference_yaml(TrainConfig)
