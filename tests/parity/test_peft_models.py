"""The same outputs here and in PEFT on small transformers with random weights: encoders, decoders, experts, ties."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

peft = pytest.importorskip("peft", reason="PEFT is not installed: nothing to compare with")

import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from loraloom.adapters import AdapterSet, attach  # noqa: E402
from loraloom.formats import load_adapter, read_adapter, save_adapter  # noqa: E402

WEIGHTS = "adapter_model.safetensors"
IDS = torch.arange(24).reshape(3, 8) * 7 % 31 + 1
SMALL = {
    "initializer_range": 0.3,
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
DECODER = {**SMALL, "intermediate_size": 20, "num_key_value_heads": 1, "head_dim": 8}


def make(cls: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(11)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = getattr(transformers, cls)(getattr(transformers, config)(**settings)).double().eval()
        if "experts" in config + str(settings):
            model.set_experts_implementation("eager")  # the grouped product has no float64
        return model

    return build


bert = make("BertForSequenceClassification", "BertConfig", **SMALL, intermediate_size=20, num_labels=3)
roberta = make("RobertaForSequenceClassification", "RobertaConfig", **SMALL, intermediate_size=20, num_labels=3)
gpt2 = make("GPT2LMHeadModel", "GPT2Config", initializer_range=0.3, vocab_size=40, n_embd=16, n_layer=2, n_head=2)
llama = make("LlamaForCausalLM", "LlamaConfig", **DECODER, tie_word_embeddings=False)
tied = make("LlamaForCausalLM", "LlamaConfig", **DECODER, tie_word_embeddings=True)
mixtral = make("MixtralForCausalLM", "MixtralConfig", **DECODER, num_local_experts=3)
qwen = make(
    "Qwen2MoeForCausalLM",
    "Qwen2MoeConfig",
    **DECODER,
    num_experts=3,
    num_experts_per_tok=2,
    moe_intermediate_size=12,
    shared_expert_intermediate_size=12,
)


@dataclass(frozen=True)
class Case:
    model: Callable[[], nn.Module]
    peft: dict[str, Any]
    ours: dict[str, Any] | None
    task: str | None = None


EXPERTS = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
CASES = {
    "bert": Case(
        bert,
        {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"},
        {"targets": ["query", "value"], "heads": "classifier"},
        "SEQ_CLS",
    ),
    "bert, all linear layers, all biases": Case(
        bert,
        {"target_modules": "all-linear", "task_type": "SEQ_CLS", "bias": "all", "use_rslora": True},
        {"heads": "classifier", "bias": "all", "scaling": "rslora"},
        "SEQ_CLS",
    ),
    "roberta, a head of several layers": Case(
        roberta,
        {"target_modules": ["query", "dense"], "task_type": "SEQ_CLS"},
        {"targets": "all-linear", "heads": "classifier"},
        "SEQ_CLS",
    ),
    "bert, embeddings": Case(
        bert,
        {"target_modules": ["word_embeddings", "position_embeddings", "key"]},
        {"targets": ["word_embeddings", "position_embeddings", "key"]},
    ),
    "gpt2": Case(
        gpt2,
        {"target_modules": ["c_attn", "c_proj"], "task_type": "CAUSAL_LM"},
        {"targets": ["c_attn", "c_proj"]},
        "CAUSAL_LM",
    ),
    "gpt2, one block": Case(
        gpt2,
        {"target_modules": ["c_attn"], "layers_to_transform": [1], "layers_pattern": "h"},
        {"targets": "c_attn", "layers": -1},
    ),
    "llama": Case(
        llama,
        {"target_modules": ["q_proj", "down_proj", "embed_tokens", "lm_head"], "rank_pattern": {"q_proj": 3}},
        {"targets": ["q_proj", "down_proj", "embed_tokens", "lm_head"], "rank_pattern": {"q_proj": 3}},
        "CAUSAL_LM",
    ),
    "llama, all linear layers": Case(llama, {"target_modules": "all-linear"}, {}, "CAUSAL_LM"),
    "tied embeddings, shared": Case(
        tied,
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        {"targets": "embed_tokens", "tied": "share"},
    ),
    "tied embeddings, apart": Case(
        tied,
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"targets": ["embed_tokens", "lm_head"], "tied": "separate"},
    ),
    "one of two tied": Case(
        tied, {"target_modules": ["embed_tokens"]}, {"targets": "embed_tokens", "tied": "separate"}
    ),
    "a trained embedding": Case(
        llama,
        {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {"targets": "v_proj", "heads": ["embed_tokens", "lm_head"]},
    ),
    "mixtral": Case(
        mixtral, EXPERTS, {"targets": "q_proj", "parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    ),
    "mixtral, names of an older architecture": Case(
        mixtral, {"target_modules": ["q_proj", "w1", "w2", "w3", "gate"]}, None
    ),
    "qwen2-moe": Case(
        qwen, EXPERTS, {"targets": "q_proj", "parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    ),
}
OURS = {name: case for name, case in CASES.items() if case.ours is not None}


def randomise(parameters: Iterator[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.2)


def theirs(case: Case, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {"r": 2, "lora_alpha": 5, "init_lora_weights": False, **case.peft}
        model = peft.get_peft_model(case.model(), peft.LoraConfig(**settings)).eval()
        if not settings.get("ensure_weight_tying"):
            randomise(p for p in model.parameters() if p.requires_grad)
        model.save_pretrained(folder)
    return model


def load_in_peft(base: nn.Module, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(base, folder).eval()


def load_quietly(base: nn.Module, folder: Path) -> AdapterSet:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_adapter(base, folder)


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def assert_equal(found: Tensor, expected: Tensor, base: Tensor) -> None:
    """Equal to rounding; in float64, where a model's depth cannot hide a difference behind it."""
    size = expected.abs().max()
    assert (found - expected).abs().max() <= 1e-12 * size
    assert (base - expected).abs().max() > 1e-3 * size, "the adapter does nothing: the comparison says nothing"


