"""Bases in eight and four bits: what is loaded, what stays whole, what is refused, and a run over each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from loraloom.adapters import attach
from loraloom.adapters.quantized import dense_weight, is_quantized
from loraloom.errors import ConfigError, MissingExtraError
from loraloom.tasks import create_task
from loraloom.tasks.models import quantized
from loraloom.tasks.models.quantized import WAYS, modules_to_not_convert, quantization_settings, quantized_layers
from loraloom.training import results
from loraloom.training.config import load_config
from loraloom.training.run import train

pytest.importorskip("torchao")
pytest.importorskip("bitsandbytes")

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 32,
    "max_position_embeddings": 24,
    "initializer_range": 0.2,
}
every_way = pytest.mark.parametrize("how", WAYS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small encoder and decoder whose widths four bits can be grouped over, with a tokenizer, as folders."""
    from tests.tasks.conftest import FAMILIES, make_tokenizer

    root = tmp_path_factory.mktemp("wide-bases")
    torch.manual_seed(3)
    models = {
        "bert": BertForSequenceClassification(BertConfig(pad_token_id=1, **SMALL)),
        "llama": LlamaForSequenceClassification(
            LlamaConfig(eos_token_id=0, bos_token_id=None, pad_token_id=0, **SMALL)
        ),
        "gpt2": GPT2ForSequenceClassification(
            GPT2Config(vocab_size=32, n_positions=24, n_embd=64, n_layer=1, n_head=2, eos_token_id=0, pad_token_id=0)
        ),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        make_tokenizer(FAMILIES[name].special).save_pretrained(root / name)
    return {name: root / name for name in models}


def load(folder: Path, how: str | None, dtype: torch.dtype = torch.float32) -> nn.Module:
    settings = {} if how is None else {"quantization_config": quantization_settings(how, dtype)}
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, **settings).eval()


def batch() -> dict[str, Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(4, 20, (3, 7))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@every_way
@dtypes
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_inner_layers_are_quantised_heads_are_not_and_adapters_learn_over_them(
    bases: dict[str, Path], family: str, how: str, dtype: torch.dtype
) -> None:
    model = load(bases[family], how, dtype)
    plain = load(bases[family], None)
    held = {path for path, module in model.named_modules() if is_quantized(getattr(module, "weight", torch.ones(1)))}
    linear = {path for path, module in plain.named_modules() if isinstance(module, nn.Linear)}
    assert held and held == {path for path in linear if ".layer" in path}
    for path in held:
        one, two = dense_weight(model.get_submodule(path)).float(), plain.get_submodule(path).weight
        assert (one - two).norm() / two.norm() < (0.02 if how == "int8" else 0.2)
    base = model(**batch()).logits.float()
    apart = (base - plain(**batch()).logits).norm() / base.norm()
    assert 0 < apart < (0.15 if how == "int8" else 1.0)
    adapters = attach(model, rank=4, targets="all-linear")
    with torch.no_grad():  # bitsandbytes would repack its layers here, and pass no gradient on from then
        assert torch.allclose(model(**batch()).logits.float(), base, atol=1e-3 if dtype == torch.float32 else 0.1)
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(**batch()).logits.float(), torch.tensor([0, 1, 0]))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    first = next(name for name, _ in adapters.named_parameters("default") if name.endswith("|B"))
    assert adapters.tensors("default")[first].abs().max() > 1e-3, "the first layer's update learnt nothing"


def test_bitsandbytes_layers_keep_their_gradient_after_an_evaluation(bases: dict[str, Path]) -> None:
    model = load(bases["llama"], "nf4", torch.bfloat16).requires_grad_(False)
    with torch.no_grad():
        model(**batch())
    embedded = model.get_input_embeddings()(batch()["input_ids"]).detach().requires_grad_(True)
    logits = model(inputs_embeds=embedded, attention_mask=batch()["attention_mask"]).logits
    for layer in (module for module in model.modules() if type(module).__name__ == "Linear4bit"):
        assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
    logits.float().sum().backward()
    assert embedded.grad is not None and embedded.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("path", "whole"),
    [
        ("classifier", True),
        ("classifier.out_proj.weight", True),
        ("model.decoder.lm_head.weight", True),
        ("bert.pooler.dense", True),
        ("model.layers.0.mlp.gate.weight", True),
        ("model.layers.0.mlp.gate_proj.weight", False),
        ("bert.encoder.layer.10.attention.self.query", False),
        ("model.heads_up.linear", False),
        ("mine.inner", True),
        ("model.mine", True),
    ],
)
def test_which_modules_stay_whole(path: str, whole: bool) -> None:
    from transformers.quantizers.quantizers_utils import should_convert_module

    assert should_convert_module(path, modules_to_not_convert(["mine"])) is not whole


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("int3", torch.float32), "quantize: 'int3' is unknown, int8, int4, nf4 can be used; did you mean 'int"),
        (("int8", torch.float32, torch.device("mps")), "'int8' cannot be had on mps; take device: cpu"),
        (("nf4", torch.float16), "'nf4' computes in float32 or bfloat16, not in float16"),
    ],
)
def test_what_cannot_be_had_is_refused_in_a_sentence(arguments: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        quantization_settings(*arguments)


@pytest.mark.parametrize(
    ("how", "absent", "named"),
    [
        ("nf4", {"bitsandbytes"}, "bitsandbytes"),
        ("int4", {"torchao"}, "torchao"),
        ("int8", {"torchao", "bitsandbytes"}, "torchao or bitsandbytes"),
    ],
)
def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, how: str, absent: set[str], named: str) -> None:
    found = quantized._library
    monkeypatch.setattr(quantized, "_library", lambda name: None if name.split(".")[0] in absent else found(name))
    with pytest.raises(MissingExtraError) as caught:
        quantization_settings(how, torch.float32)
    assert str(caught.value) == f"quantize: '{how}' needs {named}: pip install \"loraloom[quantize]\""


