"""Adapters inside what torch does to models: compiling, checkpointing, copying, moving, spreading, vmapping."""

from __future__ import annotations

import copy
import io
import pickle
import shutil
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from tests.adapters import two_processes
from tests.adapters.cases import BF16, BY_NAME, CASES, FLOAT32, Case, shake
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from loraloom.adapters import LoRA, adapters_of, attach
from loraloom.adapters.layers import slot_of

CLOSE = {"rtol": 1e-10, "atol": 1e-11}
BACKEND = "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
every_case = pytest.mark.parametrize("case", CASES, ids=str)
one_of_each = pytest.mark.parametrize(
    "case",
    [BY_NAME[name] for name in ("linear", "conv2d-groups", "embedding", "attention", "experts", "head", "tied-head")],
    ids=str,
)


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    adapters = adapters_of(model)
    assert adapters is not None
    adapters.training_mode(False)
    parameters = list(adapters.parameters())
    grads = torch.autograd.grad(model(x).square().sum(), parameters)
    return list(grads)


def assert_all_close(found: list[Tensor], expected: list[Tensor], **how: float) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **(how or CLOSE))


# -- torch.compile -------------------------------------------------------------------------------------


@pytest.fixture
def compiler() -> str:
    torch._dynamo.reset()
    return BACKEND


def test_a_linear_model_compiles_in_one_graph(compiler: str) -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    adapters = attach(model, name="a", rank=2)
    shake(adapters, "a")
    x = torch.randn(5, 8)
    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    eager = torch.autograd.grad(model(x).square().sum(), list(adapters.parameters()))
    ours = torch.autograd.grad(compiled(x).square().sum(), list(adapters.parameters()))
    assert_all_close(list(ours), list(eager), rtol=1e-4, atol=1e-5)


def test_a_compiled_model_follows_switches_weights_and_routes() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    adapters = attach(model, name="a", rank=2)
    adapters.add("b", rank=2, seed=1)
    for seed, name in enumerate("ab"):
        shake(adapters, name, seed)
    x = torch.randn(3, 8)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for switch in ({"a": 1.0}, {"b": 1.0}, {"a": 0.5, "b": 0.5}, {}, {"a": 0.3, "b": -1.0}):
        adapters.activate(switch)
        torch.testing.assert_close(compiled(x), model(x), msg=str(switch))
    adapters.route(["b", None, "a"])
    torch.testing.assert_close(compiled(x), model(x))
    adapters.activate("a")
    adapters.merge()
    merged = model(x)
    torch.testing.assert_close(compiled(x), merged)


@pytest.mark.parametrize("name", ["conv2d-groups", "embedding", "transposed", "attention", "head"])
def test_other_layers_run_compiled(name: str) -> None:
    torch._dynamo.reset()
    case = BY_NAME[name]
    model, x = case.model(), case.batch()
    case.attach(model, shaken=True)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(x), model(x), **CLOSE)
    expected = gradients(model, x)
    assert_all_close(gradients(compiled, x), expected)


# -- memory savers -------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("reentrant", [False, True], ids=["saved-hooks", "reentrant"])
def test_activation_checkpointing_gives_the_same_gradients(case: Case, reentrant: bool) -> None:
    model, x = case.model(), case.batch()
    adapters = case.attach(model, shaken=True)
    expected = gradients(model, x)
    if reentrant and not x.is_floating_point():
        pytest.skip("reentrant checkpointing needs an input that can require gradients")
    y = checkpoint(model, x.clone().requires_grad_(reentrant), use_reentrant=reentrant)
    y.square().sum().backward()
    assert_all_close([parameter.grad for parameter in adapters.parameters()], expected)


def test_checkpointing_recomputes_the_same_dropout() -> None:
    case = BY_NAME["linear-dropout"]
    model, x = case.model(), case.batch()
    adapters = case.attach(model, shaken=True)
    model.train()
    grads = []
    for wrapped in (False, True):
        torch.manual_seed(3)
        y = checkpoint(model, x, use_reentrant=False) if wrapped else model(x)
        grads.append(torch.autograd.grad(y.square().sum(), list(adapters.parameters())))
    assert_all_close(list(grads[0]), list(grads[1]))


