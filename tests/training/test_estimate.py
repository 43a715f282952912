"""What a run is said to take before it: of time, of memory, and that nothing is changed by asking."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.tiny_task import TinyTask, state_bytes, tiny_config
from torch import Tensor, nn

from loraloom.errors import DataError, TargetError, TrainingError
from loraloom.tasks.base import BaseModel, Batch
from loraloom.training import timing
from loraloom.training.estimate import estimate, weight_bytes
from loraloom.training.run import train
from loraloom.training.timing import Timing, padded, spread, time_batches

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_ROUNDS", 2)


class Watched(TinyTask):
    """Keeps the model it loaded."""

    before: bytes = b""

    def load(self, *arguments: Any, **settings: Any) -> BaseModel:
        self.base = super().load(*arguments, **settings)
        self.before = state_bytes(self.base.model)
        return self.base


class Clocked(TinyTask):
    """Lets a clock of its own go on, and no other: by so much per batch and per padded position."""

    now = 0.0

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        self.now += 0.1 + 1e-3 * batch["words"].numel() ** 1.2
        return super().loss(model, batch)

    def predict(self, model: nn.Module, batch: Batch, base: BaseModel) -> list[int]:
        self.now += 0.05 + 5e-4 * batch["words"].numel()
        return super().predict(model, batch, base)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_nothing_is_written_and_no_tensor_is_changed(tmp_path: Path, method: str) -> None:
    task = Watched()
    config = tiny_config(tmp_path, method=method)
    files = sorted(tmp_path.rglob("*"))
    random.seed(3)
    torch.manual_seed(3)
    expected = (random.getstate(), torch.random.get_rng_state())
    found = estimate(config, task)
    assert state_bytes(task.base.model) == task.before
    assert all(parameter.grad is None for parameter in task.base.model.parameters())
    assert sorted(tmp_path.rglob("*")) == files
    assert random.getstate() == expected[0] and torch.equal(torch.random.get_rng_state(), expected[1])
    assert (found.method, found.steps, found.evaluations) == (method, 20, 3)
    trained = sum(parameter.numel() for parameter in task.base.model.parameters() if parameter.requires_grad)
    assert found.trained_parameters == trained


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("micro", [None, 6])
def test_time_is_what_the_run_takes(
    tmp_path: Path, method: str, micro: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, method=method, micro_batch_size=micro)
    task, other = Clocked(), Clocked()
    monkeypatch.setattr(time, "perf_counter", lambda: task.now)
    found = estimate(config, task).seconds
    monkeypatch.setattr(time, "perf_counter", lambda: other.now)
    truth = train(config, other).record["training"]["seconds"]
    assert found["training"] == pytest.approx(truth["training"], rel=0.02)
    # the first of three evaluations, before training, is not counted among the loop's
    assert found["evaluation"] * 2 / 3 == pytest.approx(truth["evaluation"], rel=0.02)
    parts = sum(seconds for part, seconds in found.items() if part != "total")
    assert found["total"] == pytest.approx(parts)


class Hungry(Watched):
    """Needs 2 MiB per example in a backward pass, four times over: two tensors and their gradients."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        loss, items = super().loss(model, batch)
        scale = torch.ones(items, 2**19).requires_grad_(True)
        held = scale.exp()
        time.sleep(0.02)  # long enough to be sampled
        return loss + 0.0 * held.mean(), items


def test_memory_is_the_largest_batchs_and_falls_with_the_micro_batch(tmp_path: Path) -> None:
    found = estimate(tiny_config(tmp_path), Hungry())
    memory = found.memory_mib
    assert 0.75 * 4 * 32 < memory["peak_above_base"] < 1.5 * 4 * 32
    assert memory["peak_above_base"] == pytest.approx(
        memory["adapter"] + memory["optimiser"] + memory["activations"], rel=0.05
    )
    assert memory["total"] == pytest.approx(memory["process"] + memory["peak_above_base"])
    assert [entry.size for entry in found.smaller] == [8, 4, 2, 1]
    peaks = [memory["peak_above_base"], *(entry.peak_mib for entry in found.smaller)]
    assert peaks == sorted(peaks, reverse=True) and peaks[1] < 0.75 * peaks[0]


