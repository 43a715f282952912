"""Encoders with decoders that write text: loaded, told where to start, fed and let write.

Families differ in what a decoder begins with and where the language goes. All of it is asked of the model's own
shift and the tokenizer's own target mode, so that training and generation agree by construction.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from loraloom.errors import BaseModelError, ConfigError
from loraloom.tasks.language.tokens import Ids, token_limit, use_padding
from loraloom.tasks.language.vocabulary import train_tokenizer
from loraloom.tasks.models.bases import ResolvedBase
from loraloom.tasks.models.loading import has_tokenizer, load_config, load_model, load_tokenizer, silent, some

IGNORED = -100
"""Label of positions that the loss leaves out."""
_BUFFERS = ("final_logits_bias",)
"""Tensors of zeros that some checkpoints do not hold."""
Texts = Callable[[], Iterable[str]]


def load_seq2seq(
    base: ResolvedBase, *, dtype: torch.dtype, seed: int, texts: Texts, quantize: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """The model, its tokenizer, padding on the right, and notes.

    Of a bare configuration without a tokenizer beside it, one of the configuration's `vocab_size` is learnt from
    `texts()`. Raises BaseModelError for files that hold no encoder with a decoder, or not all of it.
    """
    config = load_config(base)
    if not config.is_encoder_decoder:
        raise BaseModelError(
            f"base model {base.name!r}: {base.folder} holds a {config.model_type!r} model, which has no encoder "
            "beside a decoder; Marian, T5, mBART, M2M100, NLLB and the like can translate"
        )
    notes = []
    if base.random and not has_tokenizer(base):
        tokenizer: PreTrainedTokenizerBase = train_tokenizer(texts(), config.vocab_size, end=True)
        notes.append(f"a tokenizer of {len(tokenizer)} pieces was learnt from the training texts")
    else:
        tokenizer = _load_tokenizer(base)
    if base.random:
        _fit_config(config, tokenizer)
        notes.append(f"every weight was drawn from seed {seed}: there is a configuration alone")
    loaded = load_model(
        AutoModelForSeq2SeqLM, base, "translation model", config=config, dtype=dtype, seed=seed, quantize=quantize
    )
    _check_whole(base, loaded.model, loaded.missing)
    notes += loaded.notes
    use_padding(tokenizer, loaded.model)
    tokenizer.padding_side = "right"  # decoders count positions from the left without looking at a mask
    return loaded.model, tokenizer, notes


def _load_tokenizer(base: ResolvedBase) -> PreTrainedTokenizerBase:
    with warnings.catch_warnings():
        # Marian's recommends a library for a method that tokenising does not call
        warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")
        return load_tokenizer(base)


def _fit_config(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a configuration without weights have the tokenizer's special tokens, and as many rows as it has pieces."""
    starts_with_padding = config.decoder_start_token_id == config.pad_token_id
    config.vocab_size = len(tokenizer)
    if hasattr(config, "decoder_vocab_size"):
        config.decoder_vocab_size = len(tokenizer)
    config.pad_token_id = tokenizer.pad_token_id
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.decoder_start_token_id = tokenizer.pad_token_id if starts_with_padding else tokenizer.eos_token_id
    if getattr(config, "forced_eos_token_id", None) is not None:
        config.forced_eos_token_id = tokenizer.eos_token_id
    if getattr(config, "forced_bos_token_id", None) is not None:
        config.forced_bos_token_id = None


def _check_whole(base: ResolvedBase, model: PreTrainedModel, missing: Iterable[str]) -> None:
    lost = sorted(key for key in missing if key not in _BUFFERS)
    if lost:
        raise BaseModelError(
            f"base model {base.name!r}: {base.folder} lacks or misshapes {len(lost)} of the tensors that "
            f"{type(model).__name__} needs ({some(lost)}); a whole translation model is expected"
        )


# --- what the decoder reads


def decoder_inputs(model: PreTrainedModel, labels: Tensor) -> Tensor:
    """The decoder's input ids (B, T) for labels (B, T) padded with -100 on the right, by the model's own shift.

    Most put `decoder_start_token_id` first; mBART puts the last token of each row, the language, first.
    """
    own: Callable[..., Tensor] | None = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        return own(labels)
    shift: Callable[..., Tensor] | None = getattr(sys.modules[type(model).__module__], "shift_tokens_right", None)
    config = model.config
    if shift is not None and len(inspect.signature(shift).parameters) == 2:
        return shift(labels, config.pad_token_id)
    first = torch.full_like(labels[:, :1], config.decoder_start_token_id)
    return torch.cat([first, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, config.pad_token_id)], dim=1)


def settle_start(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target_id: int | None) -> None:
    """Let generation begin as training does: with the same first token, then the language where it comes second.

    Raises BaseModelError when the configuration does not say what a decoder begins with.
    """
    settings: Any = model.generation_config
    if model.config.decoder_start_token_id is None:
        model.config.decoder_start_token_id = settings.decoder_start_token_id
    if model.config.decoder_start_token_id is None and model.config.model_type != "mbart":
        raise BaseModelError(
            f"base model: its configuration ({tokenizer.name_or_path}) has no decoder_start_token_id, so that "
            "nobody knows what a translation begins with"
        )
    with torch.no_grad():
        labels = torch.tensor([tokenise_targets(["."], tokenizer, None)[0][0].tolist()])
        start = int(decoder_inputs(model, labels)[0, 0])
    settings.decoder_start_token_id = start
    settings.pad_token_id = tokenizer.pad_token_id
    if settings.eos_token_id is None:
        settings.eos_token_id = tokenizer.eos_token_id
    if target_id is not None:
        settings.forced_bos_token_id = None if start == target_id else target_id


