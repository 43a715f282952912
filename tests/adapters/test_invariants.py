"""What holds for every layer kind, option and dtype: attaching, gradients, tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.adapters.cases import (
    BF16,
    BY_NAME,
    EXACT,
    FLOAT32,
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

from loraloom.errors import ConfigError, FormatError

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
