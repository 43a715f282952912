"""What conditioning must come to, written a second time, plainly, and in float64: rules of chunks, CLIP, weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PIECES = 75


def plain_units(segments: list[tuple[str, float]], tokenizer: Any, embeddings: dict[str, Tensor]) -> list[Any]:
    """What a text consists of, in order: ("token", id, weight), ("embedding", name, weight), "BREAK"."""
    spelt = {name: tokenizer(name, add_special_tokens=False).input_ids for name in embeddings}
    longest_first = sorted(spelt, key=lambda name: -len(spelt[name]))
    units: list[Any] = []
    for text, weight in segments:
        if (text, weight) == ("BREAK", -1):
            units.append("BREAK")
            continue
        ids = tokenizer(text, add_special_tokens=False).input_ids
        while ids:
            name = next((name for name in longest_first if ids[: len(spelt[name])] == spelt[name]), None)
            units.append(("token", ids[0], weight) if name is None else ("embedding", name, weight))
            ids = ids[1:] if name is None else ids[len(spelt[name]) :]
    return units


def plain_chunks(units: list[Any], comma: int, embeddings: dict[str, Tensor]) -> list[list[Any]]:
    """The units dealt out to chunks of at most 75 places."""

    def size(chunk: list[Any]) -> int:
        return sum(1 if unit[0] == "token" else len(embeddings[unit[1]]) for unit in chunk)

    chunks: list[list[Any]] = [[]]
    for unit in units:
        if unit == "BREAK":
            chunks.append([])
            continue
        if size(chunks[-1]) == PIECES:
            moved: list[Any] = []
            commas = [place for place, old in enumerate(chunks[-1]) if old[:2] == ("token", comma)]
            if commas and unit[:2] != ("token", comma) and size(chunks[-1][commas[-1] :]) <= 20:
                moved = chunks[-1][commas[-1] + 1 :]
                chunks[-1] = chunks[-1][: commas[-1] + 1]
            chunks.append(moved)
        if size([*chunks[-1], unit]) > PIECES:
            chunks.append([])
        chunks[-1].append(unit)
    return chunks[:-1] if len(chunks) > 1 and not chunks[-1] else chunks


def plain_hidden(encoder: Any, ids: list[int], inserts: list[tuple[int, Tensor]]) -> list[Tensor]:
    """CLIP's text transformer by hand: the hidden states (T, D) before the first and after every layer."""
    weights = {name.removeprefix("text_model."): weight.double() for name, weight in encoder.state_dict().items()}
    heads, act = encoder.config.num_attention_heads, encoder.config.hidden_act
    hidden = weights["embeddings.token_embedding.weight"][ids].clone()
    for place, vectors in inserts:
        hidden[place : place + len(vectors)] = vectors.double()
    hidden = hidden + weights["embeddings.position_embedding.weight"][: len(ids)]
    states = [hidden]
    for layer in range(encoder.config.num_hidden_layers):
        own = {key.split(f"layers.{layer}.")[1]: each for key, each in weights.items() if f"layers.{layer}." in key}
        hidden = hidden + _attention(_norm(hidden, own, "layer_norm1"), own, heads)
        inner = _linear(_norm(hidden, own, "layer_norm2"), own, "mlp.fc1")
        inner = inner * torch.sigmoid(1.702 * inner) if act == "quick_gelu" else torch.nn.functional.gelu(inner)
        hidden = hidden + _linear(inner, own, "mlp.fc2")
        states.append(hidden)
    return states


def plain_norm(encoder: Any, hidden: Tensor) -> Tensor:
    """The final layer norm."""
    weights = {name.removeprefix("text_model."): weight.double() for name, weight in encoder.state_dict().items()}
    return _norm(hidden, weights, "final_layer_norm")


def _norm(hidden: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centred = hidden - hidden.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _linear(hidden: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return hidden @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _attention(hidden: Tensor, weights: dict[str, Tensor], heads: int) -> Tensor:
    length, width = hidden.shape
    query, key, value = (
        _linear(hidden, weights, f"self_attn.{name}").reshape(length, heads, -1).transpose(0, 1)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    scores = query @ key.transpose(1, 2) / (width // heads) ** 0.5
    future = torch.ones(length, length).triu(1).bool()
    mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ value
    return _linear(mixed.transpose(0, 1).reshape(length, width), weights, "self_attn.out_proj")


def plain_conditioning(
    segments: list[tuple[str, float]],
    encoder: Any,
    tokenizer: Any,
    embeddings: dict[str, Tensor] | None = None,
    *,
    back: int = 1,
    normed: bool = True,
    rescale: bool = True,
) -> Tensor:
    """(T, D) in float64: the whole text through one encoder."""
    embeddings = embeddings or {}
    comma = tokenizer.get_vocab()[",</w>"]
    joined = []
    for chunk in plain_chunks(plain_units(segments, tokenizer, embeddings), comma, embeddings):
        ids, factors, inserts = [tokenizer.bos_token_id], [1.0], []
        for kind, what, weight in chunk:
            count = 1 if kind == "token" else len(embeddings[what])
            if kind == "embedding":
                inserts.append((len(ids), embeddings[what]))
            ids += [what if kind == "token" else 0] * count
            factors += [weight] * count
        ids += [tokenizer.eos_token_id, *[tokenizer.pad_token_id] * 75][: 77 - len(ids)]
        factors += [1.0] * (77 - len(factors))
        hidden = plain_hidden(encoder, ids, inserts)[-back]
        hidden = plain_norm(encoder, hidden) if normed else hidden
        weighted = hidden * torch.tensor(factors, dtype=torch.float64)[:, None]
        joined.append(weighted * (hidden.mean() / weighted.mean()) if rescale else weighted)
    return torch.cat(joined)
