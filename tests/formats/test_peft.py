"""Adapter folders of our own: back to the bit, and every fault of a file told in one error, the model untouched."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from loraloom.adapters import AdapterSet, adapters_of, attach
from loraloom.errors import ConfigError, FormatError, OutputError
from loraloom.formats import load_adapter, read_adapter, save_adapter
from loraloom.formats.tensorfile import tensor_pieces, write_together

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
IDS = torch.arange(12).reshape(3, 4) % 9
Edit = Callable[[dict[str, Tensor], dict[str, Any]], None]


class Net(nn.Module):
    def __init__(self, width: int = 6, **conv: Any) -> None:
        super().__init__()
        self.tokens = nn.Embedding(9, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.plain = nn.Linear(width, width, bias=False)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mixed = nn.MultiheadAttention(width, 2, kdim=width, vdim=width, batch_first=True)
        self.mixed._qkv_same_embed_dim = False
        self.mixed = nn.MultiheadAttention(width, 2, kdim=width, vdim=width + 1, batch_first=True)
        self.conv = nn.Conv1d(width, width, 3, **(conv or {"padding": 1}))
        self.scale = nn.Parameter(torch.eye(width))
        self.head = nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        for layer in self.layers:
            x = x + layer(x).tanh()
        x = self.plain(x) + self.attention(x, x, x)[0]
        x = x + self.mixed(x, x, nn.functional.pad(x, (0, 1)))[0]
        x = x + self.conv(x.transpose(1, 2)).transpose(1, 2)
        return self.head((x @ self.scale).mean(1))


def net(**options: Any) -> Net:
    torch.manual_seed(2)
    return Net(**options).eval()


def adapted(model: nn.Module, **spec: Any) -> AdapterSet:
    adapters = attach(model, **{"rank": 2, **spec})
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return adapters


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(IDS)


STANDARD: dict[str, Any] = {"targets": ["layers.*", "tokens"], "heads": "head", "bias": "adapted"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of an adapter with factors, an embedding, biases and a head."""
    save_adapter(adapted(net(), **STANDARD), "default", tmp_path / "adapter", base_name="a/base")
    return tmp_path / "adapter"


def edit(folder: Path, change: Edit, *, keep_header: bool = True) -> None:
    """Change the tensors and the config of a folder in place."""
    file = read_adapter(folder)
    tensors = {key: tensor.clone() for key, tensor in file.tensors.items()}
    config = dict(file.config)
    change(tensors, config)
    metadata = dict(file.metadata) if keep_header else {"format": "pt"}
    write_together({folder / WEIGHTS: tensor_pieces(tensors, metadata)})
    (folder / CONFIG).write_text(json.dumps(config))


def state(model: nn.Module) -> list[Any]:
    """Whatever loading could change."""
    tensors = [(name, value.clone()) for name, value in model.state_dict(keep_vars=False).items()]
    return [
        tensors,
        [(name, p.requires_grad) for name, p in model.named_parameters()],
        [type(module) for module in model.modules()],
        [sorted(module.__dict__) for module in model.modules()],
    ]


def same_state(first: list[Any], second: list[Any]) -> bool:
    names = [name for name, _ in first[0]] == [name for name, _ in second[0]]
    return (
        names
        and first[1:] == second[1:]
        and all(torch.equal(a, b) for (_, a), (_, b) in zip(first[0], second[0], strict=True))
    )


def assert_refused(folder: Path, told: str, model: nn.Module | None = None) -> str:
    """Loading raises FormatError with this sentence, and leaves the model as it was."""
    model = model or net()
    before = state(model)
    with pytest.raises(FormatError, match=told) as error:
        load_adapter(model, folder)
    assert same_state(state(model), before), "the model was changed"
    assert adapters_of(model) is None
    return str(error.value)


# -- back to the bit ----------------------------------------------------------------------------------

