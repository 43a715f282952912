"""The same outputs here and in PEFT, both ways, for every layer kind and option that PEFT has."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

peft = pytest.importorskip("peft", reason="PEFT is not installed: nothing to compare with")

from safetensors.torch import load_file  # noqa: E402
from transformers.pytorch_utils import Conv1D  # noqa: E402

from loraloom.adapters import AdapterSet, attach  # noqa: E402
from loraloom.formats import load_adapter, save_adapter  # noqa: E402

FILES = ("adapter_config.json", "adapter_model.safetensors")


class ScaledEmbedding(nn.Embedding):
    """As Gemma's: what is looked up is scaled."""

    embed_scale = 2.5

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.embed_scale


class Experts(nn.Module):
    """Raw weights, used by code of the module's own; the order of registration is not that of the names."""

    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        self.is_transposed = transposed
        up, down = (3, 6, 10), (3, 10, 6)
        self.up_proj = nn.Parameter(torch.randn(up[::1] if transposed else (3, 10, 6)) * 0.3)
        self.down_proj = nn.Parameter(torch.randn(down if transposed else (3, 6, 10)) * 0.3)
        self.gate = nn.Parameter(torch.randn(3, 6) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        up, down = self.up_proj, self.down_proj
        if not self.is_transposed:
            up, down = up.transpose(1, 2), down.transpose(1, 2)
        h = torch.einsum("btd,edh->bteh", x, up).relu()
        return torch.einsum("bteh,ehd,bte->btd", h, down, (x @ self.gate.t()).softmax(-1))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(6, 6)
        self.value = nn.Linear(6, 6, bias=False)
        self.turned = Conv1D(6, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.turned(self.query(x).tanh()) + self.value(x))


class Zoo(nn.Module):
    """Every layer kind, over token ids (B, T)."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.tokens = ScaledEmbedding(13, 6) if options.get("scaled") else nn.Embedding(13, 6, padding_idx=0)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.experts = Experts(options.get("transposed", False))
        self.conv1 = nn.Conv1d(6, 6, 3, **options.get("conv", {"padding": 1}))
        self.conv2 = nn.Conv2d(1, 4, (3, 3), padding=1, stride=(1, 2))
        self.conv3 = nn.Conv3d(1, 3, 3, padding=1)
        self.query_head = nn.Linear(6, 5)
        self.head = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        for layer in self.layers:
            x = layer(x)
        x = x + self.attention(x, x, x)[0]
        x = self.experts(x) + x
        x = self.conv1(x.transpose(1, 2)).transpose(1, 2) + x
        plane = self.conv2(x[:, None])
        space = self.conv3(x[:, None, None]).mean((1, 2))
        pooled = (x + space).mean(1) + plane.mean((1, 2, 3), keepdim=True)[:, 0, 0]
        return torch.cat([self.query_head(pooled), self.head(pooled)], dim=-1)


IDS = torch.arange(20).reshape(4, 5) % 13


def zoo(**options: Any) -> Zoo:
    torch.manual_seed(5)
    model = Zoo(**options)
    nn.init.normal_(model.attention.in_proj_bias, std=0.3)
    nn.init.normal_(model.attention.out_proj.bias, std=0.3)
    return model.eval()


@dataclass(frozen=True)
class Case:
    """One adapter, in PEFT's words and in ours."""

    peft: dict[str, Any]
    ours: dict[str, Any] | None
    """None where PEFT's option has no counterpart here, so that only its files are read."""
    model: Callable[[], nn.Module] = zoo
    inputs: Tensor = field(default_factory=lambda: IDS)


def _conv(**options: Any) -> Callable[[], nn.Module]:
    return lambda: zoo(conv=options)


CASES: dict[str, Case] = {
    "linear": Case({"target_modules": ["query"]}, {"targets": "query"}),
    "a name that another module ends with": Case(
        {"target_modules": ["query", "value"]}, {"targets": ["query", "value"]}
    ),
    "rslora": Case({"target_modules": ["query"], "use_rslora": True}, {"targets": "query", "scaling": "rslora"}),
    "dropout": Case({"target_modules": ["query"], "lora_dropout": 0.4}, {"targets": "query", "dropout": 0.4}),
    "rank and alpha patterns": Case(
        {
            "target_modules": ["query", "value"],
            "rank_pattern": {"value": 3, r"layers\.1\.query": 1},
            "alpha_pattern": {"1.query": 5},
        },
        {
            "targets": ["query", "value"],
            "rank_pattern": {"value": 3, "layers.1.query": 1},
            "alpha_pattern": {"1.query": 5, "value": 7.5},
        },
    ),
    "one block": Case(
        {"target_modules": ["query", "value"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"targets": ["query", "value"], "layers": 1},
    ),
    "one block by number": Case(
        {"target_modules": ["query"], "layers_to_transform": 0},
        {"targets": "query", "layers": 0},
        model=lambda: nn.Sequential(OrderedDict(body=zoo())).eval(),
    ),
    "excluded": Case(
        {"target_modules": ["query", "value"], "exclude_modules": ["layers.0.value"]},
        {"targets": ["query", "value"], "exclude": "layers.0.value"},
    ),
    "regular expression": Case(
        {"target_modules": r"layers\.\d\.(query|value)"}, {"targets": r"re:layers\.\d\.(query|value)"}
    ),
    "all-linear": Case(
        {
            "target_modules": "all-linear",
            "exclude_modules": ["out_proj"],
            "modules_to_save": ["head", "query_head"],
        },
        {"targets": ["re:layers.*(query|value|turned)"], "heads": ["head", "query_head"]},
    ),
    "embedding": Case({"target_modules": ["tokens"]}, {"targets": "tokens"}),
    "scaled embedding": Case({"target_modules": ["tokens"]}, {"targets": "tokens"}, model=lambda: zoo(scaled=True)),
    "transposed linear": Case({"target_modules": ["turned"], "fan_in_fan_out": True}, {"targets": "turned"}),
    "both kinds of linear": Case(
        {"target_modules": ["turned", "query"], "fan_in_fan_out": True}, {"targets": ["turned", "query"]}
    ),
    "conv1d": Case({"target_modules": ["conv1"]}, {"targets": "conv1"}),
    "conv2d": Case({"target_modules": ["conv2"]}, {"targets": "conv2"}),
    "conv3d": Case({"target_modules": ["conv3"]}, {"targets": "conv3"}),
    "conv same padding": Case({"target_modules": ["conv1"]}, {"targets": "conv1"}, model=_conv(padding="same")),
    "grouped conv": Case({"target_modules": ["conv1"]}, {"targets": "conv1"}, model=_conv(padding=1, groups=2)),
    "depthwise conv": Case(
        {"target_modules": ["conv1"], "r": 6}, {"targets": "conv1", "rank": 6}, model=_conv(padding=1, groups=6)
    ),
    "attention": Case({"target_modules": ["attention"]}, {"targets": "attention"}),
    "out_proj, which attention never calls": Case({"target_modules": ["out_proj", "query"]}, None),
    "attention and dropout": Case({"target_modules": ["attention", "query"], "lora_dropout": 0.3}, None),
    "attention and biases": Case(
        {"target_modules": ["attention", "query"], "bias": "lora_only"},
        {"targets": ["attention", "query"], "bias": "adapted"},
    ),
    "part of an attention": Case(
        {"target_modules": [], "target_parameters": ["attention.in_proj_weight"]},
        {"targets": (), "parameters": "attention.in_proj_weight"},
    ),
    "a matrix": Case(
        {"target_modules": [], "target_parameters": ["experts.gate"]},
        {"targets": (), "parameters": "experts.gate"},
    ),
    "experts": Case(
        {"target_modules": [], "target_parameters": ["experts.up_proj"]},
        {"targets": (), "parameters": "up_proj"},
    ),
    "all parameters of a module": Case(
        {
            "target_modules": ["query"],
            "target_parameters": ["experts.gate", "experts.up_proj", "experts.down_proj"],
            "rank_pattern": {"experts.down_proj": 3},
        },
        {"targets": "query", "parameters": "experts.*", "rank_pattern": {"down_proj": 3}},
    ),
    "transposed experts": Case(
        {"target_modules": [], "target_parameters": ["up_proj", "down_proj"]},
        {"targets": (), "parameters": ["up_proj", "down_proj"]},
        model=lambda: zoo(transposed=True),
    ),
    "the weight of a linear layer as a parameter": Case(
        {"target_modules": [], "target_parameters": ["query.weight"]},
        {"targets": (), "parameters": "query.weight"},
    ),
    "heads": Case(
        {"target_modules": ["value"], "modules_to_save": ["head", "query_head"]},
        {"targets": "value", "heads": ["head", "query_head"]},
    ),
    "a head whose name ends another": Case(
        {"target_modules": ["value"], "modules_to_save": ["head"]}, {"targets": "value", "heads": "head"}
    ),
    "biases of the adapted": Case(
        {"target_modules": ["query", "value", "conv1", "turned"], "bias": "lora_only"},
        {"targets": ["query", "value", "conv1", "turned"], "bias": "adapted"},
    ),
    "all biases": Case({"target_modules": ["value"], "bias": "all"}, {"targets": "value", "bias": "all"}),
    "all biases, attention, parameters": Case(
        {
            "target_modules": ["attention", "conv2"],
            "target_parameters": ["experts.gate", "query.weight"],
            "bias": "all",
        },
        {"targets": ["attention", "conv2"], "parameters": ["experts.gate", "query.weight"], "bias": "all"},
    ),
    "all biases and heads": Case(
        {"target_modules": ["value", "attention"], "bias": "all", "modules_to_save": ["head", "query_head"]},
        {"targets": ["value", "attention"], "bias": "all", "heads": ["head", "query_head"]},
    ),
    "a bias behind B": Case({"target_modules": ["query", "conv1", "turned"], "lora_bias": True}, None),
    "a bias behind B, and biases": Case(
        {"target_modules": ["query", "conv1"], "lora_bias": True, "bias": "lora_only"}, None
    ),
    "a bias behind B in attention": Case({"target_modules": ["attention"], "lora_bias": True}, None),
    "a grouped conv with a bias behind B": Case(
        {"target_modules": ["conv1"], "lora_bias": True}, None, model=_conv(padding=1, groups=3), inputs=IDS
    ),
}
FOLDED = ("behind B", "never calls")
"""Cases of which a part is folded in or left out on reading, so that PEFT's tensors do not come back."""
OURS = {name: case for name, case in CASES.items() if case.ours is not None}


def randomise(parameters: Iterator[nn.Parameter], seed: int = 3) -> None:
    """Fill what is trained, so that nothing is zero or as it began."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


def ours(case: Case) -> tuple[nn.Module, AdapterSet]:
    model = case.model()
    rank = {} if "rank" in (case.ours or {}) else {"rank": 6 if "conv1" in str(case.ours) else 2}
    adapters = attach(model, **rank, **(case.ours or {}))
    randomise(adapters.parameters())
    return model, adapters


def theirs(case: Case, folder: Path, **config: Any) -> Any:
    """PEFT's model, with an adapter that acts, and its files in the folder."""
    rank = 6 if "conv1" in str(case.peft) else 2
    settings = {"r": rank, "lora_alpha": 7, "init_lora_weights": False, **case.peft, **config}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(case.model(), peft.LoraConfig(**settings)).eval()
        randomise(p for p in model.parameters() if p.requires_grad)
        model.save_pretrained(folder)
    return model


def load_in_peft(base: nn.Module, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(base, folder).eval()


def load_quietly(base: nn.Module, folder: Path, **options: Any) -> AdapterSet:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_adapter(base, folder, **options)


def output(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        result = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return result if isinstance(result, Tensor) else result[0]


def assert_equal(found: Tensor, expected: Tensor, base: Tensor) -> None:
    """Equal to rounding in float32, and other than the base's output."""
    size = expected.abs().max()
    assert (found - expected).abs().max() <= 1e-6 * size
    assert (base - expected).abs().max() > 1e-3 * size, "the adapter does nothing: the comparison says nothing"


@pytest.mark.parametrize("name", OURS)
def test_ours_in_peft(name: str, tmp_path: Path) -> None:
    case = OURS[name]
    model, adapters = ours(case)
    save_adapter(adapters, "default", tmp_path)
    theirs = load_in_peft(case.model(), tmp_path)
    assert_equal(output(theirs, case.inputs), output(model, case.inputs), output(case.model(), case.inputs))


@pytest.mark.parametrize("name", OURS)
def test_ours_in_ours_to_the_bit(name: str, tmp_path: Path) -> None:
    case = OURS[name]
    model, adapters = ours(case)
    save_adapter(adapters, "default", tmp_path / "first")
    again = case.model()
    loaded = load_adapter(again, tmp_path / "first", name="other")
    assert torch.equal(output(again, case.inputs), output(model, case.inputs))
    assert loaded.spec("other") == adapters.spec("default")
    assert loaded.plan("other") == adapters.plan("default")
    save_adapter(loaded, "other", tmp_path / "second")
    for file in FILES:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


@pytest.mark.parametrize("name", CASES)
def test_peft_in_ours(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = theirs(case, tmp_path)
    expected = output(model, case.inputs)
    again = case.model()
    adapters = load_quietly(again, tmp_path)
    assert adapters.spec("default").dropout == case.peft.get("lora_dropout", 0.0)
    assert_equal(output(again, case.inputs), expected, output(case.model(), case.inputs))


@pytest.mark.parametrize("name", [name for name in CASES if not any(word in name for word in FOLDED)])
def test_peft_through_ours_to_the_bit(name: str, tmp_path: Path) -> None:
    """Load → save gives PEFT's tensors again, but for those that say nothing; another round changes no byte."""
    case = CASES[name]
    theirs(case, tmp_path / "peft")
    save_adapter(load_quietly(case.model(), tmp_path / "peft"), "default", tmp_path / "ours")
    first, second = (load_file(tmp_path / folder / FILES[1]) for folder in ("peft", "ours"))
    for key in set(first) - set(second):
        assert ".original_module." in key or ".modules_to_save." in key, key
    assert set(second) <= set(first)
    assert all(torch.equal(first[key], second[key]) for key in second)
    save_adapter(load_adapter(case.model(), tmp_path / "ours"), "default", tmp_path / "again")
    for file in FILES:
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
