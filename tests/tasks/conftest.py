"""Tiny models of real architectures, with tokenizers of their own, as folders that transformers wrote."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2Model,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

WORDS = [
    "the",
    "food",
    "film",
    "hotel",
    "was",
    "is",
    "not",
    "very",
    "good",
    "bad",
    "fine",
    "awful",
    "and",
    "but",
    "i",
    "liked",
    "it",
]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
WIDE = {"initializer_range": 0.3}  # at the usual 0.02 such small models barely tell texts apart


@dataclass(frozen=True)
class Family:
    """One architecture: how to make it, and what the task should find in it."""

    backbone: type[Any]
    classifier: type[Any]
    config: Callable[..., Any]
    heads: tuple[str, ...]
    limit: int
    """Tokens that its positions allow."""
    special: tuple[str, ...]
    """Special tokens in the order of their ids: start, pad, end, unknown; decoders have end and unknown only."""


FAMILIES = {
    "bert": Family(
        BertModel,
        BertForSequenceClassification,
        lambda **more: BertConfig(vocab_size=32, max_position_embeddings=24, pad_token_id=1, **SMALL, **WIDE, **more),
        ("classifier",),
        24,
        ("[CLS]", "[PAD]", "[SEP]", "[UNK]"),
    ),
    "roberta": Family(
        RobertaModel,
        RobertaForSequenceClassification,
        lambda **more: RobertaConfig(
            vocab_size=32, max_position_embeddings=24, pad_token_id=1, **SMALL, **WIDE, **more
        ),
        ("classifier",),
        22,
        ("[CLS]", "[PAD]", "[SEP]", "[UNK]"),
    ),
    "distilbert": Family(
        DistilBertModel,
        DistilBertForSequenceClassification,
        lambda **more: DistilBertConfig(
            vocab_size=32,
            max_position_embeddings=24,
            dim=16,
            n_layers=2,
            n_heads=2,
            hidden_dim=24,
            pad_token_id=1,
            **WIDE,
            **more,
        ),
        ("pre_classifier", "classifier"),
        24,
        ("[CLS]", "[PAD]", "[SEP]", "[UNK]"),
    ),
    "gpt2": Family(
        GPT2Model,
        GPT2ForSequenceClassification,
        lambda **more: GPT2Config(
            vocab_size=32, n_positions=24, n_embd=16, n_layer=2, n_head=2, eos_token_id=0, **WIDE, **more
        ),
        ("score",),
        24,
        ("</s>", "[UNK]"),
    ),
    "llama": Family(
        LlamaModel,
        LlamaForSequenceClassification,
        lambda **more: LlamaConfig(
            vocab_size=32, max_position_embeddings=24, eos_token_id=0, bos_token_id=None, **SMALL, **WIDE, **more
        ),
        ("score",),
        24,
        ("</s>", "[UNK]"),
    ),
}


def make_tokenizer(special: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over `WORDS`; with four special tokens it puts start and end around a text."""
    vocabulary = {token: number for number, token in enumerate([*special, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if len(special) == 2:
        return PreTrainedTokenizerFast(
            tokenizer_object=inner,
            eos_token="</s>",
            unk_token="[UNK]",
            padding_side="left",
            model_input_names=["input_ids", "attention_mask"],
        )
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, cls_token="[CLS]", pad_token="[PAD]", sep_token="[SEP]", unk_token="[UNK]"
    )


def make_base(folder: Path, family: str, *, labels: tuple[str, ...] = (), pooler: bool = True) -> Path:
    """Write a backbone, or with `labels` a whole classifier, and its tokenizer into `folder`."""
    kind = FAMILIES[family]
    torch.manual_seed(3)
    if labels:
        names = dict(enumerate(labels))
        config = kind.config(id2label=names, label2id={name: number for number, name in names.items()})
        model = kind.classifier(config)
    else:
        more = {} if pooler else {"add_pooling_layer": False}
        model = kind.backbone(kind.config(), **more)
    model.save_pretrained(folder)
    make_tokenizer(kind.special).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def made_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A backbone folder of every family, to be read only."""
    root = tmp_path_factory.mktemp("bases")
    return {family: make_base(root / family, family) for family in FAMILIES}


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """The name of each family in turn."""
    return str(request.param)


@pytest.fixture
def base_folder(made_bases: dict[str, Path], tmp_path: Path) -> Path:
    """A BERT backbone folder that a test may change."""
    return Path(shutil.copytree(made_bases["bert"], tmp_path / "base"))