SPECS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "standard": (STANDARD, {}),
    "other settings": (
        {**STANDARD, "seed": 9, "scaling": "rslora", "exclude": "layers.1", "alpha": 3, "dropout": 0.25},
        {},
    ),
    "patterns of which the order counts": (
        {
            "targets": ["layers.*", "plain"],
            "rank_pattern": {"layers.1": 3, "layers.*": 1},
            "alpha_pattern": {"plain": 0.5},
        },
        {},
    ),
    "float64 factors": ({**STANDARD, "dtype": "float64"}, {}),
    "bfloat16 factors": ({**STANDARD, "dtype": "bfloat16"}, {}),
    "a head alone": ({"targets": (), "heads": "head"}, {}),
    "attention": ({"targets": "attention", "bias": "adapted"}, {}),
    "attention with separate weights": ({"targets": ["mixed", "plain"], "bias": "all"}, {}),
    "out_proj alone": ({"targets": ["attention.out_proj"]}, {}),
    "attention with two ranks": ({"targets": "attention", "rank_pattern": {"out_proj.weight": 3}}, {}),
    "a parameter of the model itself": ({"targets": "plain", "parameters": "scale"}, {}),
    "a dilated convolution": ({"targets": "conv"}, {"dilation": 2, "padding": 2}),
    "a convolution that pads with what is there": ({"targets": "conv"}, {"padding": 1, "padding_mode": "reflect"}),
    "a grouped convolution": ({"targets": "conv"}, {"padding": 1, "groups": 2}),
}


@pytest.mark.parametrize("name", SPECS)
def test_back_to_the_bit(name: str, tmp_path: Path) -> None:
    spec, options = SPECS[name]
    model = net(**options)
    adapters = adapted(model, **spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_adapter(adapters, "default", tmp_path / "first")
        again = net(**options)
        loaded = load_adapter(again, tmp_path / "first", name="other")
        save_adapter(loaded, "other", tmp_path / "second")
    assert torch.equal(output(again), output(model))
    assert not torch.equal(output(again), output(net(**options)))
    assert loaded.spec("other") == adapters.spec("default")
    assert loaded.plan("other") == adapters.plan("default")
    for file in (CONFIG, WEIGHTS):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


UNSPEAKABLE = {
    "attention with separate weights": "no word for 'mixed.q_proj_weight'",
    "out_proj alone": "no word for 'attention.out_proj.weight'",
    "attention with two ranks": "'attention.out_proj.weight' has another rank or alpha than its attention",
    "a parameter of the model itself": "no word for 'scale'",
    "a dilated convolution": "its A has no dilation",
    "a convolution that pads with what is there": "its A pads with zeros",
}


@pytest.mark.parametrize("name", SPECS)
def test_what_peft_has_no_word_for_is_warned_of(name: str, tmp_path: Path) -> None:
    spec, options = SPECS[name]
    adapters = adapted(net(**options), **spec)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        save_adapter(adapters, "default", tmp_path)
    told = [str(warning.message) for warning in caught]
    if name in UNSPEAKABLE:
        assert any(UNSPEAKABLE[name] in sentence for sentence in told), told
    else:
        assert told == []


def test_saving_twice_gives_the_same_bytes_and_leaves_other_files(folder: Path) -> None:
    former = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "run.json").write_text("{}")
    save_adapter(adapted(net(), **STANDARD), "default", folder, base_name="a/base")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {**former, "run.json": b"{}"}


def test_only_what_is_needed_is_written(folder: Path) -> None:
    assert json.loads((folder / CONFIG).read_text()) == {
        "base_model_name_or_path": "a/base",
        "bias": "lora_only",
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 4,
        "lora_dropout": 0.0,
        "modules_to_save": ["head"],
        "peft_type": "LORA",
        "r": 2,
        "target_modules": ["0", "1", "tokens"],
        "task_type": None,
    }


def test_a_loaded_adapter_acts_trains_and_stands_beside_others(folder: Path) -> None:
    model = net()
    first = attach(model, rank=3, targets="plain", name="first")
    both = load_adapter(model, folder, name="second")
    assert both is first
    assert both.names == ["first", "second"]
    assert both.active == {"second": 1.0}
    assert all(parameter.requires_grad for parameter in both.parameters("second"))
    assert not any(parameter.requires_grad for parameter in both.parameters("first"))
    alone = net()
    load_adapter(alone, folder)
    assert torch.equal(output(model), output(alone))


