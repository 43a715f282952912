"""transformers' own `model.load_adapter` and ours: the same outputs from the same folder, whoever wrote it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

peft = pytest.importorskip("peft", reason="PEFT is not installed: transformers loads no adapters without it")

from transformers import (  # noqa: E402
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from loraloom.adapters import attach  # noqa: E402
from loraloom.formats import load_adapter, load_any, save_adapter  # noqa: E402

IDS = torch.arange(12).reshape(2, 6) % 20


def _made(build: Callable[[], Any]) -> Any:
    torch.manual_seed(1)
    return build().eval()


def bert() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
    return _made(lambda: BertForSequenceClassification(BertConfig(vocab_size=20, initializer_range=0.3, **sizes)))


def llama() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
    return _made(lambda: LlamaForCausalLM(LlamaConfig(vocab_size=20, initializer_range=0.3, **sizes)))


def gpt2() -> Any:
    config = GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    return _made(lambda: GPT2LMHeadModel(config))


CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "attention": (bert, {"targets": ["query", "value"], "rank": 3}),
    "all linear, rsLoRA": (llama, {"targets": "all-linear", "rank": 4, "scaling": "rslora"}),
    "patterns": (
        llama,
        {"targets": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.0.*": 3.0}},
    ),
    "with a head": (bert, {"targets": ["query"], "heads": "classifier"}),
    "transposed layers": (gpt2, {"targets": ["c_attn", "mlp.c_fc"], "rank": 2}),
}


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(IDS).logits
    return logits


def theirs(build: Callable[[], Any], folder: Path) -> Any:
    model = build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.load_adapter(str(folder))
    return model.eval()


@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_our_folder(case: str, tmp_path: Path) -> None:
    build, spec = CASES[case]
    model = build()
    adapters = attach(model, **spec)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.2)
    save_adapter(adapters, "default", tmp_path)
    wanted = output(model)
    assert float((wanted - output(build())).abs().max()) > 1e-2
    torch.testing.assert_close(output(theirs(build, tmp_path)), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "config"),
    [
        (bert, {"target_modules": ["query", "dense"], "r": 3, "lora_alpha": 5}),
        (llama, {"target_modules": "all-linear", "r": 4, "use_rslora": True}),
        (llama, {"target_modules": r".*\.(q|v)_proj", "r": 4, "rank_pattern": {"v_proj": 2}}),
        (gpt2, {"target_modules": ["c_attn"], "r": 2, "fan_in_fan_out": True}),
    ],
)
def test_a_folder_saved_by_transformers_loads_here(
    build: Callable[[], Any], config: dict[str, Any], tmp_path: Path
) -> None:
    model = build()
    model.add_adapter(peft.LoraConfig(**config, init_lora_weights=False))
    model.save_pretrained(tmp_path)
    wanted = output(model.eval())
    for load in (load_adapter, load_any):
        again = build()
        load(again, tmp_path)
        torch.testing.assert_close(output(again), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output(theirs(build, tmp_path)), wanted, rtol=1e-5, atol=1e-5)
