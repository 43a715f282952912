"""`LoRA(model, rank=4)` is what the reader of a widely copied, wrong snippet wanted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from loraloom import LoRA
from loraloom.adapters import adapters_of
from loraloom.errors import FormatError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))


def task() -> tuple[Tensor, Tensor]:
    """Labels that a rotated input decides, which the untrained network does not know."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(96, 10, generator=generator)
    return x, (x @ torch.randn(10, 3, generator=generator)).argmax(dim=1)


def test_the_output_is_unchanged_before_training() -> None:
    x, _ = task()
    expected = network()(x)
    assert torch.equal(LoRA(network(), rank=4)(x), expected)


def test_calls_do_not_pile_up() -> None:
    model, (x, _) = LoRA(network(), rank=4), task()
    with torch.no_grad():
        for parameter in model.adapters.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(2))
    first = model(x)
    for _ in range(5):
        again = model(x)
    assert torch.equal(first, again)
    weights = network().state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.model.state_dict().items())


def test_both_factors_are_reached_by_the_gradient_and_the_base_is_not() -> None:
    model, (x, y) = LoRA(network(), rank=4), task()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)  # all of them, as the snippet's reader would write
    base = {key: tensor.clone() for key, tensor in model.model.state_dict().items()}
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for _ in range(2):  # B is zero at first, so A's gradient is zero in the first step
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    for key, parameter in model.adapters.named_parameters("default"):
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
        assert not torch.equal(parameter.detach(), start[key]), key
    assert all(torch.equal(tensor, base[key]) for key, tensor in model.model.state_dict().items())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == model.adapters.num_parameters("default") == 4 * (10 + 32) + 4 * (32 + 32) + 4 * (32 + 3)


def test_it_learns() -> None:
    model, (x, y) = LoRA(network(), rank=4), task()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05
    with model.adapters.disable():
        assert nn.functional.cross_entropy(model(x), y).item() > 1.0


def test_its_state_is_the_adapter_alone_and_comes_back() -> None:
    model, (x, _) = LoRA(network(), rank=4), task()
    with torch.no_grad():
        for parameter in model.adapters.parameters():
            parameter.add_(0.1)
    state, expected = model.state_dict(), model(x)
    assert sorted(state) == ["0|A", "0|B", "2|A", "2|B", "4|A", "4|B"]
    with torch.no_grad():
        for parameter in model.adapters.parameters():
            parameter.add_(1.0)
    assert not torch.equal(model(x), expected), "a state is a copy"
    other = LoRA(network(), rank=4)
    assert str(other.load_state_dict(state)) == "<All keys matched successfully>"
    assert torch.equal(other(x), expected)
    with pytest.raises(FormatError, match="missing tensor '4|B'"):
        other.load_state_dict({key: tensor for key, tensor in state.items() if key != "4|B"})


def test_settings_and_keywords_pass_through() -> None:
    class Keyed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor, *, factor: float) -> Tensor:
            y: Tensor = self.inner(x) * factor
            return y

    base = Keyed()
    model = LoRA(base, 2, name="style", targets="inner", alpha=6.0)
    assert model(torch.ones(1, 4), factor=0.0).abs().sum() == 0
    assert adapters_of(model) is model.adapters and model.adapters.names == ["style"]
    assert model.adapters.plan("style").sites[0].scale == 3.0