def test_a_name_that_is_taken(folder: Path) -> None:
    model = net()
    load_adapter(model, folder)
    with pytest.raises(ConfigError, match="'default' is already attached"):
        load_adapter(model, folder)


def test_tied_weights_that_share_an_update(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False)).eval()
        model[2].weight = model[0].weight
        return model

    model = tied()
    adapters = adapted(model, targets="0", tied="share")
    save_adapter(adapters, "default", tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    assert torch.equal(tensors[f"{PREFIX}2.lora_A.weight"], tensors[f"{PREFIX}0.lora_embedding_B"].t())
    again = tied()
    assert load_adapter(again, tmp_path).plan("default") == adapters.plan("default")
    assert torch.equal(output(again), output(model))

    tensors[f"{PREFIX}2.lora_A.weight"] += 1.0  # no longer those of the other: now two updates of their own
    metadata = read_adapter(tmp_path).metadata
    write_together({tmp_path / WEIGHTS: tensor_pieces(tensors, metadata)})
    apart = load_adapter(tied(), tmp_path)
    assert apart.spec("default").tied == "separate"
    assert [site.shares for site in apart.plan("default").sites] == [None, None]


# -- config and tensors changed by hand ---------------------------------------------------------------


def test_a_changed_alpha_is_obeyed(folder: Path) -> None:
    expected = net()
    load_adapter(expected, folder)
    adapters_of(expected).set_weight("default", 0.5)  # type: ignore[union-attr]

    def halve(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        config["lora_alpha"] = 2
        for key in [key for key in tensors if key.endswith(".bias") or "head" in key]:
            tensors[key] = net().state_dict()[key.removeprefix(PREFIX).replace("base_layer.", "")].clone()

    edit(folder, halve)
    model = net()
    adapters = load_adapter(model, folder)
    assert {site.alpha for site in adapters.plan("default").sites} == {2.0}
    assert adapters.spec("default").targets == ("0", "1", "tokens")
    assert output(model).sub(output(net())).abs().max() > 0.01


def test_a_new_place_of_the_base_changes_nothing(folder: Path) -> None:
    edit(folder, lambda _, config: config.update(base_model_name_or_path="moved/base", revision="main"))
    assert load_adapter(net(), folder).spec("default") == adapted(net(), **STANDARD).spec("default")


def test_without_our_header_the_config_decides(folder: Path) -> None:
    expected, model = net(), net()
    load_adapter(expected, folder)
    edit(folder, lambda tensors, config: None, keep_header=False)
    adapters = load_adapter(model, folder)
    assert torch.equal(output(model), output(expected))
    assert adapters.spec("default").bias == "adapted"


@pytest.mark.parametrize("options", [{"dilation": 2, "padding": 2}, {"padding": 1, "padding_mode": "circular"}])
def test_a_foreign_file_on_a_layer_that_peft_runs_otherwise(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="PEFT will not give the same outputs for 'conv'"):
        save_adapter(adapted(net(**options), targets="conv"), "default", tmp_path)
    edit(tmp_path, lambda tensors, config: None, keep_header=False)
    assert_refused(tmp_path, "PEFT runs the adapter of 'conv' otherwise than the layer runs", net(**options))


def test_a_wide_grouped_convolution(tmp_path: Path) -> None:
    """An A that reads other groups' channels is kept as it is; its update cannot be merged, and says so."""
    model = net(padding=1, groups=2)
    save_adapter(adapted(model, targets="conv"), "default", tmp_path)
    key = f"{PREFIX}conv.lora_A.weight"
    assert load_file(tmp_path / WEIGHTS)[key].shape == (2, 6, 3)
    edit(tmp_path, lambda tensors, _: tensors[key].add_(0.1))
    again = net(padding=1, groups=2)
    adapters = load_adapter(again, tmp_path)
    (site,) = adapters.plan("default").sites
    assert site.shape_a == (2, 6, 3)
    assert adapters.num_parameters("default") == 2 * 6 * 3 + 6
    assert not torch.equal(output(again), output(model))
    with pytest.raises(ConfigError, match="a grouped weight cannot hold this update"):
        adapters.merge()
    save_adapter(adapters, "default", tmp_path / "again")
    assert torch.equal(load_file(tmp_path / "again" / WEIGHTS)[key], load_file(tmp_path / WEIGHTS)[key])


# -- faults -------------------------------------------------------------------------------------------


def keys(name: str = "") -> list[str]:
    tokens = [f"{PREFIX}tokens.lora_embedding_{role}" for role in "AB"]
    linear = [
        f"{PREFIX}layers.{n}.{what}" for n in "01" for what in ("lora_A.weight", "lora_B.weight", "base_layer.bias")
    ]
    return [*tokens, *linear, f"{PREFIX}head.weight", f"{PREFIX}head.bias"]


@pytest.mark.parametrize("key", keys())
def test_a_missing_tensor(key: str, folder: Path) -> None:
    edit(folder, lambda tensors, _: tensors.pop(key))
    assert_refused(folder, f"missing tensor '{key}'")


@pytest.mark.parametrize("key", keys())
def test_a_misshapen_tensor(key: str, folder: Path) -> None:
    edit(folder, lambda tensors, _: tensors.update({key: torch.ones(*tensors[key].shape[:-1], 5)}))
    told = assert_refused(folder, f"tensor '{key}'")
    assert "5" in told


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", keys()[1::3])
def test_a_tensor_that_is_not_finite(key: str, value: float, folder: Path) -> None:
    edit(folder, lambda tensors, _: tensors[key].view(-1)[-1:].fill_(value))
    assert_refused(folder, f"tensor '{key}' holds values that are not finite")
    with pytest.raises(FormatError, match="not finite"):
        read_adapter(folder)


EXTRA = {
    "a module that is not there": ("layers.7.lora_A.weight", r"the model has no 'layers.7'; did you mean 'layers"),
    "a module that is no target": (
        "plain.lora_A.weight",
        "'base_model.model.plain.lora_A.weight' belongs to no target",
    ),
    "a module without a weight": ("layers.lora_A.weight", "'layers' is a ModuleList, which is not adapted so"),
    "a weight of the base": ("plain.weight", "is a weight of the base, which the config does not name"),
    "a magnitude": ("layers.0.lora_magnitude_vector", "is the magnitude of DoRA"),
    "trained tokens": ("tokens.token_adapter.trainable_tokens_delta", "it holds trained tokens"),
    "a bias behind B": ("layers.0.lora_B.bias", "belongs to nothing, where 'layers.0' is adapted so"),
    "a wrapper too many": ("layers.0.base_layer.lora_A.weight", "layers.0"),
    "an embedding's factor on a linear layer": ("layers.0.lora_embedding_A", "would be the same factor of 'layers.0'"),
}


@pytest.mark.parametrize("name", EXTRA)
def test_an_extra_tensor(name: str, folder: Path) -> None:
    key, told = EXTRA[name]
    edit(folder, lambda tensors, _: tensors.update({PREFIX + key: torch.ones(2, 6)}))
    assert_refused(folder, told)


@pytest.mark.parametrize("moved", ["layers.0.bias", "layers.0.base_layer.base_layer.bias"])
def test_a_bias_kept_elsewhere(moved: str, folder: Path) -> None:
    key = f"{PREFIX}layers.0.base_layer.bias"
    edit(folder, lambda tensors, _: tensors.update({PREFIX + moved: tensors.pop(key)}))
    assert_refused(folder, f"tensor '{PREFIX + moved}' belongs to nothing: 'layers.0.bias' is kept as '{key}'")


def test_a_head_that_peft_takes_for_one_is_a_copy_once_it_is_changed(tmp_path: Path) -> None:
    def two_heads() -> nn.Module:
        torch.manual_seed(1)
        return nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Linear(4, 2), "other_head": nn.Linear(4, 2)})

    save_adapter(adapted(two_heads(), targets="body", heads="head"), "default", tmp_path)
    copies = load_adapter(two_heads(), tmp_path).plan("default").copies
    assert [copied.module for copied in copies] == ["head"]
    edit(tmp_path, lambda tensors, _: tensors[f"{PREFIX}other_head.weight"].add_(1.0))
    adapters = load_adapter(two_heads(), tmp_path)
    assert [copied.module for copied in adapters.plan("default").copies] == ["head", "other_head"]
    changed = adapters.tensors("default")["other_head.weight|head"]
    assert torch.equal(changed, two_heads()["other_head"].weight + 1.0)


