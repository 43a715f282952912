"""Heads, biases and all else that adapters keep beside their updates; adapters that do not belong together."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.compose.mix_models import TOKENS, adapter, model, outputs
from tests.formats.files import sd1_file

from loraloom.compose.mix import MixJob, mix, plan_mix
from loraloom.compose.sources import open_adapters, short_names
from loraloom.compose.weights import Weighted
from loraloom.errors import ConfigError, FormatError, OutputError
from loraloom.formats.stored import StoredTensors

LINEAR = {"targets": ["linear", "transposed"]}
HEAD = "base_model.model.classifier.weight"


def job(folders: list[Path], out: Path, weights: tuple[float, ...] = (0.7, 0.4), **settings: object) -> MixJob:
    listed = [Weighted(folder, weight) for folder, weight in zip(folders, weights, strict=True)]
    return MixJob(listed, out, **settings)  # type: ignore[arg-type]


# -- heads --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("heads")
    return [adapter(place / f"head{seed}", seed, heads=["classifier"], **LINEAR) for seed in (1, 2)]


def test_different_heads_need_an_owner(heads: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'head1' and 'head2' have different heads 'classifier'.*--head head1 or"):
        mix(job(heads, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    for name, given in (("head2", "head2"), ("head1", str(heads[0]))):
        report = mix(job(heads, tmp_path / name, head=given))
        assert {module: owner.name for module, owner in report.plan.heads.items()} == {"classifier": name}
        own = load_file(heads[int(name[-1]) - 1] / "adapter_model.safetensors")
        found = load_file(tmp_path / name / "adapter_model.safetensors")
        assert torch.equal(found[HEAD], own[HEAD])
    wanted = outputs({"A": (heads[0], 0.7), "B": (heads[1], 0.4)}, head="B")
    assert torch.allclose(outputs(tmp_path / "head2"), wanted, atol=1e-5)
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(model(), tmp_path / "head2")
        assert torch.allclose(theirs(TOKENS), wanted, atol=1e-5)


def test_identical_heads_pass(heads: list[Path], tmp_path: Path) -> None:
    tensors = load_file(heads[1] / "adapter_model.safetensors")
    first = load_file(heads[0] / "adapter_model.safetensors")
    twin = tmp_path / "twin"
    twin.mkdir()
    (twin / "adapter_config.json").write_bytes((heads[1] / "adapter_config.json").read_bytes())
    save_file(tensors | {key: first[key] for key in first if "classifier" in key}, twin / "adapter_model.safetensors")
    report = mix(job([heads[0], twin], tmp_path / "out"))
    assert list(report.plan.heads) == ["classifier"]


def test_a_head_that_only_one_has_comes_along(heads: list[Path], tmp_path: Path) -> None:
    bare = adapter(tmp_path / "bare", 5, **LINEAR)
    mix(job([bare, heads[1]], tmp_path / "out"))
    assert HEAD in load_file(tmp_path / "out" / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match="--head 'bare': it has no head; heads are in 'head2'"):
        mix(job([bare, heads[1]], tmp_path / "other", head="bare"))
    with pytest.raises(
        ConfigError, match=r"--head 'haed2' is none of the adapters \(bare, head2\); did you mean 'head2'"
    ):
        mix(job([bare, heads[1]], tmp_path / "other", head="haed2"))


def test_an_adapter_that_rests_has_no_say_but_may_lend_its_head(heads: list[Path], tmp_path: Path) -> None:
    report = mix(job(heads, tmp_path / "out", (1.0, 0.0)))
    assert report.plan.heads["classifier"].name == "head1" and report.plan.untouched is not None
    lent = mix(job(heads, tmp_path / "lent", (1.0, 0.0), head="head2"))
    assert lent.plan.untouched is None
    found = load_file(tmp_path / "lent" / "adapter_model.safetensors")
    assert torch.equal(found[HEAD], load_file(heads[1] / "adapter_model.safetensors")[HEAD])


# -- biases -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters with the biases of their layers, one without, one with all biases; and the base."""
    place = tmp_path_factory.mktemp("biased")
    folders = [
        adapter(place / "bias1", 1, bias="adapted", **LINEAR),
        adapter(place / "bias2", 2, bias="adapted", **LINEAR),
        adapter(place / "plain", 3, targets=["linear", "conv1"]),
        adapter(place / "all", 4, bias="all", **LINEAR),
    ]
    save_file(model().state_dict(), place / "base.safetensors")
    return [*folders, place / "base.safetensors"]


