"""The fused linear update against its plain twin, against finite differences and against numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.adapters.cases import BF16, FLOAT32, FLOAT64
from torch import Tensor, nn

from loraloom.adapters import attach, fused_linear, plain_linear
from loraloom.adapters.functional import routed_linear

B, T, D, OUT, R = 3, 4, 7, 5, 3
SHAPES: dict[str, tuple[int, ...]] = {
    "1-D": (D,),
    "2-D": (B, D),
    "3-D": (B, T, D),
    "4-D": (B, 2, T, D),
    "one-row": (1, 1, D),
    "no-rows": (0, T, D),
}
LIMITS = {FLOAT64: 1e-10, FLOAT32: 1e-5}
Linear = Callable[..., Tensor]


def tensors(shape: tuple[int, ...], dtype: torch.dtype, factors: torch.dtype | None = None) -> dict[str, Tensor]:
    """x, weight, bias, a, b in double precision, then in the dtypes asked for."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": shape, "weight": (OUT, D), "bias": (OUT,), "a": (R, D), "b": (OUT, R)}
    made = {name: torch.randn(size, generator=generator, dtype=FLOAT64) for name, size in shapes.items()}
    return {name: t.to(factors or dtype if name in ("a", "b") else dtype) for name, t in made.items()}


def gate_of(kind: str, shape: tuple[int, ...], dtype: torch.dtype = FLOAT64) -> float | Tensor:
    generator = torch.Generator().manual_seed(1)
    if kind == "number":
        return 1.7
    size = (R,) if kind == "vector" else (shape[0], R)
    return torch.randn(size, generator=generator, dtype=FLOAT64).to(dtype)


def run(linear: Linear, made: dict[str, Tensor], gate: float | Tensor, *, bias: bool = True) -> list[Tensor]:
    """The output, and the gradients of a fixed function of it by x, bias, a and b."""
    leaves = {name: tensor.detach().clone() for name, tensor in made.items()}
    if not made["x"].is_contiguous():
        leaves["x"] = made["x"].detach()
    wanted = [leaves[name].requires_grad_() for name in ("x", "a", "b", *(["bias"] if bias else []))]
    y = linear(leaves["x"], leaves["weight"], leaves["bias"] if bias else None, leaves["a"], leaves["b"], gate)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=FLOAT64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), wanted)]


def error(found: Tensor, expected: Tensor) -> float:
    if not expected.numel():
        return 0.0
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("gate", ["number", "vector", "per-sample"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_fused_is_its_plain_twin(shape: str, gate: str, dtype: torch.dtype, bias: bool) -> None:
    size = SHAPES[shape]
    if gate == "per-sample" and shape == "1-D":
        pytest.skip("a single row has no batch to route")
    made, factor = tensors(size, dtype), gate_of(gate, size, dtype)
    found, expected = run(fused_linear, made, factor, bias=bias), run(plain_linear, made, factor, bias=bias)
    assert found[0].shape == (*size[:-1], OUT)
    for name, a, b in zip(("y", "x", "a", "b", "bias"), found, expected, strict=False):
        assert a.shape == b.shape and a.dtype == b.dtype == dtype, name
        assert error(a, b) <= LIMITS[dtype], name


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "sliced"])
def test_x_may_lie_in_memory_as_it_likes(layout: str, dtype: torch.dtype) -> None:
    made = tensors((B, T, D), dtype)
    x = made["x"]
    made["x"] = {
        "transposed": x.transpose(0, 1).contiguous().transpose(0, 1),
        "strided": x.repeat_interleave(2, dim=-1)[..., ::2],
        "expanded": x[:1].expand(B, T, D),
        "sliced": torch.cat([x, x], dim=1)[:, :T],
    }[layout]
    assert not made["x"].is_contiguous()
    gate = gate_of("per-sample", (B, T, D), dtype)
    for a, b in zip(run(fused_linear, made, gate), run(plain_linear, made, gate), strict=True):
        assert error(a, b) <= LIMITS[dtype]


def test_weight_may_be_a_transposed_view() -> None:
    made = tensors((B, T, D), FLOAT64)
    expected = run(plain_linear, made, 1.3)
    made["weight"] = made["weight"].t().contiguous().t()
    for a, b in zip(run(fused_linear, made, 1.3), expected, strict=True):
        assert error(a, b) <= 1e-12


