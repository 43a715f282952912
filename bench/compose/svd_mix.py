"""Three weighted adapters made into one of a lower rank by SVD: Loraloom's `mix` against PEFT's `add_weighted_adapter`.

Each side runs in a process of its own, turn by turn, from the three folders on the disk to the mixed one; memory is the
peak of the resident set above what the process had after its imports. PEFT needs a model to hang its adapters on, and
gets one whose weights take no memory. Its time and memory are given twice: for the whole way, and for the one call. The
factors' columns shrink as those of trained adapters do.

    python -m bench.compose.svd_mix        # 200 layers of 1280 × 1280, rank 32: PEFT takes many minutes
    python -m bench.compose.svd_mix --sites 6 --width 320 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WEIGHTS = {"A": 0.7, "B": 0.4, "C": -0.2}
SIDES = ("loraloom", "peft")
_LAST = 0.05
"""Size of the last column of B, relative to the first."""
_DENSE = 3
"""Layers of which the best approximation is also worked out from the dense ΔW, in float64."""


def make_adapters(place: Path, sites: int, width: int, rank: int) -> None:
    """Three PEFT folders with random factors whose columns shrink."""
    import torch

    from loraloom.formats.peft_file import CONFIG_NAME, WEIGHTS_NAME
    from loraloom.formats.tensorfile import tensor_pieces, write_together

    shrink = torch.logspace(0, torch.tensor(_LAST).log10().item(), rank)
    for seed, name in enumerate(WEIGHTS):
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for site in range(sites):
            stem = f"base_model.model.layers.{site}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, width, generator=generator) / width**0.5
            tensors[f"{stem}.lora_B.weight"] = torch.randn(width, rank, generator=generator) * shrink
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank // 2 or 1, "target_modules": r"layers\.\d+"}
        files = {
            place / name / WEIGHTS_NAME: tensor_pieces(tensors, {"format": "pt"}),
            place / name / CONFIG_NAME: [json.dumps(config).encode()],
        }
        write_together(files)


def loraloom_side(place: Path, out: Path, sites: int, width: int, rank: int) -> dict[str, float]:
    """Mix by `loraloom.compose.mix.mixing`; seconds and MiB."""
    import torch

    from loraloom.compose.mix import MixJob, mix
    from loraloom.compose.weights import Weighted
    from loraloom.training.memory import PeakMemory

    torch.linalg.svd(torch.eye(4))  # the libraries of linear algebra are loaded at their first use
    job = MixJob([Weighted(place / name, weight) for name, weight in WEIGHTS.items()], out, how="svd", rank=rank)
    with PeakMemory(torch.device("cpu")) as peak:
        peak.begin()
        start = time.perf_counter()
        mix(job)
        seconds = time.perf_counter() - start
    return {"whole seconds": seconds, "whole MiB": peak.peak_mib, "call seconds": seconds, "call MiB": peak.peak_mib}


def peft_side(place: Path, out: Path, sites: int, width: int, rank: int) -> dict[str, float]:
    """Load, `add_weighted_adapter`, save; seconds and MiB of the whole and of the call alone."""
    import torch
    from peft import PeftModel
    from torch import nn

    from loraloom.training.memory import PeakMemory

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(width, width, bias=False, device="meta") for _ in range(sites))
            for layer in self.layers:
                layer.weight = nn.Parameter(torch.zeros(1).expand(width, width), requires_grad=False)

    torch.linalg.svd(torch.eye(4))
    base = Model()
    with PeakMemory(torch.device("cpu")) as whole:
        whole.begin()
        start = time.perf_counter()
        first, *others = WEIGHTS
        model = PeftModel.from_pretrained(base, place / first, adapter_name=first)
        for name in others:
            model.load_adapter(place / name, name)
        with PeakMemory(torch.device("cpu")) as call:
            call.begin()
            begun = time.perf_counter()
            model.add_weighted_adapter(list(WEIGHTS), list(WEIGHTS.values()), "mixed", "svd", svd_rank=rank)
            seconds = time.perf_counter() - begun
        model.save_pretrained(out, selected_adapters=["mixed"])
        total = time.perf_counter() - start
    found = {"whole seconds": total, "whole MiB": whole.peak_mib}
    return found | {"call seconds": seconds, "call MiB": call.peak_mib}


_RUN: dict[str, Callable[[Path, Path, int, int, int], dict[str, float]]] = {
    "loraloom": loraloom_side,
    "peft": peft_side,
}


def measure(sites: int, width: int, rank: int, rounds: int) -> dict[str, Any]:
    """Medians of both sides, and how far apart the results are."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        make_adapters(place, sites, width, rank)
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for turn in range(rounds):
            for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
                runs[side].append(_child(side, place, place / f"{side}-{turn}", sites, width, rank))
        medians = {
            side: {key: statistics.median(run[key] for run in found) for key in found[0]}
            for side, found in runs.items()
        }
        return medians | {"apart": differences(place, place / "loraloom-0", place / "peft-0" / "mixed", rank)}