def both(folders: list[Path], weights: tuple[float, float]) -> torch.Tensor:
    return outputs({"A": (folders[0], weights[0]), "B": (folders[1], weights[1])})


def test_biases_of_weights_that_sum_to_1_need_no_base(biased: list[Path], tmp_path: Path) -> None:
    for weights in ((0.6, 0.4), (1.5, -0.5)):
        out = tmp_path / str(weights[0])
        report = mix(job(biased[:2], out, weights))
        assert {bias.path for bias in report.plan.biases} == {"linear.bias", "transposed.bias"}
        assert torch.allclose(outputs(out), both(biased[:2], weights), atol=1e-5)
        with torch.no_grad():
            theirs = peft.PeftModel.from_pretrained(model(), out)(TOKENS)
        assert torch.allclose(theirs, both(biased[:2], weights), atol=1e-5)


def test_biases_of_other_weights_need_the_base(biased: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the bias 'linear.bias' is kept whole by 'bias1' and 'bias2'.*1.1 in sum"):
        mix(job(biased[:2], tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    mix(job(biased[:2], tmp_path / "out", base=biased[-1]))
    assert torch.allclose(outputs(tmp_path / "out"), both(biased[:2], (0.7, 0.4)), atol=1e-5)


def test_a_layer_whose_bias_nobody_trained_needs_the_bases(biased: list[Path], tmp_path: Path) -> None:
    folders = [biased[0], biased[2]]
    with pytest.raises(ConfigError, match=r"the bias 'conv1\.bias' is kept whole by other layers.*--base"):
        mix(job(folders, tmp_path / "out", (1.0, 0.4)))
    mix(job(folders, tmp_path / "out", (1.0, 0.4), base=biased[-1]))
    assert torch.allclose(outputs(tmp_path / "out"), both(folders, (1.0, 0.4)), atol=1e-5)


def test_all_biases(biased: list[Path], tmp_path: Path) -> None:
    folders = [biased[3], biased[0]]
    mix(job(folders, tmp_path / "out", base=biased[-1]))
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["bias"] == "all"
    assert torch.allclose(outputs(tmp_path / "out"), both(folders, (0.7, 0.4)), atol=1e-5)


def test_a_base_that_has_not_the_bias(biased: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"linear.bias": torch.zeros(4), "transposed.bias": torch.zeros(5)}, other)
    with pytest.raises(FormatError, match=r"'linear.bias' is \(9,\) in 'bias1' and \(4,\) in --base"):
        mix(job(biased[:2], tmp_path / "out", base=other))
    save_file({"x": torch.zeros(4)}, other)
    with pytest.raises(FormatError, match=r"has no tensor 'linear.bias'"):
        mix(job(biased[:2], tmp_path / "out", base=other))
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]


# -- what is refused ----------------------------------------------------------------------------------


def changed(folder: Path, source: Path, **config: object) -> Path:
    """A copy of an adapter with other fields in its config."""
    folder.mkdir()
    given = json.loads((source / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(given | config))
    (folder / "adapter_model.safetensors").write_bytes((source / "adapter_model.safetensors").read_bytes())
    return folder


def record(folder: Path, **entries: object) -> None:
    (folder / "run.json").write_text(json.dumps(entries))


def test_bases_that_differ(heads: list[Path], tmp_path: Path) -> None:
    plain = adapter(tmp_path / "plain", 3, **LINEAR)
    one, two = (changed(tmp_path / name, plain) for name in ("one", "two"))
    record(one, base={"fingerprint": "a" * 64})
    record(two, base={"fingerprint": "b" * 64})
    with pytest.raises(FormatError, match="'one' was trained over a base of sha256 aaaaaaaaaaaa…, 'two'.*bbbb"):
        mix(job([one, two], tmp_path / "out"))
    sd1 = sd1_file(tmp_path / "sd1.safetensors")
    sdxl = tmp_path / "sdxl.safetensors"
    save_file(load_file(sd1), sdxl, {"ss_base_model_version": "sdxl_base_v1-0"})
    with pytest.raises(FormatError, match="'sd1' is for sd1, 'sdxl' is for sdxl: adapters of different bases"):
        mix(job([sd1, sdxl], tmp_path / "out"))
    with pytest.raises(FormatError, match="'plain' is for a model of another kind, 'sd1' is for a pipeline"):
        mix(job([plain, sd1], tmp_path / "out"))
    wide = tmp_path / "wide"
    changed(wide, plain)
    tensors = load_file(plain / "adapter_model.safetensors")
    key = "base_model.model.linear.lora_A.weight"
    save_file(tensors | {key: torch.zeros(4, 8)}, wide / "adapter_model.safetensors")
    with pytest.raises(FormatError, match=r"'linear' is \(9, 6\) in 'plain' and \(9, 8\) in 'wide'"):
        mix(job([plain, wide], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_else_cannot_be_mixed(heads: list[Path], tmp_path: Path) -> None:
    plain = adapter(tmp_path / "plain", 3, **LINEAR)
    raw = changed(tmp_path / "raw", plain, target_parameters=["experts.weight"])
    with pytest.raises(FormatError, match="'raw' changes raw parameters"):
        mix(job([plain, raw], tmp_path / "out"))
    full = changed(tmp_path / "full", plain)
    record(full, method="full")
    with pytest.raises(FormatError, match="is a model trained in full"):
        mix(job([plain, full], tmp_path / "out"))
    (full / "run.json").write_text("{")
    with pytest.raises(FormatError, match="run.json' cannot be read"):
        mix(job([plain, full], tmp_path / "out"))
    with pytest.raises(ConfigError, match="every adapter has weight 0"):
        mix(job([plain, heads[0]], tmp_path / "out", (0.0, 0.0)))
    with pytest.raises(OutputError, match="is the adapter that is read"):
        mix(job([plain, heads[0]], plain, overwrite=True))
    assert not (tmp_path / "out").exists()


def test_dora_is_refused_by_name_but_for_itself(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = peft.get_peft_model(model(), peft.LoraConfig(r=2, target_modules=["linear"], use_dora=True))
    made.save_pretrained(tmp_path / "dora")
    plain = adapter(tmp_path / "plain", 3, **LINEAR)
    with pytest.raises(FormatError, match="'dora' is a DoRA adapter: its updates hang on the weights of the base"):
        mix(job([plain, tmp_path / "dora"], tmp_path / "out"))
    with pytest.raises(FormatError, match="'dora' is a DoRA adapter"):
        mix(job([tmp_path / "dora"], tmp_path / "out", (0.5,)))
    assert not (tmp_path / "out").exists()
    mix(job([tmp_path / "dora"], tmp_path / "out", (1.0,)))
    weights = "adapter_model.safetensors"
    assert load_file(tmp_path / "out" / weights).keys() == load_file(tmp_path / "dora" / weights).keys()
    assert (tmp_path / "out" / weights).read_bytes()[-512:] == (tmp_path / "dora" / weights).read_bytes()[-512:]


def test_adapters_that_share_no_layer_are_told(tmp_path: Path) -> None:
    one, two = adapter(tmp_path / "one", 1, targets=["linear"]), adapter(tmp_path / "two", 2, targets=["conv1"])
    plan = plan_mix(job([one, two], tmp_path / "out"))
    assert plan.notes == ("'one', 'two' share no layer with the others: are they for the same base?",)


# -- sources ------------------------------------------------------------------------------------------


def test_names_are_short_and_tell_apart(tmp_path: Path) -> None:
    paths = [Path(f"/x/{name}") for name in ("a/ink.safetensors", "b/ink", "b/glass.v2", "b/glass.v2")]
    assert short_names(paths) == ["a/ink", "b/ink", "glass.v2", "glass.v2 (2)"]


def test_peft_folders_stay_on_the_disk(heads: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: StoredTensors, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(StoredTensors, "__getitem__", refuse)
    sources = open_adapters(heads)
    assert [source.rank for source in sources] == [4, 4]
    assert sources[0].updates.shape("linear") == (9, 6) and "linear" in sources[0].updates
    assert sources[0].dtype == torch.float32
