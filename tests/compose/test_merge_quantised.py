"""A base of bitsandbytes merged on purpose: the dense copy is what the quantised weights stand for, and the update."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.compose.checkpoints import load, quietly, save_adapter, save_model, weights
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from loraloom.adapters.quantized import dense_weight
from loraloom.compose.merge import MergeJob, merge
from loraloom.compose.weights import Weighted
from loraloom.errors import BaseModelError

pytest.importorskip("bitsandbytes")


def test_a_base_of_four_bits(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base", shard="1GB")
    save_adapter(load(AutoModelForCausalLM, base), tmp_path / "adapter", target_modules=["gate_proj"])
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    quantised = load(AutoModelForCausalLM, base, quantization_config=settings, dtype=torch.float32)
    with quietly():
        quantised.save_pretrained(tmp_path / "nf4")
    job = MergeJob(str(tmp_path / "nf4"), (Weighted(tmp_path / "adapter"),), tmp_path / "out")
    with pytest.raises(BaseModelError, match="--dequantize"):
        merge(job)
    report = merge(MergeJob(job.base, job.adapters, job.out, dequantize=True))
    assert report.holds and any("written out" in note for note in report.notes)
    merged = load(AutoModelForCausalLM, tmp_path / "out")
    before = dense_weight(quantised.model.layers[0].mlp.up_proj)
    assert torch.equal(merged.model.layers[0].mlp.up_proj.weight, before)
    name = "model.layers.0.mlp.gate_proj.weight"
    moved = weights(tmp_path / "out")[name] - dense_weight(quantised.model.layers[0].mlp.gate_proj)
    exact = save_adapter(load(AutoModelForCausalLM, base), tmp_path / "again", target_modules=["gate_proj"])
    update = exact.get_base_model().model.layers[0].mlp.gate_proj.get_delta_weight("default").detach()
    assert float((moved - update).norm()) < 1e-5 * float(update.norm())