def test_moments_follow_from_shapes_and_full_runs_say_model(tmp_path: Path) -> None:
    found = estimate(tiny_config(tmp_path, method="full"), TinyTask())
    assert found.memory_mib["optimiser"] * 2**20 == 2 * 4 * found.trained_parameters
    assert "model" in found.memory_mib and "adapter" not in found.memory_mib


def test_a_micro_batch_that_fits_is_told(tmp_path: Path) -> None:
    class Narrow(TinyTask):
        def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
            if len(batch["words"]) > 5:
                raise torch.OutOfMemoryError("out of memory")
            return super().loss(model, batch)

    found = estimate(tiny_config(tmp_path), Narrow())
    assert found.micro_batch == 4
    assert any("halved to 4" in note for note in found.notes)


def test_one_example_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    class Full(TinyTask):
        def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(TrainingError, match="memory ran out with one example"):
        estimate(tiny_config(tmp_path), Full())


@pytest.mark.parametrize(
    ("settings", "evaluations"),
    [
        ({"evaluate_every": 8}, 1 + 3),
        ({"max_steps": 5}, 1 + 1),
        ({"precision": "bf16"}, 1 + 2 + 1),
        ({"precision": "bf16", "compare_precision": False}, 1 + 2),
    ],
)
def test_evaluations_are_counted_as_the_run_makes_them(
    tmp_path: Path, settings: Mapping[str, Any], evaluations: int
) -> None:
    assert estimate(tiny_config(tmp_path, **settings), TinyTask()).evaluations == evaluations


def test_bad_settings_and_data_are_refused_as_in_training(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="nowhere"):
        estimate(tiny_config(tmp_path, adapter__targets="nowhere"), TinyTask())
    (tmp_path / "train.tsv").write_text("")
    with pytest.raises(DataError, match="no training examples"):
        estimate(tiny_config(tmp_path), TinyTask())


def test_an_estimate_is_plain_data(tmp_path: Path) -> None:
    data = asdict(estimate(tiny_config(tmp_path), TinyTask()))
    assert set(data["seconds"]) == {"preparation", "training", "evaluation", "saving", "proof", "total"}
    assert all(value >= 0 for part in ("seconds", "memory_mib") for value in data[part].values())


# -- timing --------------------------------------------------------------------------------------------


def test_seconds_lie_on_lines_between_the_points_and_in_proportion_beyond() -> None:
    line = Timing(((10, 1.0), (20, 3.0), (40, 4.0)))
    assert [line.seconds(size) for size in (10, 15, 20, 30, 40)] == [1.0, 2.0, 3.0, 3.5, 4.0]
    assert (line.seconds(5), line.seconds(80)) == (0.5, 8.0)
    assert line.total([10, 15, 40]) == 7.0


def test_batches_are_spread_from_the_smallest_to_the_largest() -> None:
    lengths = list(range(1, 101))
    batches = [[index, index - 1] for index in range(1, 100)]
    chosen = spread(batches, lengths)
    sizes = [padded(batch, lengths) for batch in chosen]
    assert (sizes[0], sizes[-1], len(sizes)) == (4, 200, 8)
    assert all(abs(later - earlier - 28) <= 2 for earlier, later in pairwise(sizes))
    assert spread([[0, 1]] * 7, [3, 3]) == [[0, 1]]
    assert padded([0], [0]) == 1


def test_rounds_end_with_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    time_batches(lambda batch: calls.append(len(batch)), [[0], [0, 1]], [1, 1], CPU, budget=-1.0)
    assert calls == [1, 2] * 2, "two rounds are always made"
    calls.clear()
    monkeypatch.setattr(timing, "_ROUNDS", 3)
    found = time_batches(lambda batch: calls.append(len(batch)), [[0], [0, 1]], [1, 1], CPU)
    assert calls == [1, 2] * 3 and [size for size, _ in found.points] == [1, 2]


def test_weights_count_what_is_held() -> None:
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    net = nn.Sequential(nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32)).requires_grad_(False)
    plain = weight_bytes(net, set())
    assert plain == 4 * (64 * 32 + 2 * 32 + 2 * 32) + 8
    quantize_(net, Int8WeightOnlyConfig())
    assert weight_bytes(net, set()) == plain - 3 * 64 * 32 + 4 * 32