def tokenise_targets(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int | None
) -> tuple[list[Ids], list[bool]]:
    """Token ids of each text as a translation, ending with the end token, and which were cut to `limit`."""
    if not texts:
        return [], []
    call: Any = tokenizer
    whole = call(text_target=list(texts), return_attention_mask=False, verbose=False)["input_ids"]
    long = [limit is not None and len(row) > limit for row in whole]
    rows = []
    for text, row, is_long in zip(texts, whole, long, strict=True):
        if is_long:
            row = call(text_target=text, truncation=True, max_length=limit, verbose=False)["input_ids"]
        rows.append(_ended(row, tokenizer.eos_token_id, limit))
    return rows, long


def _ended(row: Sequence[int], end: int | None, limit: int | None) -> Ids:
    """With an end token, without which generation would never stop; mBART has one more token behind it."""
    if end is None or end in row[-2:]:
        return torch.tensor(row).numpy()
    kept = list(row)[: None if limit is None else limit - 1]
    return torch.tensor([*kept, end]).numpy()


def output_rows(model: PreTrainedModel) -> int:
    """How many token ids the decoder can write."""
    own: Any = model
    weight: Tensor = own.get_output_embeddings().weight
    return weight.shape[0]


# --- what it writes


def logits(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Logits (B, T, V) of the next token at every position of decoder_input_ids (B, T), in the model's precision."""
    found: Tensor = model(
        input_ids=batch["input_ids"],
        attention_mask=batch.get("attention_mask"),
        decoder_input_ids=batch["decoder_input_ids"],
        use_cache=False,
    ).logits
    return found


def most_new_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: int) -> int:
    """How many tokens a translation of `source` tokens may have: 2 × source + 16, and what positions allow."""
    limit = token_limit(model, tokenizer, None)
    return 2 * source + 16 if limit is None else max(1, min(2 * source + 16, limit - 1))


@torch.no_grad()
def write(
    model: nn.Module,
    batch: dict[str, Any],
    base_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    beams: int,
    most: int | None = None,
) -> Tensor:
    """Token ids (B, 1 + T) of the translations by beam search, padded on the right, the first one the start token.

    With one beam, the most probable token is taken at each place. A row has at most `most` tokens, by default
    what `most_new_tokens` says of its own source, whatever else is in the batch.
    """
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    bounds = [most or most_new_tokens(base_model, tokenizer, int(length)) for length in mask.sum(dim=1).tolist()]
    generate: Any = model
    with silent():
        found: Tensor = generate.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max(bounds),
            max_length=None,
            num_beams=beams,
            do_sample=False,
        )
    beyond = torch.arange(found.shape[1], device=found.device) > torch.tensor(bounds, device=found.device)[:, None]
    return found.masked_fill(beyond, int(tokenizer.pad_token_id or 0))


def to_texts(rows: Tensor, tokenizer: PreTrainedTokenizerBase, language: int | None) -> list[str]:
    """The texts of token ids (B, T), without special tokens, the language's and blanks around them."""
    # Not every tokenizer counts its languages among the special tokens (M2M100 does not), and a model may have more
    # rows than its tokenizer has pieces, of which Marian's knows nothing.
    pieces = max(len(tokenizer), len(getattr(tokenizer, "target_encoder", ())))
    kept = [[token for token in row if token != language and token < pieces] for row in rows.tolist()]
    texts: list[str] = tokenizer.batch_decode(kept, skip_special_tokens=True)
    return [text.strip() for text in texts]


@torch.no_grad()
def token_probability(model: nn.Module, batch: dict[str, Any], rows: Tensor, ignored: Iterable[int]) -> list[float]:
    """How probable a token of each row (B, 1 + T) is to the model, 0 to 1: the geometric mean over the row.

    Tokens of `ignored`, e.g. padding and the forced language, do not count.
    """
    found = logits(model, {**batch, "decoder_input_ids": rows[:, :-1]})
    told = rows[:, 1:]
    counted = ~torch.isin(told, torch.tensor(sorted(ignored), device=told.device))
    chosen = -functional.cross_entropy(found.float().transpose(1, 2), told, reduction="none")
    mean = (chosen * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
    return [float(value) for value in mean.exp()]


def label_loss(found: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, int]:
    """Cross entropy (float32) summed over the labels that count, and how many: logits (B, T, V), labels (B, T)."""
    counted = labels != IGNORED
    kept = labels[counted]
    loss = functional.cross_entropy(found[counted].float(), kept, reduction="sum", label_smoothing=smoothing)
    return loss, kept.numel()


def check_ids(rows: Sequence[Ids], allowed: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise BaseModelError when a tokenizer gives ids that the decoder cannot write: it is another model's."""
    highest = max((int(row.max()) for row in rows), default=0)
    if highest >= allowed:
        raise BaseModelError(
            f"base model: its tokenizer ({tokenizer.name_or_path}) gives token id {highest} for a target, but the "
            f"model writes {allowed} different tokens only; the two do not belong together"
        )


def require_texts(texts: Sequence[str]) -> Sequence[str]:
    """The training texts that a tokenizer is learnt from. Raises ConfigError when none was read."""
    if not texts:
        raise ConfigError("base_config: a tokenizer is learnt from the training texts, and none has been read yet")
    return texts