@one_of_each
def test_autocast_computes_in_bf16_and_keeps_float32_gradients(case: Case) -> None:
    model, x = case.model().float(), case.batch()
    x = x.float() if x.is_floating_point() else x
    adapters = case.attach(model, shaken=True, dtype=FLOAT32)
    exact = gradients(model, x)
    with torch.autocast("cpu", dtype=BF16):
        y = model(x)
        grads = torch.autograd.grad(y.float().square().sum(), list(adapters.parameters()))
    assert y.isfinite().all()
    for found, right in zip(grads, exact, strict=True):
        assert found.dtype == FLOAT32
        assert (found - right).norm() <= 0.06 * right.norm()


# -- dropout -------------------------------------------------------------------------------------------


def test_dropout_acts_in_training_only_and_keeps_the_mean() -> None:
    case = BY_NAME["linear-alone"]
    model, x = case.model(), case.batch(rows=1)
    adapters = case.attach(model, shaken=True, dropout=0.4)
    with torch.no_grad():
        expected = model(x)
        model.train()
        torch.manual_seed(0)
        draws = torch.stack([model(x) for _ in range(4000)])
        adapters.training_mode(False)
        torch.testing.assert_close(model(x), expected, **CLOSE)
        adapters.training_mode(None)
        model.eval()
        torch.testing.assert_close(model(x), expected, **CLOSE)
        adapters.training_mode(True)
        assert not torch.equal(model(x), model(x))
    spread = draws.std(dim=0)
    assert (spread > 0).all()
    assert ((draws.mean(dim=0) - expected).abs() < 5 * spread / 4000**0.5).all()


@pytest.mark.parametrize("name", ["linear", "conv1d-bias", "conv2d-groups", "embedding", "transposed", "tied-head"])
def test_every_layer_that_adds_to_its_output_can_drop(name: str) -> None:
    case = BY_NAME[name]
    model, x = case.model(), case.batch()
    adapters = case.attach(model, shaken=True, dropout=0.5)
    still = model(x).detach()
    model.train()
    y = model(x)
    grads = torch.autograd.grad(y.square().sum(), list(adapters.parameters()))
    assert all(grad.isfinite().all() for grad in grads)
    assert torch.equal(y, still) == (name == "embedding"), "token ids have nothing to drop"


def test_each_adapter_drops_its_own_share() -> None:
    case = BY_NAME["linear-alone"]
    model, x = case.model(), case.batch()
    adapters = case.attach(model, "kept", shaken=True, dropout=0.0)
    adapters = case.attach(model, "dropped", shaken=True, dropout=0.9)
    model.train()
    adapters.activate("kept")
    torch.testing.assert_close(model(x), model(x), **CLOSE)
    adapters.activate({"kept": 1.0, "dropped": 1.0})
    assert not torch.equal(model(x), model(x))
    adapters.route(["kept", "dropped", None])
    first, second = model(x), model(x)
    assert torch.equal(first[0], second[0]) and torch.equal(first[2], second[2])
    assert not torch.equal(first[1], second[1])


# -- copies and moves ----------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_is_equal_and_independent(case: Case, way: str) -> None:
    if way != "deepcopy" and "conv1d" in case.name:
        pytest.skip("one convolution is enough")
    model, x = case.model(), case.batch()
    adapters = case.attach(model, "a", "b", shaken=True)
    adapters.activate({"a": 0.5, "b": 2.0}, head="a" if "heads" in case.settings else None)
    expected = model(x).detach()
    twin = _copied(model, way)
    torch.testing.assert_close(twin(x).detach(), expected, rtol=0, atol=0)
    theirs = adapters_of(twin)
    assert theirs is not None and theirs is not adapters and theirs.model is twin
    assert theirs.active == adapters.active and theirs.names == adapters.names
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(1.0)
    theirs.activate("a")
    torch.testing.assert_close(model(x).detach(), expected, rtol=0, atol=0)
    theirs.detach()
    torch.testing.assert_close(twin(x).detach(), case.model()(x).detach(), **CLOSE)
    torch.testing.assert_close(model(x).detach(), expected, rtol=0, atol=0)


def _copied(model: nn.Module, way: str) -> nn.Module:
    if way == "deepcopy":
        return copy.deepcopy(model)
    if way == "pickle":
        twin: nn.Module = pickle.loads(pickle.dumps(model))
        return twin
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded: nn.Module = torch.load(buffer, weights_only=False)
    return loaded