def _child(side: str, place: Path, out: Path, sites: int, width: int, rank: int) -> dict[str, float]:
    sizes = ["--sites", str(sites), "--width", str(width), "--rank", str(rank)]
    command = [sys.executable, "-m", "bench.compose.svd_mix", "--side", side, "--at", str(place), "--out", str(out)]
    done = subprocess.run([*command, *sizes], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def differences(place: Path, ours: Path, theirs: Path, rank: int) -> dict[str, float]:
    """Largest relative differences of ΔW over the layers: between both, and of each from the best approximation.

    The best one is that of the factors in float64, and for some layers, to check on that, of the dense ΔW.
    """
    import torch

    from loraloom.adapters.product import Product
    from loraloom.formats.peft_file import read_folder
    from loraloom.formats.updates import updates_of

    sources = {name: updates_of(read_folder(place / name, stored=True))[0] for name in WEIGHTS}
    made, other = (updates_of(read_folder(folder, stored=True))[0] for folder in (ours, theirs))
    found = {
        "ours from theirs": 0.0,
        "ours from the best": 0.0,
        "theirs from the best": 0.0,
        "the best from dense": 0.0,
    }
    for number, path in enumerate(made):
        total = Product.total(sources[name][path].product().scaled(weight) for name, weight in WEIGHTS.items())
        best, one, two = total.svd().product(rank), made[path].product(), other[path].product()
        pairs = {"ours from theirs": (one, two), "ours from the best": (one, best), "theirs from the best": (two, best)}
        for key, (left, right) in pairs.items():
            found[key] = max(found[key], Product.total([left, right.scaled(-1.0)]).norm() / best.norm())
        if number < _DENSE:
            u, s, v = torch.linalg.svd(total.dense(), full_matrices=False)
            dense = (u[:, :rank] * s[:rank]) @ v[:rank]
            apart = float((dense - best.dense()).norm() / dense.norm())
            found["the best from dense"] = max(found["the best from dense"], apart)
    return found


def show(found: dict[str, Any], sites: int, width: int, rank: int) -> str:
    """The figures as a Markdown table."""
    ours, theirs = found["loraloom"], found["peft"]
    lines = [f"{sites} layers of {width} × {width}, three adapters of rank {rank}, to rank {rank}", ""]
    lines += ["| | Loraloom `mix` | PEFT, load + mix + save | PEFT, the call alone | ratio to the call |"]
    lines += ["|---|---:|---:|---:|---:|"]
    for unit, digits in (("seconds", 2), ("MiB", 0)):
        mine, whole, call = ours[f"whole {unit}"], theirs[f"whole {unit}"], theirs[f"call {unit}"]
        numbers = " | ".join(f"{value:.{digits}f}" for value in (mine, whole, call))
        lines.append(f"| {unit} | {numbers} | {mine / call if call else float('nan'):.3f} |")
    lines += ["", "largest relative difference of ΔW: " + ", ".join(f"{k} {v:.1e}" for k, v in found["apart"].items())]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=200)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--side", choices=SIDES, help="run this side alone, here")
    parser.add_argument("--at", type=Path, help="where the adapters lie, for --side")
    parser.add_argument("--out", type=Path, help="where the result goes, for --side")
    given = parser.parse_args()
    if given.side:
        print(json.dumps(_RUN[given.side](given.at, given.out, given.sites, given.width, given.rank)))
    else:
        print(show(measure(given.sites, given.width, given.rank, given.rounds), given.sites, given.width, given.rank))
