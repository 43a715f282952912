"""Several processes over gloo: the result of one process, up to rounding; also with an empty share."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from killable import exit_status, start
from safetensors.torch import load_file
from tiny_task import tiny_config
from torch import Tensor

from loraloom.training import processes as module
from loraloom.training.log import read_log
from loraloom.training.processes import Processes, _buckets


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run_together(settings: dict[str, Any], count: int) -> None:
    """What torchrun does: the same program `count` times, each told who it is."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    processes = [
        start(settings, False, environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]
    for process in processes:
        process.join(90)
    assert [process.exitcode for process in processes] == [0] * count


@pytest.mark.parametrize(("method", "count"), [("lora", 2), ("lora", 3), ("full", 2)])
def test_processes_together_do_what_one_does(tmp_path: Path, method: str, count: int) -> None:
    # 162 examples in batches of 16 leave one of 2: with three processes, one of them has nothing to do.
    settings = {"epochs": 1, "learning_rate": 1e-3, "method": method, "evaluate_every": 4}
    config = tiny_config(tmp_path, **settings)
    with Path(config.data.train).open("a") as file:
        file.write("odd\tw1 w3\neven\tw2\n")
    assert exit_status(config.settings(), False) == 0
    run_together(tiny_config(tmp_path, **settings, out=str(tmp_path / "together")).settings(), count)
    one, several = tmp_path / "out", tmp_path / "together"
    records = [json.loads((out / "run.json").read_text()) for out in (one, several)]
    assert records[1]["machine"]["processes"] == count
    assert records[1]["metrics"]["base"] == records[0]["metrics"]["base"]
    losses = [step_losses(out) for out in (one, several)]
    assert len(losses[0]) == len(losses[1]) == 11
    # A base that is trained whole has dropout, which each process draws for its own share.
    if method == "lora":
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
        first, second = (load_file(out / "adapter_model.safetensors") for out in (one, several))
        for name in first:
            torch.testing.assert_close(second[name], first[name], rtol=1e-2, atol=2e-4)


def step_losses(out: Path) -> list[float]:
    return [entry["loss"] for entry in read_log(out / "log.jsonl") if entry["kind"] == "step"]


def test_one_process_leaves_tensors_alone() -> None:
    alone = Processes(torch.device("cpu"))
    tensor = torch.ones(2)
    alone.sum_([tensor])
    alone.barrier()
    assert tensor.tolist() == [1, 1]
    assert alone.gather("x") == ["x"]
    assert alone.main


def test_sums_are_made_in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUCKET", 10)
    tensors = [torch.full((size,), float(size)) for size in (4, 8, 1, 20, 3)]
    assert [[len(tensor) for tensor in bucket] for bucket in _buckets(tensors)] == [[4, 8], [1, 20], [3]]
    sums: list[int] = []

    def double(flat: Tensor) -> None:
        sums.append(flat.numel())
        flat.mul_(2)

    monkeypatch.setattr(module.dist, "all_reduce", double)
    Processes(torch.device("cpu"), index=0, count=2).sum_(tensors)
    assert sums == [12, 21, 3]
    assert all(tensor.tolist() == [2.0 * len(tensor)] * len(tensor) for tensor in tensors)