def test_a_copy_of_a_merged_model_can_be_unmerged() -> None:
    case = BY_NAME["linear"]
    model = case.model()
    adapters = case.attach(model, shaken=True)
    adapters.merge()
    twin = copy.deepcopy(model)
    theirs = adapters_of(twin)
    assert theirs is not None
    theirs.unmerge()
    base = case.model().state_dict()
    assert all(torch.equal(tensor, base[key]) for key, tensor in twin.state_dict().items())
    assert adapters.merged and not torch.equal(model.state_dict()["first.weight"], base["first.weight"])


@every_case
def test_moving_and_casting_take_the_adapters_along(case: Case) -> None:
    model, x = case.model(), case.batch()
    adapters = case.attach(model, "a", "b", shaken=True)
    adapters.activate({"a": 0.5, "b": 2.0}, head="a" if "heads" in case.settings else None)
    with torch.no_grad():
        expected = model(x)  # fills the caches that a move must empty
        model.to(FLOAT32)
        half = model(x.to(FLOAT32) if x.is_floating_point() else x)
    assert {parameter.dtype for parameter in adapters.parameters()} == {FLOAT32}
    torch.testing.assert_close(half.double(), expected, rtol=1e-4, atol=1e-4)
    model.to("meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert set(adapters.parameters()) <= set(model.parameters())


def test_a_model_on_the_meta_device_can_be_planned_and_attached() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    adapters = attach(model, rank=2)
    assert {parameter.device.type for parameter in adapters.parameters()} == {"meta"}
    assert model(torch.empty(3, 8, device="meta")).shape == (3, 4)


def test_the_preferred_device_of_torch_does_not_change_the_seeded_start() -> None:
    expected = attach(nn.Sequential(nn.Linear(4, 4)), rank=2).tensors("default")["0|A"]
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.device("meta"):
        adapters = attach(model, rank=2)
    assert torch.equal(adapters.tensors("default")["0|A"], expected)


def test_a_recurrent_layer_holds_its_own_weights_again_after_a_call() -> None:
    case = BY_NAME["matrix-lstm"]
    model = case.model()
    case.attach(model, shaken=True)
    model(case.batch())
    for kept, name in zip(model.lstm._flat_weights, model.lstm._flat_weights_names, strict=True):
        assert kept is getattr(model.lstm, name), "the weights of the call, and its graph, live on"


def test_hooks_of_the_base_layers_still_run() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    seen: list[str] = []
    model[0].register_forward_pre_hook(lambda *_: seen.append("pre"))
    attach(model, rank=2)
    model[0].register_forward_hook(lambda *_: seen.append("post"))
    model(torch.ones(1, 4))
    assert seen == ["pre", "post"]


# -- nn.TransformerEncoder's fast path -----------------------------------------------------------------


def test_the_encoders_fast_path_does_not_skip_adapters() -> None:
    case = BY_NAME["encoder"]
    model, x = case.model(), case.batch()
    padding = torch.tensor([[False] * 4 + [True], [False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        base = model(x, src_key_padding_mask=padding)
    adapters = case.attach(model, shaken=True)
    slow = model(x, src_key_padding_mask=padding).detach()
    with torch.no_grad():
        fast = model(x, src_key_padding_mask=padding)
        assert (fast - base)[~padding].abs().max() > 1e-2
        torch.testing.assert_close(fast[~padding], slow[~padding], **CLOSE)
        adapters.merge()
        torch.testing.assert_close(model(x, src_key_padding_mask=padding)[~padding], slow[~padding], **CLOSE)
        adapters.detach()
        torch.testing.assert_close(model(x, src_key_padding_mask=padding), base, rtol=0, atol=0)


# -- torch.func ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["linear", "linear-bias-adapted", "conv2d-groups", "embedding", "transposed", "matrix"]
)
def test_per_sample_gradients_through_vmap(name: str) -> None:
    case = BY_NAME[name]
    model, x = case.model(), case.batch()
    adapters = case.attach(model, shaken=True)
    adapters.training_mode(False)
    named = {key: p for key, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, parameters, (sample.unsqueeze(0),)).square().sum()

    per_sample = vmap(grad(loss), in_dims=(None, 0))({key: p.detach() for key, p in named.items()}, x)
    for row in range(len(x)):
        expected = torch.autograd.grad(model(x[row : row + 1]).square().sum(), list(named.values()))
        assert_all_close([per_sample[key][row] for key in named], list(expected))


def test_functional_call_uses_the_parameters_it_is_given() -> None:
    case = BY_NAME["linear"]
    model, x = case.model(), case.batch()
    adapters = case.attach(model, "a", "b", shaken=True)
    adapters.activate({"a": 1.0, "b": 1.0})
    names = [key for key, p in model.named_parameters() if any(p is q for q in adapters.parameters())]
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            plain = model(x)
            for factor in (2.0, 0.0, 3.0):
                given = {key: model.get_parameter(key).detach() * factor for key in names}
                found = functional_call(model, given, (x,))
                with torch.no_grad():
                    kept = [p.clone() for p in adapters.parameters()]
                    for parameter in adapters.parameters():
                        parameter.mul_(factor)
                    expected = model(x)
                    for parameter, value in zip(adapters.parameters(), kept, strict=True):
                        parameter.copy_(value)
                torch.testing.assert_close(found, expected, **CLOSE)
            torch.testing.assert_close(model(x), plain, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_tensors_that_come_to_lie_where_others_lay_are_not_taken_for_them(device: str) -> None:
    """A hypernetwork, or an average of checkpoints, gives new factors call after call, often in the same memory."""
    case = BY_NAME["linear-alone"]
    model, x = case.model().to(device), case.batch().to(device)
    base = model(x)
    adapters = case.attach(model, shaken=True, dtype=FLOAT32)  # what is kept is a cast copy, not the tensor itself
    adapters.set_trainable()
    update = model(x) - base
    key, factor_a = next((key, p.detach()) for key, p in model.named_parameters() if "lora_A" in key)
    for factor in range(20):
        found = functional_call(model, {key: factor_a * factor}, (x,))
        torch.testing.assert_close(found, base + factor * update, rtol=1e-5, atol=1e-5)


def test_an_ensemble_of_factors_under_vmap_without_gradients() -> None:
    case = BY_NAME["linear-alone"]
    model, x = case.model(), case.batch()
    adapters = case.attach(model, "a", "b", shaken=True)
    adapters.activate({"a": 1.0, "b": 1.0})
    factors = {key: p.detach() for key, p in model.named_parameters() if "lora_" in key}
    many = {key: torch.stack([p, 2 * p]) for key, p in factors.items()}
    with torch.no_grad():
        found = vmap(lambda given: functional_call(model, given, (x,)))(many)
        expected = [functional_call(model, {k: m * p for k, p in factors.items()}, (x,)) for m in (1, 2)]
    torch.testing.assert_close(found, torch.stack(expected), **CLOSE)


# -- several processes ---------------------------------------------------------------------------------


def test_two_processes_get_the_gradients_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(two_processes.worker, args=(port, str(tmp_path)), nprocs=2)
    model, x = two_processes.model_and_batch()
    model(x).square().mean().backward()
    expected = two_processes.gradients(model)
    assert len(expected) == 2 * 2 + 2 + 2
    for rank in range(2):
        grads = torch.load(tmp_path / f"{rank}.pt")
        assert grads.keys() == expected.keys()
        assert_all_close([grads[name] for name in expected], list(expected.values()))


def test_the_state_dict_of_a_wrapped_lora_holds_the_adapter() -> None:
    """DataParallel, DistributedDataParallel and trainers gather a model's state through its parents."""
    lora = LoRA(nn.Sequential(nn.Linear(4, 4)), rank=2)
    outer = nn.ModuleDict({"lora": lora, "other": nn.Linear(4, 1)})
    state = outer.state_dict()
    assert list(state) == ["lora.0|A", "lora.0|B", "other.weight", "other.bias"]
    changed = {key: torch.randn_like(tensor) for key, tensor in state.items()}
    base = lora.model[0].weight.clone()
    result = outer.load_state_dict(changed)
    assert not result.missing_keys and not result.unexpected_keys
    assert all(torch.equal(tensor, changed[key]) for key, tensor in outer.state_dict().items())
    assert torch.equal(lora.model[0].weight, base)
    with pytest.raises(RuntimeError, match="missing tensor '0|B'"):
        outer.load_state_dict({key: tensor for key, tensor in changed.items() if key != "lora.0|B"})


def test_slots_stay_out_of_the_way_of_a_walk_over_modules() -> None:
    model = BY_NAME["linear"].model()
    BY_NAME["linear"].attach(model)
    assert slot_of(model.first) is not None and slot_of(model) is None
    assert "AdaptedLinear" not in type(model).__name__ and str(model.first).startswith("AdaptedLinear(")
