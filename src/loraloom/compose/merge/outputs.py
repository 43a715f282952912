"""Base with adapters attached against the merged checkpoint: both loaded whole, both asked the same question."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loraloom.adapters import adapters_of
from loraloom.compose.checkpoint import Checkpoint, Part
from loraloom.compose.checkpoint.dense import Dense
from loraloom.compose.merge.changes import ChangePlan, Fitted
from loraloom.compose.merge.probe import largest_difference
from loraloom.formats.anyfile import load_any
from loraloom.formats.keys import PARTS
from loraloom.tasks.models.loading import silent

SMALL = 500_000_000
"""Bytes of weights up to which the models are run without being asked."""
_LIMITS = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Share of an output's size by which roundings of the weights may move it, through all layers."""
_TOKENS = 8
_LATENT = 16
_PICTURE = 64


@dataclass(frozen=True)
class OutputCheck:
    """What the two models said."""

    difference: float
    """‖merged − attached‖ / ‖attached‖ over all outputs."""
    effect: float
    """‖attached − base‖ / ‖attached‖: how far the adapters move the outputs."""
    limit: float
    models: tuple[str, ...]
    """Classes of what was run."""

    @property
    def holds(self) -> bool:
        """Whether the merged model says what base and adapters say."""
        return self.difference <= self.limit  # not of NaN

    def to_json(self) -> dict[str, object]:
        """As JSON data."""
        return {
            "difference": self.difference,
            "effect": self.effect,
            "limit": self.limit,
            "models": list(self.models),
            "holds": self.holds,
        }


def may_compare(checkpoint: Checkpoint, dense: Dense) -> bool:
    """Whether the models are small enough to be run without being asked, and of a known kind."""
    return checkpoint.form != "file" and checkpoint.size <= SMALL and not dense.written_out


