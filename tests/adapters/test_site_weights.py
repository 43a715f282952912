"""Factors per site on top of an adapter's weight: forward, merged, routed and copied alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from loraloom.adapters import AdapterSet, adapters_of, attach
from loraloom.errors import ConfigError


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Conv1d(1, 3, 3, padding=1), nn.Flatten(1), nn.Linear(24, 5))


def shaken(net: nn.Module, *names: str, **settings: object) -> AdapterSet:
    for number, name in enumerate(names):
        adapters = attach(net, name=name, rank=2, targets="re:.*", **settings)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(number)
        for parameter in adapters.parameters(name):
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return adapters


X = torch.randn(4, 1, 6, generator=torch.Generator().manual_seed(9))


@torch.no_grad()
def out(net: nn.Module) -> torch.Tensor:
    y: torch.Tensor = net(X)
    return y


def by_hand(weights: dict[str, dict[str, float]]) -> torch.Tensor:
    """The output with every update added to its weight, scaled site by site."""
    net = model()
    source = model()
    adapters = shaken(source, *weights)
    with torch.no_grad():
        for name, sites in weights.items():
            for path, factor in sites.items():
                net.get_submodule(path).weight += factor * adapters.delta(name, path)  # type: ignore[operator]
    return out(net)


SITES = {"a": {"0": 0.5, "1": -1.0, "3": 0.0}, "b": {"0": 1.0, "1": 2.0, "3": 0.25}}
EXACT = {"rtol": 1e-5, "atol": 1e-5}


def turned() -> tuple[nn.Sequential, AdapterSet]:
    net = model()
    adapters = shaken(net, "a", "b")
    for name, factors in SITES.items():
        adapters.set_site_weights(name, factors)
    adapters.activate({"a": 1.0, "b": 1.0})
    return net, adapters


def test_factors_scale_each_site() -> None:
    net, adapters = turned()
    torch.testing.assert_close(out(net), by_hand(SITES), **EXACT)
    adapters.activate({"a": 0.5, "b": 1.0})
    half = {"a": {path: 0.5 * factor for path, factor in SITES["a"].items()}, "b": SITES["b"]}
    torch.testing.assert_close(out(net), by_hand(half), **EXACT)


def test_what_is_not_named_keeps_its_weight_and_none_takes_them_away() -> None:
    net = model()
    adapters = shaken(net, "a")
    whole = out(net)
    adapters.set_site_weights("a", {"0": 0.0})
    torch.testing.assert_close(out(net), by_hand({"a": {"0": 0.0, "1": 1.0, "3": 1.0}}), **EXACT)
    adapters.set_site_weights("a", None)
    assert torch.equal(out(net), whole)


def test_all_zero_is_the_base_to_the_bit() -> None:
    net = model()
    expected = out(net)
    adapters = shaken(net, "a")
    adapters.set_site_weights("a", dict.fromkeys(("0", "1", "3"), 0.0))
    assert torch.equal(out(net), expected)


def test_merged_is_attached_and_unmerging_restores_every_bit() -> None:
    net, adapters = turned()
    before = [parameter.clone() for parameter in net.parameters()]
    expected = out(net)
    adapters.merge()
    torch.testing.assert_close(out(net), expected, **EXACT)
    with pytest.raises(ConfigError, match="unmerge"):
        adapters.set_site_weights("a", {"0": 2.0})
    adapters.unmerge()
    assert all(torch.equal(one, other) for one, other in zip(before, net.parameters(), strict=True))
    assert torch.equal(out(net), expected)


def test_a_routed_row_is_the_row_alone() -> None:
    net, adapters = turned()
    adapters.route(["a", {"b": 0.5}, None, {"a": 1.0, "b": 1.0}])
    together = out(net)
    for row, mix in enumerate(({"a": 1.0}, {"b": 0.5}, {}, {"a": 1.0, "b": 1.0})):
        adapters.activate(mix)
        torch.testing.assert_close(together[row], out(net)[row], **EXACT)


def test_a_copied_bias_follows_its_layer() -> None:
    net = model()
    expected = out(net)
    adapters = shaken(net, "a", bias="adapted")
    sites = dict.fromkeys(("0", "1", "3"), 0.0)
    adapters.set_site_weights("a", sites)
    torch.testing.assert_close(out(net), expected, **EXACT)
    adapters.merge()
    torch.testing.assert_close(out(net), expected, **EXACT)


def test_weights_of_attention_and_of_raw_parameters() -> None:
    torch.manual_seed(0)
    net = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 3, 8)
    base = net(x, x, x)[0]
    adapters = attach(net, rank=2, parameters=["in_proj_weight"], targets=[])
    for parameter in adapters.parameters():
        parameter.data.normal_(0, 0.3)
    assert not torch.equal(net(x, x, x)[0], base)
    adapters.set_site_weights("default", {"in_proj_weight": 0.0})
    torch.testing.assert_close(net(x, x, x)[0], base, **EXACT)
    adapters.set_site_weights("default", {"in_proj_weight": 0.5})
    half = net(x, x, x)[0]
    adapters.set_site_weights("default", None)
    adapters.activate({"default": 0.5})
    torch.testing.assert_close(net(x, x, x)[0], half, **EXACT)


def test_training_goes_through_the_factor() -> None:
    net = model()
    adapters = shaken(net, "a")
    for factor in (1.0, 0.5):
        adapters.set_site_weights("a", {"3": factor})
        net.zero_grad()
        net(X).sum().backward()
        gradient = dict(adapters.named_parameters("a"))["3|B"].grad
        assert gradient is not None
        if factor == 1.0:
            whole = gradient.clone()
    torch.testing.assert_close(gradient, 0.5 * whole)


@pytest.mark.parametrize(
    ("name", "factors", "told"),
    [
        ("z", {"0": 1.0}, "no adapter named 'z'"),
        ("a", {"00": 1.0}, "no site '00' of its own; did you mean '0'"),
        ("a", {"0": float("nan")}, "must be finite"),
    ],
)
def test_what_cannot_be_is_told_and_changes_nothing(name: str, factors: dict[str, float], told: str) -> None:
    net, adapters = turned()
    expected = out(net)
    with pytest.raises(ConfigError, match=told):
        adapters.set_site_weights(name, factors)
    assert torch.equal(out(net), expected)


def test_a_deleted_adapter_takes_its_factors_along() -> None:
    net, adapters = turned()
    adapters.delete("a")
    shaken(net, "a")
    adapters.activate("a")
    torch.testing.assert_close(out(net), by_hand({"a": dict.fromkeys(("0", "1", "3"), 1.0)}), **EXACT)
    assert adapters_of(net) is adapters