@pytest.mark.parametrize("gate", ["number", "vector", "per-sample"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_gradcheck(gate: str, bias: bool) -> None:
    made, factor = tensors((2, 3, D), FLOAT64), gate_of(gate, (2, 3, D))
    names = ("x", "a", "b", *(["bias"] if bias else []))

    def function(*leaves: Tensor) -> Tensor:
        given = dict(zip(names, leaves, strict=True))
        return fused_linear(given["x"], made["weight"], given.get("bias"), given["a"], given["b"], factor)

    assert torch.autograd.gradcheck(function, tuple(made[name].clone().requires_grad_() for name in names))


@pytest.mark.parametrize("gate", ["number", "vector", "per-sample"])
def test_both_are_the_formula_in_numpy(gate: str) -> None:
    made, factor = tensors((B, T, D), FLOAT64), gate_of(gate, (B, T, D))
    x, w, bias, a, b = (made[name].numpy() for name in ("x", "weight", "bias", "a", "b"))
    s = np.broadcast_to(np.asarray(factor), (B, R) if gate != "number" else ())
    s = s[:, None, :] if gate != "number" else s
    y = np.einsum("btd,od->bto", x, w) + bias + np.einsum("btr,or->bto", s * np.einsum("btd,rd->btr", x, a), b)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=FLOAT64).numpy()
    dh = s * np.einsum("bto,or->btr", dy, b)
    expected = [
        y,
        np.einsum("bto,od->btd", dy, w) + np.einsum("btr,rd->btd", dh, a),
        np.einsum("btr,btd->rd", dh, x),
        np.einsum("bto,btr->or", dy, s * np.einsum("btd,rd->btr", x, a)),
        dy.sum((0, 1)),
    ]
    for linear in (fused_linear, plain_linear):
        for found, right in zip(run(linear, made, factor), expected, strict=True):
            np.testing.assert_allclose(found.numpy(), right, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("missing", ["x", "a", "b", "bias"])
def test_no_gradient_is_made_that_nobody_wants(missing: str) -> None:
    made = tensors((B, T, D), FLOAT64)
    leaves = {name: tensor.clone().requires_grad_(name not in (missing, "weight")) for name, tensor in made.items()}
    y = fused_linear(leaves["x"], leaves["weight"], leaves["bias"], leaves["a"], leaves["b"], 2.0)
    y.square().sum().backward()
    plain = {name: tensor.clone().requires_grad_(name not in (missing, "weight")) for name, tensor in made.items()}
    plain_linear(plain["x"], plain["weight"], plain["bias"], plain["a"], plain["b"], 2.0).square().sum().backward()
    assert leaves[missing].grad is None and leaves["weight"].grad is None
    for name in {"x", "a", "b", "bias"} - {missing}:
        assert error(leaves[name].grad, plain[name].grad) <= 1e-12


def test_gradients_add_up_over_calls() -> None:
    made = tensors((B, D), FLOAT64)
    a = made["a"].requires_grad_()
    for _ in range(2):
        fused_linear(made["x"], made["weight"], None, a, made["b"], 1.0).sum().backward()
    once = torch.autograd.grad(plain_linear(made["x"], made["weight"], None, a, made["b"], 1.0).sum(), a)[0]
    assert error(a.grad, 2 * once) <= 1e-12


def test_a_second_derivative_is_refused_not_wrong() -> None:
    made = tensors((B, D), FLOAT64)
    x = made["x"].requires_grad_()
    (first,) = torch.autograd.grad(
        fused_linear(x, made["weight"], None, made["a"].requires_grad_(), made["b"], 1.0).square().sum(),
        x,
        create_graph=True,
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("linear", [fused_linear, plain_linear], ids=["fused", "plain"])
def test_bf16_with_float32_factors_gives_float32_gradients(linear: Linear) -> None:
    made = tensors((B, T, D), BF16, factors=FLOAT32)
    gate = gate_of("per-sample", (B, T, D), FLOAT32)
    y, dx, da, db, dbias = run(linear, made, gate)
    assert (y.dtype, dx.dtype, da.dtype, db.dtype, dbias.dtype) == (BF16, BF16, FLOAT32, FLOAT32, BF16)
    exact = run(plain_linear, {name: tensor.double() for name, tensor in made.items()}, gate)
    for found, right in zip((y, dx, da, db, dbias), exact, strict=True):
        assert error(found, right) < 0.03


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no-grad"])
def test_autocast(grad: bool) -> None:
    made = tensors((B, T, D), FLOAT32)
    x, weight, bias, a, b = (made[name] for name in ("x", "weight", "bias", "a", "b"))
    a, b = a.requires_grad_(grad), b.requires_grad_(grad)
    with torch.autocast("cpu", dtype=BF16), torch.set_grad_enabled(grad):
        fused, plain = (linear(x, weight, bias, a, b, 1.5) for linear in (fused_linear, plain_linear))
    assert fused.dtype == plain.dtype == BF16
    assert error(fused, plain_linear(x, weight, bias, a, b, 1.5).detach()) < 0.03
    if grad:
        grads = torch.autograd.grad(fused.float().square().sum(), (a, b))
        exact = torch.autograd.grad(plain_linear(x, weight, bias, a, b, 1.5).square().sum(), (a, b))
        assert all(g.dtype == FLOAT32 and error(g, right) < 0.05 for g, right in zip(grads, exact, strict=True))
    double = {name: tensor.double() for name, tensor in made.items()}
    with torch.autocast("cpu", dtype=BF16), torch.no_grad():
        y = fused_linear(*(double[name] for name in ("x", "weight", "bias", "a", "b")), 1.5)
    assert y.dtype == FLOAT64, "autocast leaves double precision alone, as F.linear does"


@pytest.mark.parametrize("linear", [fused_linear, plain_linear], ids=["fused", "plain"])
def test_a_gate_for_another_batch_is_refused(linear: Linear) -> None:
    made = tensors((B, T, D), FLOAT64)
    with pytest.raises(ValueError, match="2 samples are routed, but a layer got 3 rows"):
        linear(made["x"], made["weight"], None, made["a"], made["b"], torch.ones(2, R, dtype=FLOAT64))


def test_an_update_of_zero_changes_no_bit() -> None:
    for dtype in (FLOAT64, FLOAT32, BF16):
        for size in SHAPES.values():
            made = tensors(size, dtype)
            made["b"].zero_()
            for bias in (made["bias"], None):
                expected = nn.functional.linear(made["x"], made["weight"], bias)
                for grad in (False, True):
                    with torch.set_grad_enabled(grad):
                        a, b = made["a"].requires_grad_(grad), made["b"].requires_grad_(grad)
                        assert torch.equal(fused_linear(made["x"], made["weight"], bias, a, b, 2.0), expected)


@pytest.mark.parametrize("linear", [fused_linear, plain_linear], ids=["fused", "plain"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_comes_next_may_write_into_the_output(linear: Linear, shape: str) -> None:
    """As Wav2Vec2's encoder does, which zeroes padded positions in place."""
    made = tensors(SHAPES[shape], FLOAT64)
    a = made["a"].requires_grad_()
    y = linear(made["x"], made["weight"], made["bias"], a, made["b"], 1.7)
    y[..., ::2] = 0
    (da,) = torch.autograd.grad(y.sum(), a)
    apart = linear(made["x"], made["weight"], made["bias"], a, made["b"], 1.7)
    (expected,) = torch.autograd.grad(apart[..., 1::2].sum(), a)
    assert error(da, expected) < 1e-12


def test_the_saved_input_is_not_a_copy() -> None:
    """The rows that backward needs are the caller's own memory, and nothing else of their size is kept."""
    made = tensors((64, 8, D), FLOAT32)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fused_linear(made["x"], made["weight"], made["bias"], made["a"].requires_grad_(), made["b"], 1.0)
    large = [tensor for tensor in kept if tensor.numel() >= made["x"].numel()]
    assert [tensor.data_ptr() for tensor in large] == [made["x"].data_ptr()]


def test_the_layer_uses_the_fused_path_and_can_be_told_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    from loraloom.adapters.layers import linear as layer_module

    calls: list[str] = []

    def spy(name: str, function: Any) -> None:
        def spied(*args: Any) -> Tensor:
            calls.append(name)
            y: Tensor = function(*args)
            return y

        monkeypatch.setattr(layer_module, f"{name}_linear", spied)

    spy("fused", fused_linear)
    spy("plain", plain_linear)
    model = nn.Sequential(nn.Linear(4, 4))
    adapters = attach(model, rank=2)
    model(torch.ones(1, 4))
    adapters.fused = False
    model(torch.ones(1, 4))
    assert calls == ["fused", "plain"]


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 6), (4, 2, 3, 6)], ids=str)
def test_routed_samples_are_what_the_stacked_gate_gives(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*size, dtype=torch.float64) for size in (shape, (5, 6), (5,)))
    a, b = torch.randn(3 * 2, 6, dtype=torch.float64), torch.randn(5, 3 * 2, dtype=torch.float64)
    scale = torch.tensor([[0.5, 0, 0], [0, 0, -2.0], [0, 0, 0], [0, 1.0, 0]], dtype=torch.float64)
    routed = routed_linear(x, weight, bias, a, b, scale.abs().argmax(1), scale)
    stacked = plain_linear(x, weight, bias, a, b, scale.repeat_interleave(2, dim=1))
    assert torch.allclose(routed, stacked, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="4 samples are routed, but a layer got 3 rows"):
        routed_linear(x[:3], weight, bias, a, b, scale.abs().argmax(1), scale)
