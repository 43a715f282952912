"""Checkpoints: bits come back, only whole folders count, old ones go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from loraloom.errors import FormatError, OutputError
from loraloom.training import checkpoint as module
from loraloom.training.checkpoint import (
    Checkpoint,
    complete_checkpoints,
    newest_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    restore_tensors,
    save_checkpoint,
    sweep,
)


def make(step: int, best_step: int | None = None) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    return Checkpoint(
        step=step,
        state={"best_step": best_step, "loss": 0.1 + step},
        weights={"a|A": torch.randn(3, 2, generator=generator), "b": torch.tensor([float("-0.0"), 1e-40])},
        moments={"0.exp_avg": torch.randn(3, 2, generator=generator), "0.step": torch.tensor(7.0)},
        best={"a|A": torch.zeros(3, 2), "b": torch.ones(2)} if best_step is not None else {},
    )


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    bits = [{name: tensor.numpy().tobytes() for name, tensor in tensors.items()} for tensors in (first, second)]
    return bits[0] == bits[1]


@pytest.mark.parametrize("best_step", [None, 3])
def test_every_bit_comes_back(tmp_path: Path, best_step: int | None) -> None:
    saved = make(5, best_step)
    save_checkpoint(tmp_path, saved, keep=2)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.state) == (5, saved.state)
    assert same(found.weights, saved.weights)
    assert same(found.moments, saved.moments)
    assert same(found.best, saved.best)


def test_the_best_step_itself_is_not_stored_twice(tmp_path: Path) -> None:
    saved = make(5, best_step=5)
    save_checkpoint(tmp_path, saved, keep=1)
    assert not (tmp_path / "step-00000005" / "best.safetensors").exists()
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert same(found.best, saved.weights)


def test_only_the_newest_are_kept_and_partial_ones_are_swept(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        save_checkpoint(tmp_path, make(step), keep=2)
    (tmp_path / ".step-00000012.partial").mkdir()
    (tmp_path / "step-00000099").mkdir()
    (tmp_path / "stray").write_text("")
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-00000004", "step-00000010"]
    assert newest_checkpoint(tmp_path).step == 10  # type: ignore[union-attr]
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000010"]
    assert newest_checkpoint(tmp_path / "absent") is None


def test_a_failed_write_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, make(1), keep=1)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_json", full)
    with pytest.raises(OutputError, match="no space is left on the disk"):
        save_checkpoint(tmp_path, make(2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make(3), keep=1)
    path = tmp_path / "step-00000003" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FormatError, match=r"step-00000003' is damaged .*; remove it to resume from the one before"):
        newest_checkpoint(tmp_path)


def test_tensors_that_do_not_fit_are_named_and_nothing_is_changed() -> None:
    live = {"a": torch.zeros(2), "b": torch.zeros(3)}
    for saved, told in (
        ({"a": torch.ones(2)}, "'b' is nothing"),
        ({"a": torch.ones(2), "b": torch.ones(4)}, r"\(4,\)"),
    ):
        with pytest.raises(FormatError, match=told):
            restore_tensors(live, saved)
        assert live["a"].sum() == 0


def test_an_optimiser_goes_on_to_the_bit() -> None:
    def make_pair() -> tuple[list[nn.Parameter], torch.optim.AdamW]:
        parameters = [nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4)), nn.Parameter(torch.ones(5))]
        return parameters, torch.optim.AdamW([{"params": [entry]} for entry in parameters], fused=True)

    def step(parameters: list[nn.Parameter], optimizer: torch.optim.AdamW, count: int) -> None:
        for _ in range(count):
            sum((entry**2).sum() for entry in parameters).backward()  # type: ignore[union-attr]
            optimizer.step()
            optimizer.zero_grad()

    whole, optimizer = make_pair()
    step(whole, optimizer, 3)
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
    parameters, other = make_pair()
    with torch.no_grad():
        for entry, value in zip(parameters, whole, strict=True):
            entry.copy_(value)
    restore_optimizer(other, saved)
    step(whole, optimizer, 4)
    step(parameters, other, 4)
    assert all(torch.equal(a, b) for a, b in zip(whole, parameters, strict=True))