@pytest.mark.parametrize("name", OURS)
def test_ours_in_peft_and_in_ours(name: str, tmp_path: Path) -> None:
    case = OURS[name]
    model = case.model()
    adapters = attach(model, rank=2, dtype=torch.float64, **(case.ours or {}))
    randomise(adapters.parameters())
    save_adapter(adapters, "default", tmp_path / "first", task_type=case.task)
    expected = output(model)
    assert_equal(output(load_in_peft(case.model(), tmp_path / "first")), expected, output(case.model()))
    again = case.model()
    loaded = load_adapter(again, tmp_path / "first")
    assert torch.equal(output(again), expected)
    assert loaded.plan("default") == adapters.plan("default")
    save_adapter(loaded, "default", tmp_path / "second", task_type=case.task)
    for file in (WEIGHTS, "adapter_config.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


@pytest.mark.parametrize("name", CASES)
def test_peft_in_ours(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = theirs(case, tmp_path / "peft")
    again = case.model()
    adapters = load_quietly(again, tmp_path / "peft")
    assert_equal(output(again), output(model), output(case.model()))
    save_adapter(adapters, "default", tmp_path / "ours")
    first, second = (load_file(tmp_path / folder / WEIGHTS) for folder in ("peft", "ours"))
    assert set(second) <= set(first)
    assert all(torch.equal(first[key], second[key]) for key in second)
    needless = (".original_module.", ".modules_to_save.", "embed_tokens.base_layer", "lm_head.base_layer")
    assert all(any(word in key for word in needless) for key in set(first) - set(second))


def test_task_type_lets_peft_find_the_head(tmp_path: Path) -> None:
    model = bert()
    adapters = attach(model, rank=2, targets="query", heads="classifier")
    save_adapter(adapters, "default", tmp_path, task_type="SEQ_CLS", base_name="somewhere/bert")
    found = load_in_peft(bert(), tmp_path)
    assert type(found).__name__ == "PeftModelForSequenceClassification"
    assert found.peft_config["default"].base_model_name_or_path == "somewhere/bert"


def test_task_type_is_left_out_where_peft_would_miss_its_head(tmp_path: Path) -> None:
    adapters = attach(bert(), rank=2, targets="query")
    with pytest.warns(UserWarning, match="'SEQ_CLS' is left out, since PEFT expects a trained 'classifier'"):
        save_adapter(adapters, "default", tmp_path, task_type="SEQ_CLS")
    assert read_adapter(tmp_path).config["task_type"] is None
    load_in_peft(bert(), tmp_path)


def test_targets_are_told_by_the_fewest_names(tmp_path: Path) -> None:
    save_adapter(attach(bert(), rank=2), "default", tmp_path)
    found = read_adapter(tmp_path).config["target_modules"]
    assert found == sorted(["dense", "key", "query", "value"]), found


def test_an_adapter_saved_under_another_name_is_found(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(target_modules=["query"], init_lora_weights=False, lora_alpha=64, r=2)
        model = peft.get_peft_model(bert(), config, adapter_name="poet").eval()
        model.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    again = bert()
    load_adapter(again, tmp_path)
    assert_equal(output(again), output(model), output(bert()))


def test_half_precision_factors_are_taken_in_float32(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(target_modules=["query"], init_lora_weights=False, lora_alpha=64, r=2)
        model = peft.get_peft_model(bert().bfloat16(), config, autocast_adapter_dtype=False).eval()
        model.save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in read_adapter(tmp_path).tensors.values()} == {torch.bfloat16}
    again = bert()
    adapters = load_adapter(again, tmp_path)
    assert {parameter.dtype for parameter in adapters.parameters()} == {torch.float32}
    assert_equal(output(again), output(load_in_peft(bert(), tmp_path)), output(bert()))
