"""Who acts, for every layer kind and option: mixing, routing, switching, deleting, detaching."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.adapters.cases import (
    BY_NAME,
    EXACT,
    Case,
    bits_of,
    differ,
    every_case,
    every_case_and_dtype,
    linear_in_weights,
    out,
    routable,
    same_bits,
)
from torch import Tensor, nn

from loraloom.adapters import AdapterSet
from loraloom.adapters.layers import slot_of
from loraloom.errors import ConfigError

# -- who acts ------------------------------------------------------------------------------------------


@every_case_and_dtype
def test_disabled_is_the_base(case: Case) -> None:
    model, x = case.model(), case.batch()
    adapters = case.attach(model, shaken=True)
    expected = case.model()
    expected.requires_grad_(False)
    with adapters.disable():
        got = out(model, x)
    if case.name.startswith("encoder"):
        torch.testing.assert_close(got, out(expected, x))
    else:
        assert same_bits(got, out(expected, x))
    assert differ(out(model, x).float(), got.float())


@linear_in_weights
def test_a_weighted_mix_is_the_sum_of_its_parts(case: Case) -> None:
    model, x = case.model(), case.batch()
    base = out(model, x)
    adapters = case.attach(model, "a", "b", "c", shaken=True)
    mix = {"a": 0.7, "b": -1.3, "c": 0.2}
    expected = base.clone()
    for name, weight in mix.items():
        adapters.activate(name)
        expected += weight * (out(model, x) - base)
    adapters.activate(mix)
    torch.testing.assert_close(out(model, x), expected, **EXACT)
    torch.testing.assert_close(model(x).detach(), expected, **EXACT)


@linear_in_weights
def test_adapters_of_other_ranks_and_scales_mix(case: Case) -> None:
    model, x = case.model(), case.batch()
    base = out(model, x)
    rank = 8 if "groups" in case.name or "depthwise" in case.name else 3
    adapters = case.attach(model, "a", shaken=True)
    case.attach(
        model, "b", shaken=True, **{**case.settings, "rank": rank + rank % 2, "alpha": 5.0, "scaling": "rslora"}
    )
    adapters.activate("a")
    parts = out(model, x) - base
    adapters.activate("b")
    parts = 0.4 * parts + 1.1 * (out(model, x) - base)
    adapters.activate({"b": 1.1, "a": 0.4})
    torch.testing.assert_close(out(model, x), base + parts, **EXACT)


@routable
@pytest.mark.parametrize("grad", [False, True], ids=["no-grad", "grad"])
def test_a_routed_batch_is_each_row_alone(case: Case, grad: bool) -> None:
    model, x = case.model(), case.batch()
    adapters = case.attach(model, "a", "b", shaken=True)
    with adapters.disable():
        base = out(model, x)
    mix: Any = "b" if "heads" in case.settings else {"a": 0.5, "b": -0.7}
    routes = ["a", None, mix]
    expected = []
    for row, route in enumerate(routes):
        with adapters.activate({} if route is None else route):
            expected.append(out(model, x)[row])
    with torch.set_grad_enabled(grad), adapters.route(routes):
        got = model(x).detach()
    torch.testing.assert_close(got, torch.stack(expected), **EXACT)
    assert differ(got[0], base[0]) and differ(got[2], base[2])


@routable
def test_a_batch_routed_to_one_adapter_is_that_adapter(case: Case) -> None:
    model, x = case.model(), case.batch()
    adapters = case.attach(model, "a", "b", shaken=True)
    adapters.activate("a")
    expected = out(model, x)
    adapters.route(["a"] * len(x))
    torch.testing.assert_close(out(model, x), expected, **EXACT)


@pytest.mark.parametrize("name", ["linear", "conv2d", "embedding", "transposed", "attention", "matrix", "head"])
def test_routes_for_another_number_of_rows_are_refused(name: str) -> None:
    case = BY_NAME[name]
    model = case.model()
    adapters = case.attach(model, "a", "b")
    adapters.route(["a", "b"])
    with pytest.raises(ValueError, match="2 samples are routed"):
        model(case.batch())


@every_case
def test_deleting_an_adapter_leaves_the_others(case: Case) -> None:
    model, x = case.model(), case.batch()
    adapters = case.attach(model, "a", "b", shaken=True)
    adapters.activate("a")
    expected = out(model, x)
    adapters.activate("b")
    adapters.delete("b")
    base = out(case.model(), x)
    torch.testing.assert_close(out(model, x), base, **EXACT)
    adapters.activate("a")
    torch.testing.assert_close(out(model, x), expected, **EXACT)
    assert adapters.names == ["a"] and not [name for name, _ in model.named_parameters() if name.endswith("_b")]
    adapters.delete("a")
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    assert all(slot_of(module) is None for module in model.modules())


@every_case
def test_detaching_gives_the_model_back(case: Case) -> None:
    model, x = case.model(), case.batch()
    next(model.parameters()).requires_grad_(False)
    classes = [type(module) for module in model.modules()]
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    attributes = [sorted(vars(module)) for module in model.modules()]
    bits, expected = bits_of(model), out(model, x)
    adapters = case.attach(model, "a", "b", shaken=True)
    adapters.merge("a")
    assert adapters.detach() is model
    assert [type(module) for module in model.modules()] == classes
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert [sorted(vars(module)) for module in model.modules()] == attributes
    assert all(same_bits(bits[key], tensor) for key, tensor in model.state_dict().items())
    assert same_bits(out(model, x), expected)


# -- switches ------------------------------------------------------------------------------------------


def _three() -> tuple[AdapterSet, nn.Module, Tensor]:
    case = BY_NAME["linear"]
    model = case.model()
    return case.attach(model, "a", "b", "c", shaken=True), model, case.batch()


def test_switches_restore_what_was_before_also_nested_and_after_an_error() -> None:
    adapters, model, x = _three()
    adapters.activate({"a": 0.5, "c": 2.0})
    expected = out(model, x)
    with adapters.activate("b"):
        in_b = out(model, x)
        with adapters.disable():
            assert adapters.active == {}
            with adapters.route(["a", "b", None]):
                assert adapters.routes is not None
            assert adapters.routes is None and adapters.active == {}
        assert same_bits(out(model, x), in_b)
        adapters.set_weight("b", 3.0)
    assert adapters.active == {"a": 0.5, "c": 2.0} and same_bits(out(model, x), expected)
    with pytest.raises(KeyError), adapters.route(["b", "b", "a"]), adapters.disable():
        raise KeyError
    assert adapters.routes is None and same_bits(out(model, x), expected)


def test_a_switch_without_with_holds() -> None:
    adapters, model, x = _three()
    adapters.activate("a")
    in_a = out(model, x)
    adapters.activate("b")
    assert adapters.active == {"b": 1.0} and differ(out(model, x), in_a)


def test_a_refused_switch_changes_nothing() -> None:
    adapters, model, x = _three()
    before, state = out(model, x), dict(adapters.active)
    for refused in (
        lambda: adapters.activate("d"),
        lambda: adapters.activate({"a": float("nan")}),
        lambda: adapters.activate({"a": 1.0}, head="b"),
        lambda: adapters.route(["a", "d", None]),
        lambda: adapters.route([{"a": float("inf")}, None, None]),
        lambda: adapters.set_weight("a", float("inf")),
        lambda: adapters.delete("d"),
        lambda: adapters.merge("d"),
        lambda: adapters.add("a"),
        lambda: adapters.add("not a name"),
        lambda: adapters.add("a.b"),
        lambda: adapters.add("e", rank=0),
        lambda: adapters.add("e", targets="nothing"),
    ):
        with pytest.raises((ConfigError, LookupError)):
            refused()
        assert adapters.names == ["a", "b", "c"] and adapters.active == state and adapters.routes is None
    assert same_bits(out(model, x), before)


def test_set_weight_turns_one_adapter_and_lets_it_join() -> None:
    adapters, model, x = _three()
    adapters.activate("a")
    adapters.set_weight("a", 0.25)
    adapters.set_weight("b", 2.0)
    got = out(model, x)
    adapters.activate({"a": 0.25, "b": 2.0})
    assert same_bits(got, out(model, x))
    adapters.set_weight("b", 0.0)
    adapters.set_weight("a", 1.0)
    torch.testing.assert_close(out(model, x), _only(adapters, model, x, "a"), **EXACT)


def _only(adapters: AdapterSet, model: nn.Module, x: Tensor, name: str) -> Tensor:
    with adapters.activate(name):
        return out(model, x)


def test_heads_are_chosen_never_mixed() -> None:
    case = BY_NAME["head"]
    model, x = case.model(), case.batch()
    adapters = case.attach(model, "a", "b", shaken=True)
    with pytest.raises(ConfigError, match="each have a head 'classifier'.*head='b'"):
        adapters.activate({"a": 0.5, "b": 0.5})
    with pytest.raises(ConfigError, match="each have a head"):
        adapters.route([{"a": 0.5, "b": 0.5}, None, None])
    with pytest.raises(ConfigError, match="each have a head"):
        adapters.merge({"a": 0.5, "b": 0.5})
    adapters.activate({"a": 0.0, "b": 1.0}, head="b")
    torch.testing.assert_close(out(model, x), _only(adapters, model, x, "b"), **EXACT)
    adapters.delete("b")
    adapters.set_weight("a", 1.0)
    assert adapters.head is None


def test_changed_factors_are_seen_at_once() -> None:
    """Stacks kept between calls without gradients follow the factors."""
    adapters, model, x = _three()
    adapters.activate({"a": 1.0, "b": 1.0})
    before = out(model, x)
    with torch.no_grad():
        next(adapters.parameters("a")).mul_(3.0)
    changed = out(model, x)
    assert differ(changed, before)
    torch.testing.assert_close(changed, model(x).detach(), **EXACT)
    fresh = dict(adapters.named_parameters("b"))["first|B"]
    fresh.data = fresh.data * 2
    assert differ(out(model, x), changed)
    torch.testing.assert_close(out(model, x), model(x).detach(), **EXACT)


def test_an_evaluation_in_inference_mode_does_not_spoil_training() -> None:
    adapters, model, x = _three()
    adapters.activate({"a": 1.0, "b": 0.5})
    adapters.set_trainable("a", "b")
    with torch.inference_mode():
        model(x)
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in adapters.parameters("a", "b"))
