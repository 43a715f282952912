"""Targets, noise levels and weights against the papers' formulas, written out again in plain float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from loraloom.errors import BaseModelError
from loraloom.tasks.diffusion.objective import Objective, noised, objective_of, target

SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def level(step: int) -> float:
    """ā of Stable Diffusion: the product of 1 − β, √β evenly spaced."""
    low, high = math.sqrt(0.00085), math.sqrt(0.012)
    return math.prod(1 - (low + (high - low) * number / 999) ** 2 for number in range(step + 1))


@pytest.mark.parametrize("step", [0, 1, 250, 999])
def test_noise_levels_are_those_of_the_schedule(step: int) -> None:
    times = objective_of(SD).at_steps(torch.tensor([step]))
    assert float(times.signal) == pytest.approx(math.sqrt(level(step)), rel=1e-5)
    assert float(times.spread) == pytest.approx(math.sqrt(1 - level(step)), rel=1e-4)
    assert float(times.model) == step


@pytest.mark.parametrize(("named", "kind"), [("epsilon", "epsilon"), ("v_prediction", "v")])
def test_the_target_is_the_formula(named: str, kind: str) -> None:
    objective = objective_of({**SD, "prediction_type": named})
    assert objective.prediction == kind
    x, e = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    times = objective.at_steps(torch.tensor([37, 803]))
    seen = noised(x, e, times.signal, times.spread)
    wanted = target(objective.prediction, x, e, times.signal, times.spread)
    for row, step in enumerate((37, 803)):
        signal, spread = math.sqrt(level(step)), math.sqrt(1 - level(step))
        noisy = signal * x[row].double() + spread * e[row].double()
        formula = e[row].double() if kind == "epsilon" else signal * e[row].double() - spread * x[row].double()
        torch.testing.assert_close(seen[row].double(), noisy, rtol=0, atol=2e-5)
        torch.testing.assert_close(wanted[row].double(), formula, rtol=0, atol=2e-5)


def test_flow_matching_is_the_straight_line_and_its_slope() -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    objective = objective_of(config)
    assert objective.prediction == "flow"
    x, e = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    times = objective.at_sigmas(torch.tensor([0.25], dtype=torch.float64))
    torch.testing.assert_close(noised(x, e, times.signal, times.spread), 0.75 * x + 0.25 * e)
    torch.testing.assert_close(target("flow", x, e, times.signal, times.spread), e - x)
    assert float(times.model) == 250
    [middle] = objective.fixed(1)
    assert float(middle.spread) == pytest.approx(3 * 0.5 / (1 + 2 * 0.5))
    assert not torch.equal(objective.weights(times.signal, times.spread, 5.0), torch.zeros(1))


def test_flow_matching_draws_as_diffusers_trains() -> None:
    """Logit-normal times (2403.03206, § 3.1) through the scheduler's own shifted sigmas."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    objective = objective_of({**scheduler.config, "_class_name": type(scheduler).__name__})
    torch.manual_seed(0)
    ours = objective.draw(20_000).spread
    torch.manual_seed(1)
    chosen = (torch.randn(20_000).sigmoid() * 1000).long()
    theirs = scheduler.sigmas[chosen]
    for share in (0.1, 0.5, 0.9):
        assert float(ours.quantile(share)) == pytest.approx(float(theirs.quantile(share)), abs=0.01)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_the_papers(gamma: float) -> None:
    """2303.09556, § 3.4: min(SNR, γ) / SNR for ε; for v divided by SNR + 1."""
    steps = [0, 100, 500, 999]
    for named, below in (("epsilon", 0.0), ("v_prediction", 1.0)):
        objective = objective_of({**SD, "prediction_type": named})
        times = objective.at_steps(torch.tensor(steps))
        found = objective.weights(times.signal, times.spread, gamma)
        for step, weight in zip(steps, found.tolist(), strict=True):
            ratio = level(step) / (1 - level(step))
            assert weight == pytest.approx(min(ratio, gamma) / (ratio + below), rel=1e-4)
        assert objective.weights(times.signal, times.spread, None).tolist() == [1.0] * 4


def test_at_zero_signal_the_weight_is_finite() -> None:
    objective = objective_of({**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"})
    times = objective.at_steps(torch.tensor([999]))
    assert float(times.signal) == pytest.approx(0, abs=1e-4)
    for kind in ("epsilon", "v"):
        one = Objective(kind, objective.levels)  # type: ignore[arg-type]
        assert torch.isfinite(one.weights(times.signal * 0, times.spread, 5.0)).all()


def test_fixed_times_are_spread_evenly_and_drawn_ones_over_all() -> None:
    objective = objective_of(SD)
    assert [float(times.model) for times in objective.fixed(4)] == [125, 375, 625, 875]
    torch.manual_seed(0)
    drawn = objective.draw(4000).model
    assert drawn.min() < 20 and drawn.max() > 980 and float(drawn.mean()) == pytest.approx(500, abs=20)


def test_another_prediction_can_be_asked_for_and_an_unknown_one_is_refused() -> None:
    assert objective_of(SD, "v").prediction == "v"
    assert objective_of(SD, "flow").prediction == "flow"
    with pytest.raises(BaseModelError, match="prediction_type 'sample'; epsilon, v_prediction"):
        objective_of({**SD, "prediction_type": "sample"})
