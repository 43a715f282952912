"""From captions to what the denoiser is conditioned on: token ids, and what the text encoders make of them.

SD 1.x and 2.x take the last layer of one CLIP encoder; SDXL the last but one of two, joined along the features,
and the pooled output of the second; SD 3 and Flux what diffusers' own pipeline makes. A text is cut at 77 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loraloom.errors import ConfigError
from loraloom.tasks.diffusion.base import Diffusion

CLIP_KINDS = ("sd1", "sd2", "sdxl")
"""Families whose encoders are CLIP alone: these can train."""
Conditions = dict[str, Tensor]
""""hidden" (B, T, D) and, but for SD 1.x and 2.x, "pooled" (B, P)."""


class LearnedVectors(nn.Module):
    """The vectors of one new word (textual inversion, Gal et al. 2022, arXiv 2208.01618), per text encoder."""

    def __init__(self, vectors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in vectors.items():
            self.register_parameter(name, nn.Parameter(tensor.detach().clone().float()))
        self.encoders = tuple(vectors)

    @property
    def count(self) -> int:
        """How many vectors the word has."""
        return len(self.get_parameter(self.encoders[0]))

    def forward(self) -> dict[str, Tensor]:
        """(n, D) by the name of the encoder; called rather than read, so that an adapter's copy takes its place."""
        return {name: self.get_parameter(name) for name in self.encoders}


def first_vectors(diffusion: Diffusion, word: str, count: int) -> LearnedVectors:
    """Vectors that begin as those of `word`, its tokens in turn where it has several. Raises ConfigError."""
    if diffusion.kind not in CLIP_KINDS:
        raise ConfigError(f"train_embedding: {diffusion.kind} has no CLIP encoders alone; {_known()} can learn a word")
    vectors = {}
    for name, encoder in diffusion.text_encoders.items():
        ids = diffusion.tokenizers[name](word, add_special_tokens=False).input_ids
        if not ids:
            raise ConfigError(f"embedding_init: {word!r} has no token; give a word that says what is to be learnt")
        table = encoder.get_input_embeddings().weight.detach()
        vectors[name] = table[[ids[number % len(ids)] for number in range(count)]]
    return LearnedVectors(vectors)


@dataclass
class Texts:
    """The text side of one base."""

    diffusion: Diffusion
    word: str | None = None
    """A new word, whose vectors are learnt."""
    vectors: LearnedVectors | None = None

    @property
    def is_clip(self) -> bool:
        """Whether ids go through CLIP encoders alone."""
        return self.diffusion.kind in CLIP_KINDS

    def tokens(self, text: str) -> tuple[dict[str, Tensor], bool]:
        """Token ids (77,) by encoder, and whether the text was cut; ids beyond the vocabulary are learnt vectors'."""
        rows = {name: self._ids(name, text) for name in self.diffusion.text_encoders}
        return {name: ids for name, (ids, _) in rows.items()}, any(cut for _, cut in rows.values())

    def _ids(self, name: str, text: str) -> tuple[Tensor, bool]:
        tokenizer = self.diffusion.tokenizers[name]
        longest = min(tokenizer.model_max_length, 77)
        inner: list[int] = []
        for number, piece in enumerate(text.split(self.word) if self.word else [text]):
            inner += self._learned_ids(name) if number else []
            inner += tokenizer(piece, add_special_tokens=False, verbose=False).input_ids if piece.strip() else []
        cut = len(inner) > longest - 2
        ids = [tokenizer.bos_token_id, *inner[: longest - 2], tokenizer.eos_token_id]
        return torch.tensor(ids + [tokenizer.pad_token_id] * (longest - len(ids))), cut

    def _learned_ids(self, name: str) -> list[int]:
        assert self.vectors is not None
        size = self.diffusion.text_encoders[name].get_input_embeddings().num_embeddings
        return list(range(size, size + self.vectors.count))

    def encode(self, ids: Mapping[str, Tensor]) -> Conditions:
        """What CLIP encoders make of ids (B, T) by encoder."""
        learnt = self.vectors() if self.vectors is not None else {}
        outputs = {name: self._run(name, rows, learnt.get(name)) for name, rows in ids.items()}
        if self.diffusion.kind != "sdxl":
            return {"hidden": next(iter(outputs.values()))[0]}
        hidden = torch.cat([output.hidden_states[-2] for output in outputs.values()], dim=-1)
        return {"hidden": hidden, "pooled": list(outputs.values())[-1][0]}

    def _run(self, name: str, ids: Tensor, vectors: Tensor | None) -> Any:
        encoder = self.diffusion.text_encoders[name]
        table = encoder.get_input_embeddings()
        size = table.num_embeddings
        settings: dict[str, Any] = {"output_hidden_states": self.diffusion.kind == "sdxl"}
        if getattr(encoder.config, "use_attention_mask", False):
            tokenizer = self.diffusion.tokenizers[name]
            settings["attention_mask"] = (ids != tokenizer.pad_token_id).long()
        new = ids >= size
        if vectors is None or not bool(new.any()):
            return encoder(ids, **settings)

        def put(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            rows = vectors.to(output.dtype)[(ids - size).clamp(min=0)]
            return torch.where(new.unsqueeze(-1), rows, output)

        handle = table.register_forward_hook(put)
        try:
            # Ids beyond the vocabulary must not reach the table; the end mark's place is found by the ids too.
            return encoder(ids.where(~new, ids.new_zeros(())), **settings)
        finally:
            handle.remove()

    @torch.no_grad()
    def conditions(self, text: str) -> Conditions:
        """What one text comes to, (1, …), in float32 on the CPU: the encoders are moved to the denoiser's device."""
        device = self.diffusion.device
        homes = {name: next(encoder.parameters()).device for name, encoder in self.diffusion.text_encoders.items()}
        for encoder in self.diffusion.text_encoders.values():
            encoder.to(device)
        try:
            found = self._conditions(text, device)
        finally:
            for name, encoder in self.diffusion.text_encoders.items():
                encoder.to(homes[name])
        return {name: tensor.float().cpu() for name, tensor in found.items()}

    def _conditions(self, text: str, device: torch.device) -> Conditions:
        if self.is_clip:
            ids, _ = self.tokens(text)
            return self.encode({name: row.unsqueeze(0).to(device) for name, row in ids.items()})
        pipeline = self.diffusion.pipeline
        if self.diffusion.kind == "sd3":
            hidden, _, pooled, _ = pipeline.encode_prompt(text, None, None, device, do_classifier_free_guidance=False)
        else:
            hidden, pooled, _ = pipeline.encode_prompt(text, None, device)
        return {"hidden": hidden, "pooled": pooled}


def stacked(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Rows (1, …) by name as one batch (B, …)."""
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _known() -> str:
    return ", ".join(CLIP_KINDS)
