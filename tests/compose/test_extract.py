"""An adapter from two checkpoints of transformers: it is the difference, and tells what it is not."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.compose.extract_models import bert, change, change_layers, gpt2, llama, pair, save, tokens
from torch import Tensor

from loraloom.compose.checkpoint.opened import Checkpoint, CheckpointTensors
from loraloom.compose.extract import writing as extract_write
from loraloom.compose.extract.extracting import ExtractJob, ExtractReport, extract
from loraloom.errors import FormatError
from loraloom.formats import load_any, read_any
from loraloom.formats.updates import updates_of
from loraloom.tasks.models.loading import silent


def run(tuned: Path, base: Path, out: Path, **settings: Any) -> ExtractReport:
    return extract(ExtractJob(str(tuned), str(base), out, **{"rank": 3, **settings}))


def deltas(folder: Path) -> dict[str, Tensor]:
    return {path: update.delta() for path, update in updates_of(read_any(folder))[0].items()}


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def with_adapter(base: Any, folder: Path) -> Any:
    load_any(base, folder)
    return base.eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(tokens()).logits
    return result


# -- it is the difference -----------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [None, "20KB"])
def test_a_low_rank_change_comes_out_as_it_was(shards: str | None, tmp_path: Path) -> None:
    tuned, base, model, changes = pair(tmp_path, llama, change_layers, shards=shards)
    report = run(tuned, base, tmp_path / "out")
    found = deltas(tmp_path / "out")
    assert set(found) == set(changes) == {site.path for site in report.sites}
    assert len(changes) == 15  # seven layers in each of two blocks, and the output head
    for path, wanted in changes.items():
        assert relative(found[path], wanted) <= 1e-5, path
    assert relative(logits(with_adapter(llama(), tmp_path / "out")), logits(model)) <= 1e-5
    assert report.carried > 1 - 1e-9 and not report.others and not report.new
    assert report.compared == len(model.state_dict()) and report.unchanged == report.compared - 15
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base) and config["task_type"] == "CAUSAL_LM"
    assert json.loads((tmp_path / "out" / "extract.json").read_text()) == json.loads(json.dumps(report.to_json()))
    assert "LoRA adapter from a fine-tuned checkpoint" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("library", ["peft", "loraloom"])
def test_full_rank_gives_the_tuned_outputs(library: str, tmp_path: Path) -> None:
    def tune(model: Any) -> None:
        change_layers(model, rank=32)
        change(model.transformer.ln_f.weight)
        change(model.transformer.h[0].attn.c_attn.bias)
        change(model.transformer.h[1].ln_2.bias)

    tuned, base, model, _ = pair(tmp_path, gpt2, tune)
    report = run(
        tuned, base, tmp_path / "out", rank=1000, targets=("c_attn", "c_proj", "c_fc", "wte"), keep_others=True
    )
    if library == "peft":
        peft = pytest.importorskip("peft")
        found = peft.PeftModel.from_pretrained(gpt2(), tmp_path / "out").eval()
    else:
        found = with_adapter(gpt2(), tmp_path / "out")
    assert relative(logits(found), logits(model)) <= 1e-5
    assert relative(logits(gpt2()), logits(model)) > 0.1
    # GPT-2's output head is its embedding: the change of the one tensor acts in both places.
    assert {"transformer.wte"} <= {site.path for site in report.sites} and report.carried > 1 - 1e-9
    assert {other.reason for other in report.others} == {"a norm", "a bias"} and not report.lost


def test_conv1d_of_gpt2_is_stored_the_other_way_round(tmp_path: Path) -> None:
    tuned, base, model, changes = pair(tmp_path, gpt2, lambda m: change_layers(m, skip=("lm_head",)))
    report = run(tuned, base, tmp_path / "out")
    assert {site.kind for site in report.sites} == {"conv1d-transposed"}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is True and config["target_modules"] == ["c_attn", "c_fc", "c_proj"]
    found = deltas(tmp_path / "out")
    for path, wanted in changes.items():
        assert relative(found[path].t(), wanted) <= 1e-5
    assert relative(logits(with_adapter(gpt2(), tmp_path / "out")), logits(model)) <= 1e-5


def test_embeddings_on_request(tmp_path: Path) -> None:
    def tune(model: Any) -> None:
        with torch.no_grad():
            model.model.embed_tokens.weight += torch.randn(60, 2) @ torch.randn(2, 32)
        change_layers(model, skip=("lm_head", "mlp"))

    tuned, base, model, _ = pair(tmp_path, llama, tune)
    left = run(tuned, base, tmp_path / "left")
    assert [(other.path, other.kept) for other in left.others] == [("model.embed_tokens.weight", False)]
    assert "not among the targets" in left.others[0].reason
    whole = run(tuned, base, tmp_path / "whole", targets=("*",), energy=0.999999)
    assert not whole.others
    assert {site.path: site.rank for site in whole.sites}["model.embed_tokens"] == 2
    assert relative(logits(with_adapter(llama(), tmp_path / "whole")), logits(model)) <= 1e-4


def test_targets_choose_layers(tmp_path: Path) -> None:
    tuned, base, _, changes = pair(tmp_path, llama, change_layers)
    report = run(tuned, base, tmp_path / "out", targets=("q_proj", "re:.*1\\.mlp\\.up_proj"))
    assert {site.path for site in report.sites} == {
        *(f"model.layers.{block}.self_attn.q_proj" for block in (0, 1)),
        "model.layers.1.mlp.up_proj",
    }
    assert len(report.lost) == len(changes) - 3
    assert run(tuned, base, tmp_path / "all", targets=("all-linear",)).lost[0].path == "lm_head.weight"


# -- what is lost -------------------------------------------------------------------------------------


def test_the_share_lost_is_that_of_the_dense_matrices(tmp_path: Path) -> None:
    def tune(model: Any) -> None:
        for parameter in model.parameters():
            change(parameter, seed=parameter.numel())

    tuned, base, model, _ = pair(tmp_path, llama, tune)
    report = run(tuned, base, tmp_path / "out", rank=5)
    before, after = llama().state_dict(), model.state_dict()
    lost = total = 0.0
    for site in report.sites:
        delta = (after[f"{site.path}.weight"] - before[f"{site.path}.weight"]).double()
        values = torch.linalg.svdvals(delta)
        assert site.norm == pytest.approx(float(delta.norm()), rel=1e-6)
        assert site.left_out == pytest.approx(float(values[5:].norm() / values.norm()), rel=1e-5)
        assert site.change == pytest.approx(float(delta.norm() / before[f"{site.path}.weight"].norm()), rel=1e-5)
        lost += float(values[5:].square().sum())
    total = sum(float((after[key] - before[key]).double().square().sum()) for key in before)
    lost += sum(other.norm**2 for other in report.others)
    assert report.carried == pytest.approx(1 - lost / total, rel=1e-5)
    assert [site.left_out for site in report.sites] == sorted((s.left_out for s in report.sites), reverse=True)
    assert len(report.lost) == 6  # the embedding, and the norms


def test_energy_picks_the_rank_of_each_layer(tmp_path: Path) -> None:
    tuned, base, model, _ = pair(tmp_path, llama, lambda m: change_layers(m, rank=6))
    report = run(tuned, base, tmp_path / "out", rank=None, energy=0.8)
    before, after = llama().state_dict(), model.state_dict()
    for site in report.sites:
        shares = torch.linalg.svdvals((after[f"{site.path}.weight"] - before[f"{site.path}.weight"]).double())
        kept = shares.square().cumsum(0) / shares.square().sum()
        assert site.rank == int((kept < 0.8).sum()) + 1
    assert len({site.rank for site in report.sites}) > 1
    found = with_adapter(llama(), tmp_path / "out")
    assert torch.isfinite(logits(found)).all()
    capped = run(tuned, base, tmp_path / "capped", rank=2, energy=0.99)
    assert {site.rank for site in capped.sites} == {2}
    assert any("keep less than 99 % at the largest rank" in note for note in capped.notes)


def test_the_written_precision_is_part_of_what_is_lost(tmp_path: Path) -> None:
    tuned, base, _, changes = pair(tmp_path, llama, change_layers)
    report = run(tuned, base, tmp_path / "out", dtype="bf16")
    found = deltas(tmp_path / "out")
    assert all(
        tensor.dtype == torch.bfloat16 for tensor in load_file(tmp_path / "out/adapter_model.safetensors").values()
    )
    for site in report.sites:
        assert site.left_out == pytest.approx(relative(found[site.path], changes[site.path]), rel=1e-2)
        assert 1e-4 < site.left_out < 1e-2


def test_bf16_checkpoints_in_shards(tmp_path: Path) -> None:
    tuned, base, model, _ = pair(tmp_path, llama, change_layers, dtype=torch.bfloat16, shards="8KB")
    report = run(tuned, base, tmp_path / "out", rank=1000)
    before, after = save_and_read(base), model.state_dict()
    found = deltas(tmp_path / "out")
    for site in report.sites:
        key = f"{site.path}.weight"
        assert relative(found[site.path], after[key].double() - before[key].double()) <= 1e-5
    assert len(Checkpoint.open(tuned).shards) > 3


def save_and_read(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_rounding_to_another_dtype_is_no_change(tmp_path: Path) -> None:
    base = save(llama(), tmp_path / "base")
    model = llama()
    change_layers(model, skip=("mlp", "lm_head", "1.self_attn"))
    tuned = save(model, tmp_path / "tuned", torch.bfloat16)
    report = run(tuned, base, tmp_path / "out")
    assert {site.path.split(".")[2] for site in report.sites} == {"0"} and len(report.sites) == 4
    assert any("bfloat16 where the base holds float32" in note for note in report.notes)


# -- what is no matrix --------------------------------------------------------------------------------


def tune_bert(model: Any) -> None:
    change_layers(model, skip=("classifier",))
    change(model.bert.encoder.layer[0].output.LayerNorm.weight)
    change(model.bert.encoder.layer[1].attention.self.query.bias)


def bert_pair(tmp_path: Path) -> tuple[Path, Path, Any]:
    """The base without a head, its names without "bert."; the tuned one with a new classifier."""
    base = save(bert().bert, tmp_path / "base")
    model = bert()
    tune_bert(model)
    change(model.classifier.weight)
    return save(model, tmp_path / "tuned"), base, model


@pytest.mark.parametrize("library", ["peft", "loraloom"])
def test_a_new_head_norms_and_biases_are_carried_on_request(library: str, tmp_path: Path) -> None:
    tuned, base, model = bert_pair(tmp_path)
    report = run(tuned, base, tmp_path / "out", keep_others=True)
    assert {entry.path: entry.kept for entry in report.new} == {"classifier.weight": True, "classifier.bias": True}
    assert not report.lost and len(report.others) == 2
    fresh = bert(seed=0)
    with torch.no_grad():
        fresh.classifier.weight.zero_()
    if library == "peft":
        peft = pytest.importorskip("peft")
        found = peft.PeftModel.from_pretrained(fresh, tmp_path / "out").eval()
    else:
        found = with_adapter(fresh, tmp_path / "out")
    assert relative(logits(found), logits(model)) <= 1e-5
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["bert.encoder.layer.0.output.LayerNorm", "classifier"]
    assert config["bias"] == "lora_only" and config["task_type"] == "SEQ_CLS"


def test_without_the_request_they_are_told_as_lost(tmp_path: Path) -> None:
    tuned, base, _ = bert_pair(tmp_path)
    report = run(tuned, base, tmp_path / "out")
    assert {(other.reason, other.kept) for other in report.others} == {("a norm", False), ("a bias", False)}
    assert not any(entry.kept for entry in report.new)
    assert any("the base does not have 'classifier.bias'" in note for note in report.notes)
    assert report.carried < 1
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["bias"] == "none" and "modules_to_save" not in config and config["task_type"] is None


def test_biases_alone(tmp_path: Path) -> None:
    def tune(model: Any) -> None:
        change(model.bert.encoder.layer[1].attention.self.query.bias)

    tuned, base, model, _ = pair(tmp_path, bert, tune)
    report = run(tuned, base, tmp_path / "out", keep_others=True)
    assert not report.sites and report.carried == 1.0
    assert relative(logits(with_adapter(bert(), tmp_path / "out")), logits(model)) <= 1e-6


def test_resized_embeddings_are_carried_whole(tmp_path: Path) -> None:
    base = save(gpt2(), tmp_path / "base")
    model = gpt2()
    change_layers(model, skip=("lm_head",))
    with silent():
        model.resize_token_embeddings(53)
    tuned = save(model, tmp_path / "tuned")
    left = run(tuned, base, tmp_path / "left")
    assert [(entry.path, entry.shape, entry.base_shape, entry.kept) for entry in left.new] == [
        ("transformer.wte.weight", (53, 32), (50, 32), False)
    ]
    run(tuned, base, tmp_path / "out", keep_others=True)
    fresh = gpt2()
    with silent():
        fresh.resize_token_embeddings(53)
    assert relative(logits(with_adapter(fresh, tmp_path / "out")), logits(model)) <= 1e-5


def test_what_the_base_alone_has_is_told(tmp_path: Path) -> None:
    base = save(bert(), tmp_path / "base")
    model = bert()
    tune_bert(model)
    tuned = save(model.bert, tmp_path / "tuned")
    report = run(tuned, base, tmp_path / "out")
    assert set(report.missing) == {"classifier.weight", "classifier.bias"}
    assert {site.path for site in report.sites} >= {"encoder.layer.0.attention.self.query"}


def test_bare_files_are_told_by_names_and_shapes(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.randn(8, 6), "token_embedding.weight": torch.randn(9, 4), "norm.weight": torch.ones(4)}
    save_file(tensors, tmp_path / "base.safetensors")
    changed = {key: tensor + torch.randn(tensor.shape) for key, tensor in tensors.items()}
    save_file(changed, tmp_path / "tuned.safetensors")
    report = run(
        tmp_path / "tuned.safetensors", tmp_path / "base.safetensors", tmp_path / "out", rank=6, targets=("*",)
    )
    assert {site.path: site.kind for site in report.sites} == {"a": "linear", "token_embedding": "embedding"}
    assert any("told by their names and shapes" in note for note in report.notes)
    found = deltas(tmp_path / "out")
    assert relative(found["a"], changed["a.weight"] - tensors["a.weight"]) <= 1e-5


# -- how it is done -----------------------------------------------------------------------------------


def test_one_tensor_of_each_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned, base, _, _ = pair(tmp_path, llama, change_layers, shards="20KB")
    alive: list[Any] = []
    most, reads = 0, []
    original = CheckpointTensors.__getitem__

    def counted(self: CheckpointTensors, name: str) -> Tensor:
        nonlocal most
        tensor = original(self, name)
        alive[:] = [one for one in alive if one() is not None]
        alive.append(weakref.ref(tensor))
        most = max(most, len(alive))
        reads.append(name)
        return tensor

    monkeypatch.setattr(CheckpointTensors, "__getitem__", counted)
    report = run(tuned, base, tmp_path / "out")
    assert most == 2 and len(reads) == 2 * report.compared


def test_a_file_that_is_not_the_difference_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned, base, _, _ = pair(tmp_path, llama, change_layers)
    original = extract_write.read_back

    def damaged(*arguments: Any) -> Any:
        file = original(*arguments)
        tensors = {key: file.tensors[key].clone() for key in file.tensors}
        tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"][0, 0] += 0.1
        return type(file)(file.config, tensors, file.metadata, file.path)

    monkeypatch.setattr(extract_write, "read_back", damaged)
    with pytest.raises(FormatError, match="'model.layers.0.mlp.up_proj' differs by"):
        run(tuned, base, tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["base", "tuned"]


def test_same_bytes_again(tmp_path: Path) -> None:
    tuned, base, _, _ = pair(tmp_path, llama, change_layers)
    for name in ("one", "two"):
        run(tuned, base, tmp_path / name)
    one, two = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_progress_and_dry_run(tmp_path: Path) -> None:
    tuned, base, model, _ = pair(tmp_path, llama, change_layers)
    told: list[tuple[int, int]] = []
    run(tuned, base, tmp_path / "out", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (sum(p.numel() for p in model.parameters()),) * 2
    (tuned / "model.safetensors").write_bytes((tuned / "model.safetensors").read_bytes())
    plan = run(tuned, base, tmp_path / "dry", dry_run=True)
    assert not plan.written and len(plan.sites) == 15 and not (tmp_path / "dry").exists()
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert plan.size == sum(tensor.numel() * 4 for tensor in stored.values())
