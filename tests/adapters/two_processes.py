"""What each of two processes runs; apart from the tests, so that starting one imports little."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from loraloom.adapters import adapters_of, attach


def model_and_batch(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A model with an adapter, a head and a bias that all act; the factors are drawn with the seed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    adapters = attach(model, rank=2, targets=["0", "2"], heads="4", bias="adapted", dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model, torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def worker(rank: int, port: int, folder: str) -> None:
    """Write the gradients of this process's half of the batch, as its wrapper has averaged them."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model, x = model_and_batch(seed=rank)  # the first process's tensors are sent to all
    adapters = adapters_of(model)
    assert adapters is not None
    wrapped = DistributedDataParallel(model, find_unused_parameters=False)
    for _ in range(2):
        wrapped.zero_grad()
        wrapped(x[rank * 4 : rank * 4 + 4]).square().mean().backward()
    torch.save(gradients(model), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()
