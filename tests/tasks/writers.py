"""Tiny language models of real classes, with a tokenizer of their own, as folders that transformers wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from loraloom.tasks.base import BaseModel, Feature
from loraloom.tasks.causal_lm import CausalLM
from loraloom.tasks.language.lm_form import CausalLMOptions

VOCABULARY = 264
POSITIONS = 160
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": POSITIONS,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, num_key_value_heads=1)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=1, sliding_window=8)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**_GPT2)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL)),
}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}{% set said = m['content'] %}"
    "{% if m['role'] == 'assistant' and not loop.last and '</think>' in said %}"
    "{% set said = said.split('</think>')[1] %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + said + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As Qwen3's: what an earlier answer thought is left out once there is a later one."""
STRICT = (
    "{% for m in messages %}{% if m['role'] != (['user', 'assistant'][loop.index0 % 2]) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{{ '[' + m['role'] + ']' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def make_tokenizer(*, special: bool = True, template: str | None = None) -> PreTrainedTokenizerFast:
    """A token per byte, so that every text can be written and characters fall apart; start 1 and end 2 if `special`."""
    names = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*names, *alphabet, "th"]
    inner = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, [("t", "h")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"} if special else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **named)
    tokenizer.add_special_tokens({"additional_special_tokens": names[3:]})
    tokenizer.chat_template = template
    return tokenizer


def make_base(folder: Path, family: str = "llama", *, special: bool = True, template: str | None = None) -> Path:
    """Write a language model and its tokenizer into `folder`."""
    torch.manual_seed(3)
    FAMILIES[family]().save_pretrained(folder)
    make_tokenizer(special=special, template=template).save_pretrained(folder)
    return folder


def make_task(folder: Path, **options: Any) -> tuple[CausalLM, BaseModel]:
    """A task with these options, and the base in `folder`."""
    task = CausalLM(CausalLMOptions(**options))
    return task, task.load(str(folder))


def learnt(feature: Feature, base: BaseModel) -> str:
    """The text of a row's targets, its special tokens too."""
    ids = feature.inputs["input_ids"][feature.inputs["targets"]]
    return str(base.processor.decode(ids.tolist(), clean_up_tokenization_spaces=False))


def whole(feature: Feature, base: BaseModel) -> str:
    """The text of a whole row, its special tokens too."""
    ids = feature.inputs["input_ids"].tolist()
    return str(base.processor.decode(ids, clean_up_tokenization_spaces=False))
