"""The small parts: precision, seeds, rates and schedule, memory, the loss watch, files, the log."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_task import tiny_config
from torch import nn

from loraloom.errors import ConfigError, OutputError, TrainingError
from loraloom.training import precision as precision_module
from loraloom.training.files import folder_in_one_move, replace_json, write_bytes, write_tensors
from loraloom.training.log import RunLog, read_log
from loraloom.training.memory import MIB, PeakMemory
from loraloom.training.optim import full_roles, make_optimizer, parameter_groups, schedule_factor, set_rates
from loraloom.training.precision import has_bf16, resolve_precision
from loraloom.training.seeds import own_randomness, seed_generators, step_seed
from loraloom.training.watch import LossWatch

CPU = torch.device("cpu")


# --- precision


@pytest.mark.parametrize(
    ("setting", "method", "native", "expected"),
    [
        ("auto", "lora", True, ("bf16", torch.bfloat16, None)),
        ("auto", "lora", False, ("fp32", torch.float32, None)),
        ("auto", "full", True, ("fp32", torch.float32, None)),
        ("fp32", "lora", True, ("fp32", torch.float32, None)),
        ("bf16", "lora", False, ("bf16", torch.bfloat16, None)),
        ("bf16", "full", True, ("bf16", torch.float32, torch.bfloat16)),
    ],
)
def test_what_a_precision_means(
    monkeypatch: pytest.MonkeyPatch, setting: str, method: str, native: bool, expected: tuple[Any, ...]
) -> None:
    monkeypatch.setattr(precision_module, "has_bf16", lambda device: native)
    found = resolve_precision(setting, method, CPU)
    assert (found.name, found.base, found.autocast) == expected
    with found.computing(CPU):
        assert torch.is_autocast_enabled("cpu") == (expected[2] is not None)


def test_bf16_is_refused_where_it_is_not_to_be_had() -> None:
    with pytest.raises(ConfigError, match="precision: 'bf16' is not supported on mps"):
        resolve_precision("bf16", "lora", torch.device("mps"))
    assert not has_bf16(torch.device("mps"))


def test_avx512_alone_does_not_count_as_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not has_bf16(CPU)


# --- seeds


def test_step_seeds_differ_and_do_not_change_between_versions() -> None:
    seeds = {step_seed(seed, step, process) for seed in range(5) for step in range(50) for process in range(4)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)
    # A run that was begun with an earlier version must go on alike.
    assert (step_seed(0, 0), step_seed(3, 141, 1)) == (595752380, 1923518294)


def test_a_seed_sets_every_generator() -> None:
    drawn = []
    for _ in range(2):
        seed_generators(7, CPU)
        drawn.append((torch.rand(1).item(), float(np.random.rand()), random.random()))
    assert drawn[0] == drawn[1]


def test_the_callers_randomness_and_algorithms_are_given_back() -> None:
    seed_generators(1, CPU)
    expected = (torch.rand(1).item(), float(np.random.rand()), random.random())
    seed_generators(1, CPU)
    with pytest.raises(KeyError), own_randomness(CPU):
        assert torch.are_deterministic_algorithms_enabled()
        seed_generators(99, CPU)
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert (torch.rand(1).item(), float(np.random.rand()), random.random()) == expected


# --- optimiser


@settings(deadline=None)
@given(steps=st.integers(1, 400), warmup=st.floats(0, 1), schedule=st.sampled_from(["linear", "cosine", "constant"]))
def test_the_schedule_rises_then_never_rises_and_no_step_is_idle(steps: int, warmup: float, schedule: str) -> None:
    factors = [schedule_factor(step, steps, warmup=warmup, schedule=schedule) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    if warmup < 1 and steps > math.ceil(warmup * steps):
        assert max(factors) == 1


def test_the_schedules_values() -> None:
    linear = [schedule_factor(step, 8, warmup=0.25, schedule="linear") for step in range(8)]
    assert linear == pytest.approx([1 / 2, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert schedule_factor(5, 8, warmup=0.25, schedule="cosine") == pytest.approx(0.5)
    assert schedule_factor(7, 8, warmup=0, schedule="constant") == 1


def test_each_role_has_its_rate_and_vectors_do_not_decay(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, learning_rate=0.1, lr_ratio=16, head_learning_rate=0.3, weight_decay=0.5)
    matrix, vector = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    roles = {
        "A": [matrix],
        "B": [nn.Parameter(torch.zeros(2, 2))],
        "bias": [nn.Parameter(torch.zeros(2))],
        "head": [vector],
    }
    groups = parameter_groups(roles, config)
    assert [(group["role"], group["peak"], group["weight_decay"]) for group in groups] == [
        ("A", 0.1, 0.5),
        ("B", pytest.approx(1.6), 0.5),
        ("bias", 0.1, 0.0),
        ("head", 0.3, 0.0),
    ]
    optimizer = make_optimizer(groups)
    set_rates(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.8, 0.05, 0.15])
    assert optimizer.defaults["fused"]


def test_parameters_of_a_whole_model_by_role() -> None:
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 2), "header": nn.Linear(2, 2)})
    roles = full_roles(model, ["head"])
    assert [len(roles["weight"]), len(roles["head"])] == [4, 2]
    assert roles["head"][0] is model["head"].weight


# --- memory


def test_peak_memory_sees_what_was_used_and_given_back() -> None:
    with PeakMemory(CPU) as peak:
        peak.begin()
        block = torch.ones(80 * MIB // 4)
        held = float(block.sum())
        torch.ones(1)
        time.sleep(0.05)
        del block
    assert held > 0
    assert 70 < peak.peak_mib < 200
    assert peak.baseline_mib > 50
    with PeakMemory(CPU) as idle:
        pass
    assert idle.peak_mib < 20


# --- watch


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_numbers_that_are_not_finite_stop_the_run_and_say_what_to_change(bad: float, which: int) -> None:
    watch = LossWatch()
    watch.see(1, 1.0, 1.0, 1e-3)
    values = [1.0, 1.0]
    values[which] = bad
    with pytest.raises(TrainingError, match=r"step 2: .*lower learning_rate \(it is 0.001 here\), raise warmup"):
        watch.see(2, values[0], values[1], 1e-3)


def test_an_exploding_loss_stops_the_run() -> None:
    watch = LossWatch()
    with pytest.raises(TrainingError, match=r"the loss has risen to .* from 0.7 at the first step"):
        for step in range(1, 200):
            watch.see(step, 0.7 if step < 20 else 50.0, 1.0, 1e-3)
    watch = LossWatch()
    with pytest.raises(TrainingError, match="step 21"):
        for step in range(1, 200):
            watch.see(step, 0.7 if step < 21 else 1e9, 1.0, 1e-3)


@pytest.mark.parametrize(
    "losses",
    [
        [0.7 * 0.9**step + (0.6 if step % 37 == 0 else 0) for step in range(400)],
        [0.01 if step % 5 else 0.4 for step in range(400)],
        [5 - step / 100 for step in range(400)],
        [0.0] * 50,
    ],
    ids=["falling with outliers", "small and noisy", "falling", "zero"],
)
def test_noise_is_no_explosion(losses: list[float]) -> None:
    watch = LossWatch()
    for step, loss in enumerate(losses, start=1):
        watch.see(step, loss, 1.0, 1e-3)


# --- files


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kept.json").write_text("{}")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match=r"no space is left on the disk; free some, or choose another folder"):
        replace_json(tmp_path / "kept.json", {"new": 1})
    with (
        pytest.raises(OutputError, match="cannot be written: no space is left"),
        folder_in_one_move(tmp_path / "state") as folder,
    ):
        write_tensors(folder / "a.safetensors", {"a": torch.zeros(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]
    assert (tmp_path / "kept.json").read_text() == "{}"


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_bytes(tmp_path / "absent" / "file", b"")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyError), folder_in_one_move(tmp_path / "new") as folder:
        write_bytes(folder / "a", b"a")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    for content in (b"old", b"new"):
        with folder_in_one_move(tmp_path / "new") as folder:
            assert not (tmp_path / "new").exists() or content == b"new"
            write_bytes(folder / "a", content)
    assert (tmp_path / "new" / "a").read_bytes() == b"new"


# --- log


def test_a_log_is_cut_back_to_the_step_that_is_resumed_from(tmp_path: Path) -> None:
    with RunLog(tmp_path, step=0, tensorboard=False) as log:
        for step in range(1, 6):
            log.write("step", step, {"loss": step / 3})
        log.write("evaluation", 5, {"accuracy": 0.5})
    path = tmp_path / "log.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert len(read_log(path)) == 5
    path.write_bytes(whole + b'{"kind": "step", "st')
    with RunLog(tmp_path, step=3, tensorboard=False) as log:
        log.write("step", 4, {"loss": 9.0})
    lines = path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert whole.decode().splitlines()[:3] == lines[:3]


def test_a_full_disk_in_the_log_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, text: str) -> None:
            full_disk()

        def close(self) -> None:
            full_disk()

    with (
        pytest.raises(OutputError, match=r"log.jsonl' cannot be written: no space"),
        RunLog(tmp_path, step=0, tensorboard=False) as log,
    ):
        log.close()
        monkeypatch.setattr(log, "_file", Full())
        log.write("step", 1, {})


def test_tensorboard_has_what_the_log_has(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with RunLog(tmp_path, step=0, tensorboard=True) as log:
        log.write("step", 1, {"loss": 0.25})
    assert any((tmp_path / "tensorboard").iterdir())
