"""The models that the benches run on: MiniLM as it is, and stacks of random weights for timing alone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, LlamaConfig, LlamaModel

from loraloom.tasks.models.bases import resolve_base

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def minilm_folder() -> Path:
    """Where MiniLM lies on this machine."""
    return Path(resolve_base(MINILM).folder)


def minilm_classifier(labels: int = 2, dtype: torch.dtype = torch.float32) -> nn.Module:
    """MiniLM with a classification head, frozen or not as it comes."""
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(minilm_folder(), num_labels=labels, dtype=dtype)


def llama(layers: int = 4, width: int = 768, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A Llama of random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=12, vocab_size=512
    )
    return LlamaModel(config).to(dtype)


def encoder(layers: int = 12, width: int = 768) -> nn.Module:
    """A BERT-shaped encoder of random weights: seven linear sites a layer would need a gated MLP, so 72 + pooler."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=12, vocab_size=512
    )
    return BertModel(config)
