"""Files that PEFT writes and that are not plain LoRA on this base: refused by name, or taken with a warning."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

peft = pytest.importorskip("peft", reason="PEFT is not installed: there are no files of its to read")

from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from loraloom.adapters import adapters_of  # noqa: E402
from loraloom.errors import FormatError  # noqa: E402
from loraloom.formats import load_adapter  # noqa: E402

IDS = torch.arange(12).reshape(2, 6) % 20


class Small(nn.Module):
    def __init__(self, **conv: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.bare = nn.Linear(6, 6, bias=False)
        self.tokens = nn.Embedding(9, 6)
        self.conv = nn.Conv1d(6, 6, 3, **conv)
        self.head = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bare(self.fc(x)))


def small(**conv: Any) -> nn.Module:
    torch.manual_seed(1)
    return Small(**conv).eval()


def llama(vocabulary: int = 20) -> Any:
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=vocabulary, initializer_range=0.3, tie_word_embeddings=False, **sizes)
    return LlamaForCausalLM(config).eval()


def save(model: nn.Module, folder: Path, config: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, config)
        wrapped.save_pretrained(folder, **options)
    return wrapped.eval()


def lora(**fields: Any) -> Any:
    return peft.LoraConfig(**{"r": 2, "init_lora_weights": False, **fields})


REFUSED = {
    "IA3": (
        peft.IA3Config(target_modules=["fc"], feedforward_modules=["fc"]),
        "peft_type is 'IA3': only adapters of peft_type 'LORA'",
    ),
    "LoHa": (peft.LoHaConfig(target_modules=["fc"]), "peft_type is 'LOHA'"),
    "DoRA": (
        lora(target_modules=["fc"], use_dora=True),
        "is an adapter of DoRA, whose magnitudes .* can be converted, but not attached, mixed or changed",
    ),
    "PiSSA": (
        lora(target_modules=["fc"], init_lora_weights="pissa"),
        "init_lora_weights is 'pissa', which changes the base model's weights as well",
    ),
    "trained tokens": (
        lora(target_modules=["fc"], trainable_token_indices={"tokens": [1, 2]}),
        "adapters with trainable tokens cannot be read",
    ),
    "a bias behind B where none can be": (
        lora(target_modules=["bare"], lora_bias=True),
        "'base_model.model.bare.lora_B.bias' is a bias of B at 'bare', which has no bias of its own",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, tmp_path: Path) -> None:
    config, told = REFUSED[name]
    save(small(), tmp_path, config)
    model = small()
    with pytest.raises(FormatError, match=told):
        load_adapter(model, tmp_path)
    assert adapters_of(model) is None


@pytest.mark.parametrize("conv", [{"padding": 1, "padding_mode": "replicate"}, {"padding": 2, "dilation": 2}])
def test_a_convolution_that_peft_runs_otherwise(conv: dict[str, Any], tmp_path: Path) -> None:
    save(small(**conv), tmp_path, lora(target_modules=["conv"]))
    with pytest.raises(FormatError, match="PEFT runs the adapter of 'conv' otherwise than the layer runs"):
        load_adapter(small(**conv), tmp_path)


def test_a_head_with_other_running_statistics(tmp_path: Path) -> None:
    wrapped = peft.get_peft_model(small(), lora(target_modules=["fc"], modules_to_save=["head"])).train()
    wrapped(torch.randn(8, 6))
    wrapped.save_pretrained(tmp_path)
    with pytest.raises(FormatError, match=r"head.1.running_mean' is a running statistic of the head"):
        load_adapter(small(), tmp_path)


def test_a_head_of_another_size(tmp_path: Path) -> None:
    save(small(), tmp_path, lora(target_modules=["fc"], modules_to_save=["head"]))
    other = small()
    other.head = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
    with pytest.raises(FormatError, match=r"head.0.weight' has shape \(4, 6\).*model's 'head.0.weight' has \(3, 6\)"):
        load_adapter(other, tmp_path)


def test_a_double_of_a_head_that_is_none(tmp_path: Path) -> None:
    save(small(), tmp_path, lora(target_modules=["fc"], modules_to_save=["head"], bias="all"))
    load_adapter(small(), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    key = "base_model.model.head.modules_to_save.default.0.bias"
    save_file({**tensors, key: tensors[key] + 1.0}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(FormatError, match=f"tensor '{key}' is not the double of one of the head's own"):
        load_adapter(small(), tmp_path)


def test_embeddings_of_the_base_beside_the_adapter(tmp_path: Path) -> None:
    """Unchanged they say nothing; changed they become copies that act; of another size they are refused."""
    config = lora(target_modules=["q_proj"], task_type="CAUSAL_LM")
    base = llama()
    save(base, tmp_path / "same", config, save_embedding_layers=True)
    plan = load_adapter(llama(), tmp_path / "same").plan("default")
    assert not plan.copies

    changed = llama()
    with torch.no_grad():
        changed.model.embed_tokens.weight[3] += 1.0
    expected = save(changed, tmp_path / "changed", config, save_embedding_layers=True)
    again = llama()
    adapters = load_adapter(again, tmp_path / "changed")
    assert [copied.module for copied in adapters.plan("default").copies] == ["model.embed_tokens"]
    with torch.no_grad():
        assert torch.allclose(again(IDS).logits, expected(IDS).logits, rtol=1e-6, atol=1e-6)

    save(llama(vocabulary=21), tmp_path / "resized", config, save_embedding_layers=True)
    with pytest.raises(FormatError, match="is an embedding of a resized base, where the model's is"):
        load_adapter(llama(), tmp_path / "resized")

    both = lora(target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    changed = llama()
    with torch.no_grad():
        changed.model.embed_tokens.weight[3] += 1.0
    save(changed, tmp_path / "both", both)
    with pytest.raises(FormatError, match="replaces an embedding of the base that the adapter updates as well"):
        load_adapter(llama(), tmp_path / "both")