def test_a_target_without_tensors(folder: Path) -> None:
    def drop(tensors: dict[str, Tensor], _: Any) -> None:
        for key in [key for key in tensors if "layers.1" in key]:
            del tensors[key]

    edit(folder, drop)
    assert_refused(folder, "missing tensors for 'layers.1', which the config names as a target")


def test_keys_of_another_layout(folder: Path) -> None:
    edit(folder, lambda tensors, _: tensors.update({"unet.layers.lora_A.weight": torch.ones(2)}))
    assert_refused(folder, "'unet.layers.lora_A.weight' does not begin with 'base_model.model.'")


def test_factors_that_are_whole_numbers(folder: Path) -> None:
    key = keys()[2]
    edit(folder, lambda tensors, _: tensors.update({key: torch.ones(2, 6, dtype=torch.int64)}))
    assert_refused(folder, f"'{key}' holds int64, expected floating-point numbers")


def test_another_rank_in_the_config(folder: Path) -> None:
    edit(folder, lambda _, config: config.update(r=3))
    assert_refused(folder, r"has shape \(2, 6\), expected \(3, 6\) for rank 3 at 'layers.0'")


def test_a_base_of_another_width(folder: Path) -> None:
    told = assert_refused(folder, r"expected \(2, 8\) for rank 2 at 'layers.0', whose weight is \(8, 8\)", net(width=8))
    assert "layers.1" in told and "head.weight" in told and "tokens" in told


