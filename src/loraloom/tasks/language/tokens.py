"""Sentences to rows of token ids, and rows to padded batches: shared by the tasks that read text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loraloom.errors import BaseModelError, ConfigError

Ids = NDArray[np.int64]

_UNBOUNDED = 10**6
"""Tokenizers without a limit of their own give a huge number instead of None."""


@dataclass(frozen=True)
class TokenRows:
    """Tokenised texts in their order; each column, e.g. "input_ids", holds one array of length T per text."""

    columns: dict[str, list[Ids]]
    truncated: int
    """How many texts had more tokens than the limit."""


def use_padding(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Settle how batches are padded, in tokenizer and model alike: which token, and on which side.

    Decoders come without a padding token; their end-of-text token takes its place. Raises BaseModelError when
    there is none either.
    """
    text_config = model.config.get_text_config()
    rows = vocabulary_size(model)
    pad = tokenizer.pad_token_id
    if pad is None or pad >= rows:
        stand_in = tokenizer.eos_token or tokenizer.unk_token
        if stand_in is None:
            raise BaseModelError(
                f"base model: its tokenizer ({tokenizer.name_or_path}) has no token to pad with, a "
                "pad_token, eos_token or unk_token in tokenizer_config.json is needed"
            )
        tokenizer.pad_token = stand_in
    text_config.pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
    if hasattr(model, "score"):
        # Decoders count positions from the left without looking at the mask, so padding there would shift
        # every token; on the right it comes after the last token, which is the one that is classified.
        tokenizer.padding_side = "right"


def vocabulary_size(model: PreTrainedModel) -> int:
    """How many token ids the model has an embedding for."""
    weight: Tensor = cast(Any, model.get_input_embeddings()).weight
    return weight.shape[0]


def token_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int | None:
    """The longest row of tokens, special ones included, that model, tokenizer and user allow; None: any.

    Raises ConfigError when `max_length` leaves no room beside the special tokens.
    """
    if max_length is not None:
        least = tokenizer.num_special_tokens_to_add() + 1
        if max_length < least:
            raise ConfigError(
                f"max_length: {max_length} tokens leave no room for text beside this tokenizer's "
                f"{least - 1} special tokens, at least {least} is needed"
            )
    limits = [_positions(model), int(tokenizer.model_max_length), max_length]
    known = [limit for limit in limits if limit is not None and limit < _UNBOUNDED]
    return min(known, default=None)


def _positions(model: PreTrainedModel) -> int | None:
    """How many positions the model can tell apart, None when its configuration sets no bound."""
    for path, module in model.named_modules():
        if path.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its kin count positions from padding_idx + 1: 514 rows are 512 positions.
            taken = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - taken
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def tokenise(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int | None, vocabulary: int) -> TokenRows:
    """Tokenise `texts` as a sentence each, cut to `limit` tokens.

    Raises BaseModelError when the tokenizer gives an id of `vocabulary` or above: it is another model's.
    """
    if not texts:
        return TokenRows({"input_ids": []}, 0)
    columns = _call(tokenizer, texts)
    lengths = [len(row) for row in columns["input_ids"]]
    long = [row for row, length in enumerate(lengths) if limit is not None and length > limit]
    if long:
        cut = _call(tokenizer, [texts[row] for row in long], truncation=True, max_length=limit)
        for name, rows in columns.items():
            for row, shortened in zip(long, cut[name], strict=True):
                rows[row] = shortened
    if 0 in lengths:
        _fill_empty(columns, tokenizer)
    highest = max(map(max, columns["input_ids"]))
    if highest >= vocabulary:
        raise BaseModelError(
            f"base model: its tokenizer ({tokenizer.name_or_path}) gives token id {highest}, but the model "
            f"has embeddings for {vocabulary} tokens only; the two do not belong together"
        )
    return TokenRows({name: _arrays(rows) for name, rows in columns.items()}, len(long))


def _call(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **settings: Any) -> dict[str, list[list[int]]]:
    return dict(tokenizer(list(texts), return_attention_mask=False, verbose=False, **settings))


def _fill_empty(columns: dict[str, list[list[int]]], tokenizer: PreTrainedTokenizerBase) -> None:
    """A text without a token, as decoders have for "", becomes one end-of-text or padding token."""
    token = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.pad_token_id
    for row, ids in enumerate(columns["input_ids"]):
        if not ids:
            for name, rows in columns.items():
                rows[row] = [token if name == "input_ids" else 0]


def _arrays(rows: list[list[int]]) -> list[Ids]:
    """One flat array for all rows, and a view into it per row."""
    ends = np.cumsum([len(row) for row in rows])
    flat = np.fromiter((value for row in rows for value in row), np.int64, count=int(ends[-1]))
    return np.split(flat, ends[:-1])


def pad_rows(rows: Mapping[str, Sequence[Ids]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """Columns of B rows each as tensors (B, T), padded to the longest row, int64.

    "attention_mask" (B, T) marks real tokens with 1; it is left out when no row needs padding, since models
    take that for all ones and then also skip masking.
    """
    lengths = np.array([len(row) for row in rows["input_ids"]])
    longest = int(lengths.max())
    if (lengths == longest).all():
        return {name: torch.from_numpy(np.stack(column)) for name, column in rows.items()}
    steps = np.arange(longest)
    first = longest - lengths if tokenizer.padding_side == "left" else 0 * lengths
    real = (steps >= first[:, None]) & (steps < (first + lengths)[:, None])
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    batch = {"attention_mask": torch.from_numpy(real.astype(np.int64))}
    for name, column in rows.items():
        padded = np.full(real.shape, fill.get(name, 0), np.int64)
        padded[real] = np.concatenate(column)
        batch[name] = torch.from_numpy(padded)
    return batch
