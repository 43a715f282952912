"""What holds for every layer kind, option and dtype, over one table of cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.adapters.cases import BF16, BY_NAME, CASES, CASES_ALL_DTYPES, FLOAT32, FLOAT64, Case
from torch import Tensor, nn

from loraloom.adapters import AdapterSet
from loraloom.adapters.layers import slot_of
from loraloom.errors import ConfigError, FormatError

EXACT = {"rtol": 1e-11, "atol": 1e-12}

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_case_and_dtype = pytest.mark.parametrize("case", CASES_ALL_DTYPES, ids=str)
linear_in_weights = pytest.mark.parametrize("case", [case for case in CASES if case.mixes], ids=str)
routable = pytest.mark.parametrize("case", [case for case in CASES if case.routes], ids=str)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def bits_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def differ(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-3)


@torch.no_grad()
def out(model: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = model(x)
    return y


# -- attaching -----------------------------------------------------------------------------------------


@every_case_and_dtype
@pytest.mark.parametrize("grad", [False, True], ids=["no-grad", "grad"])
def test_a_new_adapter_changes_no_bit_of_the_output(case: Case, grad: bool) -> None:
    model, x = case.model(), case.batch()
    model.requires_grad_(False)  # torch folds products, and so rounds, by whether a weight requires gradients
    with torch.set_grad_enabled(grad):
        before = model(x).detach()
        case.attach(model)
        after = model(x).detach()
    if "heads" in case.settings and case.dtype is BF16:
        assert after.dtype == FLOAT32, "a float32 head over a bf16 base computes in float32"
        torch.testing.assert_close(after, before.float(), rtol=2e-2, atol=2e-2)
    elif case.name == "encoder" or (grad and case.name.startswith(("attention", "matrix-lstm"))):
        # The encoder's fast path, which adapters switch off, rounds otherwise; so does W + ΔW with gradients.
        torch.testing.assert_close(after, before, atol=2e-2 if case.dtype is BF16 else 1e-6, rtol=1e-6)
    else:
        assert same_bits(before, after)


@every_case
def test_two_identical_adapters_at_once_still_change_no_bit(case: Case) -> None:
    model, x = case.model(), case.batch()
    before = model(x).detach()
    adapters = case.attach(model, "a", "b")
    adapters.activate({"a": 0.7, "b": 0.3}, head="a" if "heads" in case.settings else None)
    torch.testing.assert_close(model(x).detach(), before, **EXACT)


@every_case
def test_the_state_dict_stays_the_bases(case: Case) -> None:
    model = case.model()
    before = bits_of(model)
    case.attach(model, shaken=True)
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(same_bits(before[key], after[key]) for key in before)


@every_case
def test_a_base_checkpoint_still_loads_strictly(case: Case) -> None:
    model, other, x = case.model(), case.model(seed=9), case.batch()
    adapters = case.attach(model, shaken=True)
    tensors = {key: tensor.clone() for key, tensor in adapters.tensors("default").items()}
    result = model.load_state_dict(other.state_dict(), strict=True)
    assert not result.missing_keys and not result.unexpected_keys
    assert all(same_bits(tensor, adapters.tensors("default")[key]) for key, tensor in tensors.items())
    with adapters.disable():
        torch.testing.assert_close(out(model, x), out(other, x))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({**other.state_dict(), "stray": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(dict(list(other.state_dict().items())[1:]))


@every_case
def test_attaching_leaves_the_training_mode_alone(case: Case) -> None:
    model = case.model()
    model.train()
    next(iter(model.modules())).training = False
    modes = [module.training for module in model.modules()]
    case.attach(model).detach()
    assert [module.training for module in model.modules()] == modes


@every_case
def test_isinstance_and_paths_stay(case: Case) -> None:
    model = case.model()
    before = [(path, type(module)) for path, module in model.named_modules()]
    case.attach(model)
    after = list(model.named_modules())
    assert [path for path, _ in before] == [path for path, _ in after]
    assert all(isinstance(module, cls) for (_, cls), (_, module) in zip(before, after, strict=True))


# -- gradients -----------------------------------------------------------------------------------------


@every_case_and_dtype
def test_only_declared_parameters_receive_gradients(case: Case) -> None:
    model, x = case.model(), case.batch()
    base = [parameter for parameter in model.parameters()]
    adapters = case.attach(model, shaken=True)
    model.train()
    adapters.training_mode(False)
    model(x).square().sum().backward()
    declared = {id(parameter) for parameter in adapters.parameters("default")}
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in base)
    assert {id(parameter) for parameter in model.parameters() if parameter.requires_grad} == declared
    for key, parameter in adapters.named_parameters("default"):
        assert parameter.grad is not None, f"{key} receives no gradient"
        assert parameter.grad.dtype == parameter.dtype and parameter.grad.isfinite().all()
        if not key.endswith("in_proj_bias|bias"):
            assert parameter.grad.abs().max() > 0, f"the gradient of {key} is zero"


@every_case_and_dtype
def test_factors_are_in_the_dtype_asked_for(case: Case) -> None:
    adapters = case.attach(case.model())
    for key, parameter in adapters.named_parameters("default"):
        assert parameter.dtype == case.factor_dtype, key


@every_case
def test_gradients_are_those_of_the_update_written_out(case: Case) -> None:
    """The gradient of the loss by A and B through the layer is that through W + ΔW, by finite differences."""
    model, x = case.model(), case.batch()
    adapters = case.attach(model, shaken=True)
    adapters.training_mode(False)
    weights = torch.randn(model(x).shape, generator=torch.Generator().manual_seed(5), dtype=FLOAT64)
    loss = (model(x) * weights).sum()
    grads = torch.autograd.grad(loss, list(adapters.parameters("default")))
    generator = torch.Generator().manual_seed(6)
    for (key, parameter), grad in zip(adapters.named_parameters("default"), grads, strict=True):
        direction = torch.randn(parameter.shape, generator=generator, dtype=FLOAT64)
        if case.name == "embedding-padding":
            direction[..., 2] = 0  # the padding token's column of A is kept from training
        slope = _slope(model, x, weights, parameter, direction)
        along = (grad * direction).sum().item()
        assert along == pytest.approx(slope, rel=1e-6, abs=1e-7), key


@torch.no_grad()
def _slope(model: nn.Module, x: Tensor, weights: Tensor, parameter: Tensor, direction: Tensor) -> float:
    def loss() -> float:
        return float((model(x) * weights).sum())

    step = 2e-6
    parameter.add_(step * direction)
    above = loss()
    parameter.sub_(2 * step * direction)
    below = loss()
    parameter.add_(step * direction)
    return (above - below) / (2 * step)


@every_case
def test_adapters_trained_side_by_side_get_the_gradients_of_each_alone(case: Case) -> None:
    x = case.batch(rows=5)
    rows = {"a": [0, 3], "b": [1, 2, 4]}
    together = case.model()
    adapters = case.attach(together, "a", "b", shaken=True)
    adapters.set_trainable("a", "b")
    adapters.training_mode(False)
    adapters.route([next(name for name, mine in rows.items() if row in mine) for row in range(5)])
    together(x).square().sum().backward()
    for name, mine in rows.items():
        alone = case.model()
        single = case.attach(alone, "a", "b", shaken=True)
        single.training_mode(False)
        single.activate(name)
        single.set_trainable(name)
        alone(x[mine]).square().sum().backward()
        theirs = dict(single.named_parameters(name))
        for key, parameter in adapters.named_parameters(name):
            assert parameter.grad is not None and theirs[key].grad is not None, key
            torch.testing.assert_close(parameter.grad, theirs[key].grad, **EXACT)


def test_set_trainable_chooses_who_receives_gradients() -> None:
    case = BY_NAME["linear"]
    model = case.model()
    adapters = case.attach(model, "a", "b", shaken=True)
    adapters.activate({"a": 1.0, "b": 1.0})
    assert {name for name in "ab" for p in adapters.parameters(name) if p.requires_grad} == {"b"}
    adapters.set_trainable("a")
    model(case.batch()).sum().backward()
    assert all(parameter.grad is not None for parameter in adapters.parameters("a"))
    assert all(parameter.grad is None for parameter in adapters.parameters("b"))
    with pytest.raises(ConfigError, match="no adapter named 'c'"):
        adapters.set_trainable("c")
    assert all(parameter.requires_grad for parameter in adapters.parameters("a"))


def test_the_padding_tokens_column_is_not_trained() -> None:
    case = BY_NAME["embedding-padding"]
    model = case.model()
    adapters = case.attach(model, shaken=True)
    model(torch.tensor([[2, 2, 4, 1]])).square().sum().backward()
    grad = dict(adapters.named_parameters("default"))["tokens|A"].grad
    assert grad[:, 2].abs().max() == 0 and grad[:, 4].abs().max() > 0


# -- merging -------------------------------------------------------------------------------------------


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


# -- tensors -------------------------------------------------------------------------------------------


@every_case_and_dtype
def test_tensors_carry_an_adapter_to_a_fresh_model_bitwise(case: Case) -> None:
    model, fresh, x = case.model(), case.model(), case.batch()
    adapters, other = case.attach(model, shaken=True), case.attach(fresh, seed=7)
    assert differ(out(model, x).float(), out(fresh, x).float())
    tensors = adapters.tensors("default")
    other.load_tensors("default", tensors)
    assert all(same_bits(tensor, other.tensors("default")[key]) for key, tensor in tensors.items())
    assert same_bits(out(model, x), out(fresh, x))


@every_case
def test_the_plan_counts_what_is_there(case: Case) -> None:
    adapters = case.attach(case.model())
    tensors = adapters.tensors("default")
    assert adapters.num_parameters("default") == sum(tensor.numel() for tensor in tensors.values())
    assert len(tensors) == len(set(map(Tensor.data_ptr, tensors.values())))
    roles = adapters.parameters_by_role("default")
    assert sum(len(parameters) for parameters in roles.values()) == len(tensors)
    assert {key.rpartition("|")[2] for key in tensors} == {role for role, found in roles.items() if found}


def test_tensors_that_do_not_fit_are_all_named_and_change_nothing() -> None:
    case = BY_NAME["linear"]
    adapters = case.attach(case.model(), shaken=True)
    before = {key: tensor.clone() for key, tensor in adapters.tensors("default").items()}
    wrong: dict[str, Any] = {key: torch.ones_like(tensor) for key, tensor in before.items()}
    del wrong["first|A"]
    wrong["frist|A"] = torch.ones(4, 6)
    wrong["first|B"] = torch.ones(4, 4)
    wrong["second|B"] = torch.full((4, 4), float("nan"))
    with pytest.raises(FormatError) as error:
        adapters.load_tensors("default", wrong)
    message = str(error.value)
    assert "4 faults" in message and "missing tensor 'first|A' of shape (4, 6)" in message
    assert "'frist|A' of shape (4, 6) belongs to nothing; did you mean 'first|A'" in message
    assert "'first|B' has shape (4, 4), expected (5, 4)" in message
    assert "'second|B' holds values that are not finite" in message
    assert all(same_bits(tensor, adapters.tensors("default")[key]) for key, tensor in before.items())


@every_case
def test_a_seed_gives_the_same_factors_whatever_else_is_adapted(case: Case) -> None:
    first = case.attach(case.model(), seed=3).tensors("default")
    torch.rand(7)
    again = case.attach(case.model(), seed=3).tensors("default")
    other = case.attach(case.model(), seed=4).tensors("default")
    assert all(same_bits(tensor, again[key]) for key, tensor in first.items())
    random = [key for key in first if key.endswith("|A") and first[key].abs().max() > 0]
    assert all(not torch.equal(first[key], other[key]) for key in random)


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
