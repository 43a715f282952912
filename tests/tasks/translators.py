"""Tiny translation models of real classes, with the tokenizers of those classes, as folders that transformers wrote."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    MT5Config,
    MT5ForConditionalGeneration,
    NllbTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from loraloom.data.table import Example

PAIRS = [
    ("the cat sits", "de kat zit"),
    ("the dog runs", "de hond rent"),
    ("a cat runs far", "een kat rent ver"),
    ("the house is big", "het huis is groot"),
    ("a dog is small", "een hond is klein"),
    ("the house sits", "het huis zit"),
]
POSITIONS = 24
LAYERS = {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "d_model": 16,
    "max_position_embeddings": POSITIONS,
    "init_std": 0.2,
}
T5_LAYERS = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}


def sentencepiece_model() -> tuple[bytes, list[tuple[str, float]]]:
    """A small unigram model as bytes, and its pieces with their scores."""
    import sentencepiece  # only here: it is asked for by pytest.importorskip first

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for pair in PAIRS for text in pair] * 3),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    read = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return model.getvalue(), [(read.id_to_piece(i), read.get_score(i)) for i in range(read.get_piece_size())]


def _words(pieces: list[tuple[str, float]]) -> list[str]:
    return [piece for piece, _ in pieces if piece not in ("<s>", "</s>", "<unk>")]


def _files(folder: Path, model: bytes, vocabulary: list[str]) -> tuple[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "made.model").write_bytes(model)
    (folder / "made.json").write_text(json.dumps({piece: number for number, piece in enumerate(vocabulary)}), "utf-8")
    return str(folder / "made.model"), str(folder / "made.json")


def marian_tokenizer(folder: Path, *marks: str) -> Any:
    model, pieces = sentencepiece_model()
    file, vocabulary = _files(folder, model, ["</s>", "<unk>", *_words(pieces), *marks, "<pad>"])
    return MarianTokenizer(file, file, vocabulary, source_lang="en", target_lang="nl")


def m2m_tokenizer(folder: Path) -> Any:
    model, pieces = sentencepiece_model()
    file, vocabulary = _files(folder, model, ["<s>", "<pad>", "</s>", "<unk>", *_words(pieces)])
    return M2M100Tokenizer(vocabulary, file)


def nllb_tokenizer(folder: Path) -> Any:
    letters = sorted({letter for pair in PAIRS for text in pair for letter in text} - {" "})
    specials = ["<s>", "<pad>", "</s>", "<unk>", "▁"]
    return NllbTokenizer(vocab={piece: number for number, piece in enumerate([*specials, *letters])}, merges=[])


def _mbart(**more: Any) -> MBartConfig:
    return MBartConfig(pad_token_id=1, bos_token_id=0, eos_token_id=2, scale_embedding=True, **LAYERS, **more)


def _m2m(**more: Any) -> M2M100Config:
    return M2M100Config(
        pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, scale_embedding=True, **LAYERS, **more
    )


def _marian(tokenizer: Any, **more: Any) -> MarianConfig:
    pad = tokenizer.pad_token_id
    return MarianConfig(
        pad_token_id=pad, eos_token_id=0, decoder_start_token_id=pad, forced_eos_token_id=0, **LAYERS, **more
    )


def _t5(kind: Any, tokenizer: Any, **more: Any) -> Any:
    pad = tokenizer.pad_token_id
    return kind(
        pad_token_id=pad, eos_token_id=2, decoder_start_token_id=pad, initializer_factor=0.5, **T5_LAYERS, **more
    )


@dataclass(frozen=True)
class Family:
    """One architecture, and what of languages it is told in the tests."""

    model: type[Any]
    tokenizer: Callable[[Path], Any]
    config: Callable[..., Any]
    """Makes the configuration from the tokenizer and a `vocab_size`."""
    options: dict[str, str] = field(default_factory=dict)
    start: str = "<pad>"
    """The token that a translation into Dutch begins with."""
    forced: str | None = None
    """The token that comes second, whatever the model thinks."""


FAMILIES = {
    "marian": Family(MarianMTModel, marian_tokenizer, _marian),
    "marian, several targets": Family(
        MarianMTModel,
        lambda folder: marian_tokenizer(folder, ">>nld<<", ">>fra<<"),
        _marian,
        {"target_language": "nld"},
    ),
    "t5": Family(
        T5ForConditionalGeneration,
        lambda folder: T5Tokenizer(vocab=sentencepiece_model()[1], extra_ids=0),
        lambda tokenizer, **more: _t5(T5Config, tokenizer, **more),
        {"source_language": "English", "target_language": "Dutch"},
    ),
    "mt5": Family(
        MT5ForConditionalGeneration,
        lambda folder: T5Tokenizer(vocab=sentencepiece_model()[1], extra_ids=0),
        lambda tokenizer, **more: _t5(MT5Config, tokenizer, **more),
    ),
    "mbart": Family(
        MBartForConditionalGeneration,
        lambda folder: MBartTokenizer(
            vocab=[
                ("<s>", 0.0),
                ("<pad>", 0.0),
                ("</s>", 0.0),
                *sentencepiece_model()[1][:1],
                *sentencepiece_model()[1][3:],
            ]
        ),
        lambda tokenizer, **more: _mbart(**more),
        {"source_language": "en_XX", "target_language": "nl_XX"},
        start="nl_XX",
    ),
    "mbart-50": Family(
        MBartForConditionalGeneration,
        lambda folder: MBart50Tokenizer(vocab=sentencepiece_model()[1]),
        lambda tokenizer, **more: _mbart(**more),
        {"source_language": "en_XX", "target_language": "nl_XX"},
        start="</s>",
        forced="nl_XX",
    ),
    "m2m100": Family(
        M2M100ForConditionalGeneration,
        m2m_tokenizer,
        lambda tokenizer, **more: _m2m(**more),
        {"source_language": "en", "target_language": "nl"},
        start="</s>",
        forced="__nl__",
    ),
    "nllb": Family(
        M2M100ForConditionalGeneration,
        nllb_tokenizer,
        lambda tokenizer, **more: _m2m(**more),
        {"source_language": "eng_Latn", "target_language": "nld_Latn"},
        start="</s>",
        forced="nld_Latn",
    ),
    "bart": Family(
        BartForConditionalGeneration,
        lambda folder: nllb_tokenizer(folder),
        lambda tokenizer, **more: BartConfig(
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
            **LAYERS,
            **more,
        ),
        {"source_language": "eng_Latn", "target_language": "nld_Latn"},
        start="</s>",
        forced="nld_Latn",
    ),
}


def make_translator(folder: Path, family: str) -> Path:
    """Write a model of random weights and its tokenizer into `folder`."""
    kind = FAMILIES[family]
    tokenizer = kind.tokenizer(folder / "made")
    # M2M100 counts its languages behind the vocabulary, not in it
    rows = max(len(tokenizer), *getattr(tokenizer, "lang_code_to_id", {"": 0}).values()) + 4
    torch.manual_seed(5)
    kind.model(kind.config(tokenizer, vocab_size=rows)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def as_examples(pairs: list[tuple[str, str]] = PAIRS) -> list[Example]:
    """Examples with source and target."""
    return [
        Example({"source": source, "target": target}, "memory", line)
        for line, (source, target) in enumerate(pairs, start=1)
    ]