def test_a_base_of_another_kind(folder: Path) -> None:
    told = assert_refused(folder, "the model has no 'layers.0'", nn.Sequential(nn.Linear(6, 6)))
    assert told.count("\n") <= 21


def test_a_long_list_of_faults_is_cut(tmp_path: Path) -> None:
    def deep() -> nn.Module:
        return nn.Sequential(*(nn.Linear(4, 4) for _ in range(30)))

    save_adapter(attach(deep(), rank=1), "default", tmp_path)
    told = assert_refused(tmp_path, "60 faults", nn.Sequential(nn.Identity()))
    assert told.endswith("and 40 more")


def test_all_faults_are_told_at_once(folder: Path) -> None:
    def spoil(tensors: dict[str, Tensor], _: Any) -> None:
        del tensors[keys()[2]]
        tensors[f"{PREFIX}plain.lora_A.weight"] = torch.ones(2, 6)
        del tensors[f"{PREFIX}head.bias"]
        tensors[keys()[6]] = torch.ones(2, 7)

    edit(folder, spoil)
    told = assert_refused(folder, "5 faults")
    assert keys()[2] in told and "plain" in told and "head.bias" in told and keys()[6] in told


def test_a_fault_leaves_the_other_adapters(folder: Path) -> None:
    model = net()
    adapters = adapted(model, targets="plain", name="first")
    before = output(model)
    edit(folder, lambda tensors, _: tensors.pop(keys()[2]))
    with pytest.raises(FormatError):
        load_adapter(model, folder, name="second")
    assert adapters.names == ["first"]
    assert torch.equal(output(model), before)


# -- folders ------------------------------------------------------------------------------------------


