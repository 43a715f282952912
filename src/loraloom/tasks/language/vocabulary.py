"""Tokenizers for bases that are made from a configuration alone: trained on the run's own texts.

Byte-level pieces (BPE) for text, single characters for speech, where a letter is close to a sound.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, BEGIN, END = "<pad>", "<unk>", "<s>", "</s>"
SPECIAL = (PAD, UNKNOWN, BEGIN, END)
"""In this order: their ids are 0, 1, 2 and 3."""


def train_tokenizer(
    texts: Iterable[str],
    size: int,
    *,
    kind: Literal["bpe", "char"] = "bpe",
    begin: bool = False,
    end: bool = False,
    lower: bool = False,
) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `size` pieces, learnt from `texts`: the same texts give the same one.

    "bpe" (Sennrich et al. 2016, over bytes) takes any text without unknown pieces; "char" knows the
    characters that occur, a space among them. `begin` and `end` put ``<s>`` and ``</s>`` around every text;
    `lower` folds case first.
    """
    tokenizer = _pieces(texts, size, lower) if kind == "bpe" else _characters(texts, size, lower)
    if begin or end:
        first, last = (f"{BEGIN} " if begin else ""), (f" {END}" if end else "")
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first}$A{last}",
            pair=f"{first}$A{last} $B{last}",
            special_tokens=[(BEGIN, SPECIAL.index(BEGIN)), (END, SPECIAL.index(END))],
        )
    wrap: Any = PreTrainedTokenizerFast  # transformers leaves it untyped
    wrapped: PreTrainedTokenizerFast = wrap(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        clean_up_tokenization_spaces=False,
    )
    return wrapped


def _pieces(texts: Iterable[str], size: int, lower: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    if lower:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _characters(texts: Iterable[str], size: int, lower: bool) -> Tokenizer:
    """Every character that occurs is a piece, by its code point; `size` bounds how many there may be."""
    found = sorted({character for text in texts for character in (text.lower() if lower else text)} | {" "})
    pieces = [*SPECIAL, *found][:size]
    tokenizer = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token=UNKNOWN))
    if lower:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer
