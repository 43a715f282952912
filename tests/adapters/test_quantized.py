"""Adapters over quantised linear layers: torchao's tensor classes, bitsandbytes' layers of eight and four bits."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from loraloom.adapters import adapters_of, attach
from loraloom.adapters.functional import plain_linear
from loraloom.adapters.quantized import dense_weight, is_quantized
from loraloom.errors import ConfigError

ao = pytest.importorskip("torchao.quantization")
bnb = pytest.importorskip("bitsandbytes")
granularity = pytest.importorskip("torchao.quantization.granularity")

IN, OUT, RANK = 64, 96, 4


def _torchao(config: object) -> Callable[[torch.dtype], nn.Linear]:
    def make(dtype: torch.dtype) -> nn.Linear:
        net = nn.Sequential(_linear(dtype))
        ao.quantize_(net, config)
        return net[0]

    return make


def _linear(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(IN, OUT).to(dtype)


def _four_bits(double: bool) -> Callable[[torch.dtype], nn.Linear]:
    def make(dtype: torch.dtype) -> nn.Linear:
        plain = _linear(dtype)
        layer = bnb.nn.Linear4bit(IN, OUT, compute_dtype=dtype, compress_statistics=double, quant_type="nf4")
        layer.support_avx512bf16_for_cpu = False
        layer.weight = bnb.nn.Params4bit(
            plain.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=double, module=layer
        )
        layer.bias = plain.bias
        return layer.to("cpu")

    return make


def _eight_bits(dtype: torch.dtype) -> nn.Linear:
    plain = _linear(dtype)
    layer = bnb.nn.Linear8bitLt(IN, OUT, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(plain.weight.data, has_fp16_weights=False, requires_grad=False)
    layer.bias = plain.bias
    return layer.to("cpu")


INT4 = ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=granularity.PerGroup(32))
WAYS = {
    "torchao-int8": _torchao(ao.Int8WeightOnlyConfig()),
    "torchao-int4": _torchao(INT4),
    "nf4": _four_bits(False),
    "nf4-double": _four_bits(True),
}
EVERY_WAY = {**WAYS, "llm-int8": _eight_bits}
way = pytest.mark.parametrize("way", WAYS)
every_way = pytest.mark.parametrize("way", EVERY_WAY)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    warnings.filterwarnings("ignore", module="torchao|bitsandbytes")


def adapted(way: str, dtype: torch.dtype = torch.float32, names: tuple[str, ...] = ("default",), **settings: object):
    """A net of one quantised layer with shaken adapters, and the layer before it was adapted."""
    layer = EVERY_WAY[way](dtype)
    net = nn.Sequential(layer).requires_grad_(False)
    adapters = None
    for seed, name in enumerate(names):
        adapters = attach(net, name=name, rank=RANK, seed=seed, targets="0", **settings)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapters.parameters(name):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return net, adapters


def batch(dtype: torch.dtype) -> Tensor:
    torch.manual_seed(7)
    return torch.randn(3, 5, IN, dtype=dtype, requires_grad=True)


def gap(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected.detach().double()).norm() / expected.detach().double().norm())


def factors(adapters, name: str = "default") -> list[Tensor]:
    return [adapters.tensors(name)[f"0|{role}"].clone().requires_grad_(True) for role in "AB"]


@every_way
def test_a_quantised_weight_is_told_from_a_plain_one_and_written_out(way: str) -> None:
    plain, layer = _linear(torch.float32), EVERY_WAY[way](torch.float32)
    assert is_quantized(layer.weight) and not is_quantized(plain.weight)
    dense = dense_weight(layer)
    assert dense.shape == (OUT, IN) and dense.is_floating_point()
    assert 1e-4 < gap(dense, plain.weight) < (0.02 if "int8" in way else 0.15)
    assert torch.equal(dense_weight(plain), plain.weight)


@way
@dtypes
def test_output_is_the_written_out_base_plus_the_update(way: str, dtype: torch.dtype) -> None:
    net, adapters = adapted(way, dtype)
    x = batch(dtype)
    a, b = (factor.to(dtype) for factor in factors(adapters))
    expected = plain_linear(x, dense_weight(net[0]).to(dtype), net[0].bias, a, b, 2.0)
    assert gap(net(x), expected) < CLOSE[dtype]
    with torch.no_grad():
        assert gap(net(x), expected) < CLOSE[dtype]


@way
@dtypes
def test_gradients_are_those_over_a_plain_layer_with_the_written_out_weight(way: str, dtype: torch.dtype) -> None:
    net, adapters = adapted(way, dtype)
    twin = nn.Linear(IN, OUT).to(dtype)
    twin.weight.data, twin.bias.data = dense_weight(net[0]).to(dtype), net[0].bias.data.clone()
    plain = nn.Sequential(twin)
    other = attach(plain, rank=RANK, targets="0")
    other.load_tensors("default", adapters.tensors("default"))
    gradients = []
    for model, handle in ((net, adapters), (plain, other)):
        x = batch(dtype)
        model(x).float().square().sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in handle.parameters("default"))])
    for found, expected in zip(*gradients, strict=True):
        assert expected is not None and found is not None and found.dtype == expected.dtype
        assert gap(found, expected) < CLOSE[dtype]


def test_llm_int8_rounds_its_inputs_going_forward_and_passes_whole_gradients_back() -> None:
    net, adapters = adapted("llm-int8")
    x = batch(torch.float32)
    a, b = factors(adapters)
    dense = dense_weight(net[0])
    y = net(x)
    assert gap(y, plain_linear(x, dense, net[0].bias, a, b, 2.0)) < 0.02
    y.sum().backward()
    expected = torch.ones(3, 5, OUT) @ (dense + 2.0 * b @ a)
    assert x.grad is not None and gap(x.grad, expected.detach()) < 1e-4


@every_way
def test_the_plain_form_agrees_with_the_fused_one(way: str) -> None:
    net, adapters = adapted(way)
    found = []
    for fused in (True, False):
        adapters.fused = fused
        x = batch(torch.float32)
        y = net(x)
        y.square().sum().backward()
        found.append((y, x.grad, *(parameter.grad.clone() for parameter in adapters.parameters())))
        for parameter in adapters.parameters():
            parameter.grad = None
    for one, two in zip(*found, strict=True):
        assert gap(one, two) < (1e-5 if way != "llm-int8" else 1e-3)


@every_way
def test_without_an_adapter_acting_every_bit_is_the_layers_own(way: str) -> None:
    x = batch(torch.float32).detach()
    expected = EVERY_WAY[way](torch.float32)(x)
    net, adapters = adapted(way)
    with adapters.disable():
        assert torch.equal(net(x), expected)
    assert not torch.equal(net(x), expected)
    assert torch.equal(adapters.detach()(x), expected)
    assert adapters_of(net) is None


@every_way
def test_a_fresh_adapter_changes_no_bit(way: str) -> None:
    x = batch(torch.float32)
    layer = EVERY_WAY[way](torch.float32)
    expected = layer(x).detach()
    net = nn.Sequential(layer)
    attach(net, rank=RANK, targets="0")
    assert torch.equal(net(x).detach(), expected)


@every_way
def test_weighted_and_routed_rows_are_each_row_alone(way: str) -> None:
    net, adapters = adapted(way, names=("one", "two"))
    x = batch(torch.float32)
    alone = []
    for row, choice in enumerate(("one", None, {"one": 0.3, "two": 0.7})):
        with adapters.activate({} if choice is None else choice):
            alone.append(net(x[row : row + 1]))
    with adapters.route(["one", None, {"one": 0.3, "two": 0.7}]):
        routed = net(x)
        with torch.no_grad():
            assert gap(net(x), routed) < 1e-6
    # LLM.int8 rounds by row too, but takes columns with outliers by the whole batch.
    assert gap(routed, torch.cat(alone)) < (1e-5 if way != "llm-int8" else 0.02)


@every_way
def test_biases_and_dropout(way: str) -> None:
    net, adapters = adapted(way, bias="adapted", dropout=0.5)
    adapters.training_mode(False)
    x = batch(torch.float32)
    copied = adapters.tensors("default")["0.bias|bias"]
    with adapters.disable():
        own = net(x)
    a, b = factors(adapters)
    expected = own + (copied - net[0].bias) + 2.0 * x @ a.t() @ b.t()
    assert gap(net(x), expected) < 1e-5
    adapters.training_mode(True)
    dropped = net(x)
    assert gap(dropped, expected) > 0.01
    dropped.sum().backward()
    assert all(parameter.grad is not None for parameter in adapters.parameters())


@every_way
def test_merging_is_refused_with_what_to_do_instead(way: str) -> None:
    net, adapters = adapted(way)
    before = dense_weight(net[0]).clone()
    with pytest.raises(ConfigError, match="'0': the weight is quantised .* loaded without quantize"):
        adapters.merge()
    assert not adapters.merged and torch.equal(dense_weight(net[0]), before)


@every_way
def test_tensors_travel_and_copies_compute_the_same(way: str) -> None:
    net, adapters = adapted(way)
    other, fresh = adapted(way, names=("default",))
    fresh.load_tensors("default", {key: value * 0 for key, value in adapters.tensors("default").items()})
    x = batch(torch.float32)
    assert not torch.equal(other(x), net(x))
    fresh.load_tensors("default", adapters.tensors("default"))
    assert torch.equal(other(x), net(x))
    if way != "llm-int8":  # bitsandbytes' own 8-bit layers cannot be copied with their state
        assert torch.equal(copy.deepcopy(net)(x), net(x))


@pytest.mark.parametrize("way", ["torchao-int8", "nf4"])
def test_nothing_of_the_weights_size_is_kept_for_the_way_back(way: str) -> None:
    net, _ = adapted(way)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(batch(torch.float32))
    assert kept and max(kept) < IN * OUT


@pytest.mark.parametrize("way", ["torchao-int8", "torchao-int4", "nf4"])
def test_compiled_it_computes_the_same(way: str) -> None:
    net, adapters = adapted(way)
    compiled = torch.compile(net, backend="aot_eager", dynamic=True)
    results = []
    for model in (net, compiled):
        x = batch(torch.float32)
        y = model(x)
        y.square().sum().backward()
        results.append((y, x.grad, *(parameter.grad.clone() for parameter in adapters.parameters())))
        for parameter in adapters.parameters():
            parameter.grad = None
    for one, two in zip(*results, strict=True):
        assert gap(one, two) < 1e-5