def test_a_truncated_file(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    for length in (0, 5, 40, len(whole) // 2, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:length])
        assert_refused(folder, "cut short")


def test_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    assert_refused(
        folder, r"adapter_model.bin is a pickle.*safetensors.torch.save_file\(torch.load\('adapter_model.bin'"
    )


FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (lambda path: path.rename(path.with_name("moved")), "there is no adapter folder"),
    "no config": (lambda path: (path / CONFIG).unlink(), "is not an adapter folder: it has no adapter_config.json"),
    "no tensors": (lambda path: (path / WEIGHTS).unlink(), "has no adapter_model.safetensors"),
    "a config that is not JSON": (lambda path: (path / CONFIG).write_text("{"), "adapter_config.json is not JSON"),
    "a config of other bytes": (
        lambda path: (path / CONFIG).write_bytes(b"\xff\xfe"),
        "adapter_config.json is not JSON",
    ),
    "a config that is a list": (lambda path: (path / CONFIG).write_text("[]"), "holds a list, expected a JSON object"),
    "an empty config": (lambda path: (path / CONFIG).write_text("{}"), "peft_type is missing"),
    "no tensor in the file": (lambda path: edit(path, lambda tensors, _: tensors.clear()), "there is no tensor in it"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_none(name: str, folder: Path) -> None:
    spoil, told = FOLDERS[name]
    spoil(folder)
    assert_refused(folder, told)
    with pytest.raises(FormatError, match=told):
        read_adapter(folder)


def test_a_file_in_place_of_a_folder(folder: Path) -> None:
    assert_refused(folder / CONFIG, "is a file: name the folder that holds adapter_config.json")


def test_the_only_subfolder_with_an_adapter_is_taken(folder: Path) -> None:
    (folder.parent / "other").mkdir()
    assert read_adapter(folder.parent).path == folder
    save_adapter(adapted(net(), targets="plain"), "default", folder.parent / "second")
    assert_refused(folder.parent, r"holds several adapters \(adapter, second\): name one")


def test_a_newer_file(folder: Path) -> None:
    file = read_adapter(folder)
    ours = json.loads(file.metadata["loraloom"])
    for entry, told in (({**ours, "version": 2}, "format version 2"), ([], "header is damaged")):
        metadata = {**file.metadata, "loraloom": json.dumps(entry)}
        write_together({folder / WEIGHTS: tensor_pieces(file.tensors, metadata)})
        assert_refused(folder, told)
        write_together({folder / WEIGHTS: tensor_pieces(file.tensors, file.metadata)})


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        save_adapter(adapted(net(), targets="plain"), "default", tmp_path / "file" / "adapter")


def test_an_unknown_task(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="task_type 'SEQ_CLASS' is not one of .*did you mean 'SEQ_CLS'"):
        save_adapter(adapted(net(), targets="plain"), "default", tmp_path / "a", task_type="SEQ_CLASS")
    assert not (tmp_path / "a").exists()


# -- any bytes ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, bytes, Tensor]]:
    """A folder, its weights' bytes, and the output with its adapter."""
    path = tmp_path_factory.mktemp("fuzz")
    model = net()
    save_adapter(adapted(model, **STANDARD), "default", path)
    yield path, (path / WEIGHTS).read_bytes(), output(model)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_header_gives_an_error_or_the_right_outputs(data: st.DataObject, whole: Any) -> None:
    path, original, expected = whole
    spoiled = bytearray(original)
    end = 8 + int.from_bytes(original[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        spoiled[data.draw(st.integers(0, end - 1))] = data.draw(
            st.integers(0, 255) | st.sampled_from(b'0123456789"lAB.')
        )
    (path / WEIGHTS).write_bytes(spoiled)
    model = net()
    before = state(model)
    try:
        load_adapter(model, path)
    except FormatError:
        assert same_state(state(model), before)
    else:
        assert torch.equal(output(model), expected)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_config_gives_an_error_or_an_adapter(data: st.DataObject, whole: Any) -> None:
    path, original, _ = whole
    (path / WEIGHTS).write_bytes(original)
    sound = (path / CONFIG).read_text()
    spoiled = list(sound)
    spoiled[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.characters(codec="utf-8"))
    (path / CONFIG).write_text("".join(spoiled), "utf-8")
    try:
        model = net()
        before = state(model)
        load_adapter(model, path)
    except FormatError:
        assert same_state(state(model), before)
    finally:
        (path / CONFIG).write_text(sound, "utf-8")
