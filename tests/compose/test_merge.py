"""Merged checkpoints of real classes: they load, they answer as base + adapter, and nothing else in them changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.compose.checkpoints import classifier, load, logits, save_adapter, save_model, weights
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
)

from loraloom.compose.merge import MergeJob, MergeReport, merge
from loraloom.compose.weights import Weighted
from loraloom.errors import ConfigError
from loraloom.formats import load_any

AUTO = {
    "gpt2": AutoModelForCausalLM,
    "llama": AutoModelForCausalLM,
    "mixtral": AutoModelForCausalLM,
    "t5": AutoModelForSeq2SeqLM,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "stored transposed": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "a shared embedding changed alone": ("gpt2", {"target_modules": ["wte"]}),
    "a shared output layer changed alone": ("gpt2", {"target_modules": ["lm_head", "c_attn"]}),
    "all linear": ("llama", {"target_modules": "all-linear"}),
    "rsLoRA with patterns": (
        "llama",
        {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "rank_pattern": {"v_proj": 2}},
    ),
    "experts stored one by one": (
        "mixtral",
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        },
    ),
    "encoder and decoder": ("t5", {"target_modules": ["q", "v", "wo"]}),
    "a head that is kept": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
}


def job(base: Path, adapter: Path, out: Path, weight: float = 1.0, **settings: Any) -> MergeReport:
    return merge(MergeJob(str(base), (Weighted(adapter, weight),), out, **settings))


@pytest.mark.parametrize("case", CASES)
def test_the_merged_model_answers_as_the_adapted_one(case: str, tmp_path: Path) -> None:
    name, config = CASES[case]
    base = save_model(name, tmp_path / "base")
    adapted = save_adapter(load(AUTO[name], base), tmp_path / "adapter", **config)
    wanted, plain = logits(adapted), logits(load(AUTO[name], base))

    report = job(base, tmp_path / "adapter", tmp_path / "out")

    assert report.holds and report.outputs is not None
    found = logits(load(AUTO[name], tmp_path / "out"))
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    assert float((found - plain).norm() / wanted.norm()) > 1e-2


@pytest.mark.parametrize("config", [{"target_modules": ["query"], "bias": "all"}, {"lora_bias": True}], ids=str)
def test_biases(config: dict[str, Any], tmp_path: Path) -> None:
    base = save_model("bert", tmp_path / "base")
    adapted = save_adapter(load(AutoModel, base), tmp_path / "adapter", **{"target_modules": ["query"], **config})
    report = job(base, tmp_path / "adapter", tmp_path / "out")
    assert report.holds
    wanted, found = logits(adapted.get_base_model()), logits(load(AutoModel, tmp_path / "out"))
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_unchanged_tensors_and_the_index_are_the_bases(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base")
    save_adapter(load(AutoModelForCausalLM, base), tmp_path / "adapter", target_modules=["q_proj"])
    report = job(base, tmp_path / "adapter", tmp_path / "out", check="layers")
    before, after = weights(base), weights(tmp_path / "out")
    changed = {one.name for one in report.written}
    assert changed == {f"model.layers.{number}.self_attn.q_proj.weight" for number in range(2)}
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) == (name not in changed) for name in before)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    old = json.loads((base / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == old["weight_map"]
    assert index["metadata"]["total_size"] == old["metadata"]["total_size"]
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "out" / file, "pt") as stream:
            assert name in stream.keys()  # noqa: SIM118 an open file is no mapping
    assert (tmp_path / "out" / "generation_config.json").is_file()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_each_tensor_keeps_its_dtype_and_the_rounding_is_told(dtype: torch.dtype, tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base", dtype=dtype)
    model = load(AutoModelForCausalLM, base, dtype=dtype)
    exact = {name: tensor.double() for name, tensor in weights(base).items()}
    adapted = save_adapter(model, tmp_path / "adapter", target_modules="all-linear", size=0.02)
    report = job(base, tmp_path / "adapter", tmp_path / "out", check="layers")
    after = weights(tmp_path / "out")
    assert all(tensor.dtype == dtype for tensor in after.values())
    for one in report.written:
        path = one.name.removesuffix(".weight")
        layer = adapted.get_base_model().get_submodule(path)
        update = layer.get_delta_weight("default").detach().double()
        error = (after[one.name].double() - exact[one.name] - update).norm()
        assert one.rounding.of_update == pytest.approx(float(error / update.norm()), rel=1e-3)
        assert one.rounding.of_weight == pytest.approx(float(error / exact[one.name].norm()), rel=1e-3)
    assert report.written[0].rounding.of_update == max(one.rounding.of_update for one in report.written)


def test_rounding_that_eats_the_update_is_a_warning(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base", dtype=torch.bfloat16)
    save_adapter(
        load(AutoModelForCausalLM, base, dtype=torch.bfloat16), tmp_path / "a", target_modules=["q_proj"], size=0.002
    )
    report = job(base, tmp_path / "a", tmp_path / "out", check="layers")
    assert any("eats" in note for note in report.notes)
    kept = job(base, tmp_path / "a", tmp_path / "out32", check="layers", dtype="fp32")
    assert kept.rounding.of_update < 1e-3 and not any("eats" in note for note in kept.notes)
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "out32").values())
    assert json.loads((tmp_path / "out32" / "config.json").read_text())["dtype"] == "float32"


def test_an_update_that_rounding_leaves_nothing_of_is_no_merge(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base", dtype=torch.bfloat16)
    model = load(AutoModelForCausalLM, base, dtype=torch.bfloat16)
    save_adapter(model, tmp_path / "a", target_modules=["q_proj"], size=1e-9)
    report = job(base, tmp_path / "a", tmp_path / "out", check="layers")
    assert not report.moved and not report.holds
    assert not (tmp_path / "out").exists()


def test_a_new_head_and_its_labels_come_with_the_checkpoint(tmp_path: Path) -> None:
    base = save_model("bert", tmp_path / "base")
    adapted = save_adapter(
        classifier(base), tmp_path / "adapter", task_type="SEQ_CLS", target_modules=["query", "word_embeddings"]
    )
    wanted = logits(adapted)
    report = job(base, tmp_path / "adapter", tmp_path / "out")
    assert report.holds and report.class_name == "BertForSequenceClassification"
    merged = load(AutoModelForSequenceClassification, tmp_path / "out")
    assert isinstance(merged, BertForSequenceClassification) and merged.config.num_labels == 5
    assert float((logits(merged) - wanted).norm() / wanted.norm()) < 1e-5


def test_several_adapters_each_by_its_weight_and_its_blocks(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base")
    for number, target in enumerate((["q_proj", "v_proj"], ["q_proj", "up_proj"])):
        model = load(AutoModelForCausalLM, base)
        save_adapter(model, tmp_path / f"a{number}", target_modules=target, seed=number + 3)
    chosen = (Weighted(tmp_path / "a0", 0.7, {"*.layers.1.*": 0.5}), Weighted(tmp_path / "a1", -0.4))
    report = merge(MergeJob(str(base), chosen, tmp_path / "out"))
    assert report.holds

    model = load(AutoModelForCausalLM, base)
    for number, one in enumerate(chosen):
        adapters = load_any(model, one.path, name=f"a{number}")
        sites = adapters.plan(f"a{number}").sites
        adapters.set_site_weights(f"a{number}", {site.path: one.at(site.path) / one.weight for site in sites})
    adapters.activate({"a0": 0.7, "a1": -0.4})
    wanted, found = logits(model), logits(load(AutoModelForCausalLM, tmp_path / "out"))
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_the_opposite_weight_takes_an_adapter_out_again(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base")
    save_adapter(load(AutoModelForCausalLM, base), tmp_path / "adapter", target_modules="all-linear")
    assert job(base, tmp_path / "adapter", tmp_path / "once", check="layers").holds
    assert job(tmp_path / "once", tmp_path / "adapter", tmp_path / "back", -1.0, check="layers").holds
    before, after = weights(base), weights(tmp_path / "back")
    for name, tensor in before.items():
        assert float((after[name] - tensor).norm()) <= 2e-7 * float(weights(tmp_path / "once")[name].norm() + 1)


def test_one_bare_file(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base", shard="1GB")
    save_adapter(load(AutoModelForCausalLM, base), tmp_path / "adapter", target_modules=["q_proj"])
    whole = job(base, tmp_path / "adapter", tmp_path / "folder", check="layers")
    single = job(base / "model.safetensors", tmp_path / "adapter", tmp_path / "out.safetensors")
    assert whole.holds and single.holds and single.files == ("",)
    folder, (file,) = weights(tmp_path / "folder"), tmp_path.glob("*.safetensors")
    assert all(torch.equal(tensor, folder[name]) for name, tensor in weights(file.parent).items())


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base")
    save_adapter(load(AutoModelForCausalLM, base), tmp_path / "adapter", target_modules=["q_proj"])
    report = job(base, tmp_path / "adapter", tmp_path / "out", dry_run=True)
    assert len(report.written) == 2 and report.size == sum(t.numel() * 4 for t in weights(base).values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_jobs_that_mean_nothing(tmp_path: Path) -> None:
    adapter = Weighted(tmp_path)
    for settings, words in (
        ({"adapters": ()}, "no adapter to merge"),
        ({"adapters": (Weighted(tmp_path, 0.0),)}, "weight 0"),
        ({"dtype": "f16"}, "did you mean 'fp16'"),
        ({"check": "output"}, "did you mean 'outputs'"),
    ):
        with pytest.raises(ConfigError, match=words):
            MergeJob(**{"base": "b", "adapters": (adapter,), "out": tmp_path, **settings})


@pytest.mark.parametrize("case", ["stored transposed", "all linear", "rsLoRA with patterns", "encoder and decoder"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_are_those_of_pefts_own_merge(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    name, config = CASES[case]
    base = save_model(name, tmp_path / "base", dtype=dtype)
    adapted = save_adapter(load(AUTO[name], base), tmp_path / "adapter", **config)
    job(base, tmp_path / "adapter", tmp_path / "out")
    theirs = adapted.merge_and_unload().state_dict()
    ours = load(AUTO[name], tmp_path / "out").state_dict()
    assert ours.keys() == theirs.keys()
    unit = torch.finfo(dtype).eps
    for key, tensor in theirs.items():
        # PEFT adds in the weight's dtype where ours adds in float32: one rounding of it apart at most
        assert torch.allclose(ours[key].float(), tensor.float(), rtol=2 * unit, atol=unit), key