def test_eight_bits_come_from_bitsandbytes_where_there_is_no_torchao(
    monkeypatch: pytest.MonkeyPatch, bases: dict[str, Path]
) -> None:
    found = quantized._library
    monkeypatch.setattr(quantized, "_library", lambda name: None if name.startswith("torchao") else found(name))
    model = load(bases["bert"], "int8")
    assert {type(module).__name__ for module in model.bert.encoder.modules() if is_linear(module)} == {"Linear8bitLt"}
    assert quantized_layers(model, "int8") == "12 of 14 linear layers hold their weights as int8"


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def test_what_is_quantised_is_told_and_nothing_at_all_is_refused(bases: dict[str, Path]) -> None:
    assert quantized_layers(load(bases["bert"], "nf4"), "nf4") == "12 of 14 linear layers hold their weights as nf4"
    assert "keeps each of them in a byte" in quantized_layers(load(bases["bert"], "int4"), "int4")
    transposed = load(bases["gpt2"], "int8")
    with pytest.raises(ConfigError, match="'int8' fits no layer of GPT2ForSequenceClassification.*Conv1D.*take nf4"):
        quantized_layers(transposed, "int8")
    assert "4 of 5" in quantized_layers(load(bases["gpt2"], "nf4"), "nf4")


def test_widths_that_bitsandbytes_gets_wrong_on_a_cpu_are_refused(tmp_path: Path) -> None:
    narrow = {**SMALL, "intermediate_size": 96}
    BertForSequenceClassification(BertConfig(pad_token_id=1, **narrow)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="multiples of 64, but 'bert.encoder.layer.0.output.dense' takes 96"):
        quantized_layers(load(tmp_path, "nf4"), "nf4")
    assert "12 of 14" in quantized_layers(load(tmp_path, "int8"), "int8")


# -- whole runs ----------------------------------------------------------------------------------------


@pytest.fixture
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(results, "draw_curves", lambda path, *_, **__: path.write_bytes(b""))
    yield


def run(folder: Path, base: Path, how: str, **more: Any) -> dict[str, Any]:
    words = ("good", "fine", "liked"), ("bad", "awful", "not")
    rows = [f"the {what} was very {words[n % 2][n % 3]}\t{n % 2}" for n, what in enumerate(["food", "film"] * 24)]
    for name, part in (("train", rows[:36]), ("eval", rows[36:])):
        (folder / f"{name}.tsv").write_text("text\tlabel\n" + "\n".join(part) + "\n")
    overrides = {
        "base": str(base),
        "data.train": str(folder / "train.tsv"),
        "data.eval": str(folder / "eval.tsv"),
        "out": str(folder / "out"),
        "quantize": how,
        "epochs": 2,
        "batch_size": 8,
        "precision": "fp32",
        "learning_rate": 5e-3,
        **more,
    }
    config = load_config(None, overrides)
    return train(config, create_task(config.task, **config.task_options)).record


@every_way
@pytest.mark.usefixtures("_no_picture")
def test_a_run_scores_its_adapter_over_both_bases_and_peft_reads_it(
    tmp_path: Path, bases: dict[str, Path], how: str
) -> None:
    peft = pytest.importorskip("peft")
    record = run(tmp_path, bases["bert"], how)
    assert record["metrics"]["trained"]["accuracy"] > record["metrics"]["base"]["accuracy"]
    beside = next(found for name, found in record["metrics"].items() if name not in ("base", "trained"))
    assert beside["accuracy"] >= 0.75
    assert any(how in note and "unquantised" in note for note in record["notes"])
    assert all(0 < site["relative"] < 10 for site in record["evidence"]["sites"])
    plain = AutoModelForSequenceClassification.from_pretrained(bases["bert"])
    with_peft = peft.PeftModel.from_pretrained(plain, tmp_path / "out").eval()
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["r"] == 8 and "quantization" not in json.dumps(settings)
    from loraloom.formats.peft import load_adapter

    ours = AutoModelForSequenceClassification.from_pretrained(bases["bert"]).eval()
    load_adapter(ours, tmp_path / "out")
    assert torch.allclose(ours(**batch()).logits, with_peft(**batch()).logits, atol=1e-5)