def compare_outputs(
    checkpoint: Checkpoint, merged: Path, plan: ChangePlan, fitted: Sequence[Fitted]
) -> OutputCheck | str:
    """Run base with adapters, and the merged checkpoint, in float32; or say in a few words why that cannot be done."""
    parts = [part for part in checkpoint.parts if part.library and (part.name in PARTS or not part.name)]
    if not parts:
        return "its class is not known"
    names = {part.name: _class_of(part, plan) for part in parts}
    try:
        with silent(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attached, base = _attached(checkpoint, parts, names, merged, fitted)
            ours = _outputs(_load_all(parts, names, merged, merged))
    except Exception as error:  # libraries that are absent, inputs that a class wants and we do not know
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    if not attached:
        return "it takes inputs of an unknown kind"
    dtypes = {part.tensors.dtype(key) for part in parts for key in part.tensors} & set(_LIMITS)
    limit = max(_LIMITS[dtype] for dtype in dtypes)
    effect = largest_difference(base, attached)
    return OutputCheck(largest_difference(ours, attached), effect, limit, tuple(str(name) for name in names.values()))


def _class_of(part: Part, plan: ChangePlan) -> str | None:
    return part.class_name if part.name else plan.skeleton.class_name or part.class_name


def _attached(
    checkpoint: Checkpoint,
    parts: Sequence[Part],
    names: Mapping[str, str | None],
    merged: Path,
    fitted: Sequence[Fitted],
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of the base with all adapters attached, each by its weight, and of the base alone."""
    model = _load_all(parts, names, checkpoint.path, merged)
    base = _outputs(model)
    weights: dict[str, float] = {}
    heads = {}
    for number, one in enumerate(fitted):
        name = f"adapter_{number}"
        adapters = load_any(model, one.weighted.path, name=name)
        weights[name] = one.weighted.weight
        sites = adapters.plan(name).sites
        factors = {site.path: one.weighted.at(site.path) / (one.weighted.weight or 1.0) for site in sites}
        adapters.set_site_weights(name, factors if one.weighted.blocks else None)
        heads[name] = any(copied.role == "head" for copied in adapters.plan(name).copies)
    owner = adapters_of(model)
    assert owner is not None
    with_head = next((name for name, has in heads.items() if has), None)
    owner.activate(weights, head=with_head)
    found = _outputs(model)
    owner.detach()
    del model
    gc.collect()
    return found, base


def _load_all(parts: Sequence[Part], names: Mapping[str, str | None], root: Path, settings: Path) -> nn.Module:
    """The parts from a checkpoint's folder, in float32; a model that is no pipeline by itself.

    `settings` is the folder whose config.json holds: a new head is made for the merged one's labels.
    """
    if not parts[0].name:
        return _load(parts[0], names[""], root, settings)
    ordered = sorted(parts, key=lambda part: PARTS.index(part.name))
    return nn.ModuleDict({part.name: _load(part, names[part.name], root / part.name, None) for part in ordered})


def _load(part: Part, name: str | None, folder: Path, settings: Path | None) -> nn.Module:
    import transformers

    if part.library == "diffusers":
        import diffusers

        loaded: Any = getattr(diffusers, str(name)).from_pretrained(str(folder), torch_dtype=torch.float32)
        return _evaluating(loaded)
    own = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    config = own if settings is None else transformers.AutoConfig.from_pretrained(settings, local_files_only=True)
    if hasattr(own, "tie_word_embeddings"):  # what the base shares, the merged one may not
        config.tie_word_embeddings = own.tie_word_embeddings
    made: Any = getattr(transformers, str(name))
    model = made.from_pretrained(
        folder, config=config, dtype=torch.float32, local_files_only=True, ignore_mismatched_sizes=True
    )
    return _evaluating(model)


def _evaluating(model: nn.Module) -> nn.Module:
    return model.eval()


@torch.no_grad()
def _outputs(model: nn.Module) -> list[Tensor]:
    """What every part says to its question; nothing of a part whose question is not known."""
    parts = model.values() if isinstance(model, nn.ModuleDict) else [model]
    found: list[Tensor] = []
    for part in parts:
        question = _question(part)
        if question is not None:
            answer = part(**question)
            values = answer.values() if hasattr(answer, "values") else answer
            found += [value.float() for value in values if isinstance(value, Tensor) and value.is_floating_point()]
    return found


def _question(model: Any) -> dict[str, Any] | None:
    """Inputs of the kind that a model takes, always the same."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    if type(model).__name__ == "UNet2DConditionModel":
        return _for_unet(config, generator)
    if not hasattr(model, "main_input_name"):
        return None
    name = model.main_input_name
    if name == "input_ids":
        size = int(getattr(config.get_text_config(), "vocab_size", 2))
        question = {"input_ids": torch.randint(0, size, (2, _TOKENS), generator=generator)}
        if getattr(config, "is_encoder_decoder", False):
            question["decoder_input_ids"] = torch.randint(0, size, (2, _TOKENS), generator=generator)
        return question
    if name == "pixel_values":
        side = getattr(config, "image_size", None) or _PICTURE
        height, width = side if isinstance(side, list | tuple) else (side, side)
        channels = int(getattr(config, "num_channels", 3))
        return {"pixel_values": torch.randn(1, channels, height, width, generator=generator)}
    if name == "input_values":
        return {"input_values": torch.randn(1, 4000, generator=generator)}
    return None


def _for_unet(config: Any, generator: torch.Generator) -> dict[str, Any]:
    side = _LATENT
    question: dict[str, Any] = {
        "sample": torch.randn(1, config.in_channels, side, side, generator=generator),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(1, _TOKENS, config.cross_attention_dim, generator=generator),
    }
    if config.addition_embed_type == "text_time":
        numbers = 6
        width = config.projection_class_embeddings_input_dim - numbers * config.addition_time_embed_dim
        question["added_cond_kwargs"] = {
            "text_embeds": torch.randn(1, width, generator=generator),
            "time_ids": torch.ones(1, numbers),
        }
    return question
