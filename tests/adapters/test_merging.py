"""Merging, for every layer kind, option and dtype: merged is attached, and unmerging brings every bit back."""

from __future__ import annotations

import pytest
import torch
from tests.adapters.cases import (
    BY_NAME,
    EXACT,
    FLOAT64,
    Case,
    bits_of,
    differ,
    every_case,
    every_case_and_dtype,
    out,
    same_bits,
)
from torch import Tensor, nn

from loraloom.errors import ConfigError


@every_case
def test_merged_is_attached(case: Case) -> None:
    model, x = case.model(), case.batch()
    adapters = case.attach(model, shaken=True)
    base, attached = out(case.model(), x), out(model, x)
    adapters.merge()
    assert differ(base, attached)
    torch.testing.assert_close(out(model, x), attached, **EXACT)
    assert adapters.merged == {"default": 1.0} and adapters.active == {}


@every_case
def test_a_merged_mix_is_the_attached_mix(case: Case) -> None:
    model, x = case.model(), case.batch()
    adapters = case.attach(model, "a", "b", shaken=True)
    adapters.activate({"a": 0.7, "b": -0.4}, head="b" if "heads" in case.settings else None)
    attached = out(model, x)
    adapters.merge()
    torch.testing.assert_close(out(model, x), attached, **EXACT)


@every_case_and_dtype
def test_unmerge_brings_every_bit_back(case: Case) -> None:
    model, x = case.model(), case.batch()
    adapters = case.attach(model, shaken=True)
    before, attached = bits_of(model), out(model, x)
    adapters.merge()
    assert any(not same_bits(before[key], tensor) for key, tensor in model.state_dict().items())
    adapters.unmerge()
    assert all(same_bits(before[key], tensor) for key, tensor in model.state_dict().items())
    assert same_bits(out(model, x), attached) and adapters.active == {"default": 1.0}


@every_case
def test_merging_twice_is_merging_once(case: Case) -> None:
    model, x = case.model(), case.batch()
    adapters = case.attach(model, shaken=True)
    adapters.merge()
    once, bits = out(model, x), bits_of(model)
    adapters.merge()
    adapters.merge("default")
    assert same_bits(out(model, x), once)
    assert all(same_bits(bits[key], tensor) for key, tensor in model.state_dict().items())
    adapters.unmerge()
    adapters.unmerge()
    assert all(same_bits(a, b) for a, b in zip(bits_of(case.model()).values(), bits_of(model).values(), strict=True))


@every_case_and_dtype
def test_what_is_merged_is_the_delta(case: Case) -> None:
    """In a merged model the base weight is W + ΔW, rounded once, and the adapter no longer acts on top."""
    model = case.model()
    adapters = case.attach(model, shaken=True)
    base = {path: parameter.detach().clone() for path, parameter in model.named_parameters()}
    deltas = {site.path: adapters.delta("default", site.path) for site in adapters.plan("default").sites}
    adapters.merge()
    for site in adapters.plan("default").sites:
        path = f"{site.module}.{site.parameter}".lstrip(".")
        weight = model.get_parameter(path)
        expected = (base[_first_name(model, weight)].to(deltas[site.path].dtype) + deltas[site.path]).to(case.dtype)
        assert deltas[site.path].shape == weight.shape
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-6 if case.dtype is not FLOAT64 else 1e-12, atol=0)


def _first_name(model: nn.Module, weight: Tensor) -> str:
    return next(name for name, parameter in model.named_parameters() if parameter is weight)


def test_while_merged_nothing_else_can_be_changed() -> None:
    adapters = BY_NAME["linear"].attach(BY_NAME["linear"].model(), "a", "b")
    adapters.merge("a")
    for change in (
        lambda: adapters.activate("b"),
        lambda: adapters.set_weight("a", 0.5),
        lambda: adapters.route(["a"]),
        lambda: adapters.merge("b"),
        lambda: adapters.add("c"),
        lambda: adapters.delete("a"),
    ):
        with pytest.raises(ConfigError, match="a is merged: call unmerge"):
            change()
    assert adapters.names == ["a", "b"] and adapters.merged == {"a": 1.0}


def test_a_switch_that_ends_after_a_merge_does_not_make_it_act_twice() -> None:
    case = BY_NAME["linear"]
    model, x = case.model(), case.batch()
    adapters = case.attach(model, "a", "b", shaken=True)
    with adapters.activate("a"):
        attached = out(model, x)
        adapters.merge()
    torch.testing.assert_close(out(model, x), attached, **EXACT)
    adapters.unmerge()
    assert adapters.active == {"b": 1.0}


@pytest.mark.parametrize("weights", [{"a": float("nan")}, {"a": 1.0, "c": 1.0}])
def test_what_cannot_be_merged_changes_nothing(weights: dict[str, float]) -> None:
    model = BY_NAME["linear"].model()
    adapters = BY_NAME["linear"].attach(model, "a", shaken=True)
    before = bits_of(model)
    with pytest.raises(ConfigError):
        adapters.merge(weights)
    assert all(same_bits(before[key], tensor) for key, tensor in model.state_dict().items())
    assert adapters.merged == {}


def test_merging_while_samples_are_routed_asks_for_names() -> None:
    adapters = BY_NAME["linear"].attach(BY_NAME["linear"].model(), "a", "b")
    adapters.route(["a", "b", None])
    with pytest.raises(ConfigError, match="name the adapters to merge"):
        adapters.merge()
    adapters.merge("a")
    adapters.unmerge()
    assert adapters.routes == ({"a": 1.0}, {"b": 1.0}, {})


def test_a_separately_adapted_tied_weight_cannot_be_merged() -> None:
    case = BY_NAME["tied-embedding"]
    model = case.model()
    adapters = case.attach(model, tied="separate", shaken=True)
    before = bits_of(model)
    with pytest.raises(ConfigError, match="'tokens' is tied .*lm_head.weight.* adapted separately"):
        adapters.merge()
    assert all(same_bits(before[key], tensor) for key, tensor in model.state_dict().items())
