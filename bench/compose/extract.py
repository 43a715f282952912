"""`loraloom extract` of a large pair of checkpoints against copying one of them plus the bare arithmetic.

    python -m bench.compose.extract [--gigabytes 3] [--rounds 3] [--rank 16]
    python -m bench.compose.extract --decompositions      truncated_svd against torch's, matrix by matrix

Two checkpoints are read, and one is copied: the denominator is the strict one. The arithmetic is the truncated SVD of
every difference, timed alone on a matrix in memory, on the same number of threads. Peak memory is that of the whole
process of the verb. The pair is made in a temporary folder, which is gone at the end: twice the size asked for, and
a shard of the copy.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from loraloom.compose.checkpoint import Checkpoint
from loraloom.compose.truncated import truncated_svd

WIDTH, INNER, VOCABULARY = 2048, 5632, 2000
SHARD_BYTES = 500_000_000
TRUE_RANK, LOW_RANK_SIZE, NOISE = 8, 1e-3, 2e-3
MOST, MOST_MEMORY = 1.5, 1024
"""What the verb may take, over copy and arithmetic; and MiB."""
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
}


def shapes(blocks: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama's tensors, in the order of the files."""
    yield "model.embed_tokens.weight", (VOCABULARY, WIDTH)
    for block in range(blocks):
        stem = f"model.layers.{block}"
        yield from ((f"{stem}.self_attn.{name}_proj.weight", (WIDTH, WIDTH)) for name in "qkvo")
        yield from ((f"{stem}.mlp.{name}_proj.weight", (INNER, WIDTH)) for name in ("gate", "up"))
        yield f"{stem}.mlp.down_proj.weight", (WIDTH, INNER)
        yield from ((f"{stem}.{name}_layernorm.weight", (WIDTH,)) for name in ("input", "post_attention"))
    yield "model.norm.weight", (WIDTH,)
    yield "lm_head.weight", (VOCABULARY, WIDTH)


def make_pair(folder: Path, gigabytes: float) -> None:
    """`folder/base` and `folder/tuned`, in bf16, sharded: random weights; the same with low rank and noise added."""
    per_block = 2 * (4 * WIDTH**2 + 3 * WIDTH * INNER)
    blocks = max(round(gigabytes * 1e9 / per_block), 1)
    generator = torch.Generator().manual_seed(0)
    shards: dict[str, dict[str, Tensor]] = {"base": {}, "tuned": {}}
    weight_map: dict[str, str] = {}
    number = size = 0
    for name, shape in shapes(blocks):
        base = torch.randn(shape, generator=generator) * 0.02
        tuned = base + _change(shape, generator) if len(shape) == 2 and "layers" in name else base
        shards["base"][name], shards["tuned"][name] = base.bfloat16(), tuned.bfloat16()
        weight_map[name] = f"model-{number:05d}.safetensors"
        size += base.numel() * 2
        if size > SHARD_BYTES or name == "lm_head.weight":
            _write_shards(folder, shards, weight_map[name])
            number, size = number + 1, 0
    for side in shards:
        text = json.dumps({"weight_map": weight_map})
        (folder / side / "model.safetensors.index.json").write_text(text)
        (folder / side / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": blocks}))


def _change(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    b, a = (torch.randn(size, generator=generator) for size in ((shape[0], TRUE_RANK), (TRUE_RANK, shape[1])))
    return b @ a * LOW_RANK_SIZE + torch.randn(shape, generator=generator) * NOISE


def _write_shards(folder: Path, shards: dict[str, dict[str, Tensor]], name: str) -> None:
    for side, tensors in shards.items():
        (folder / side).mkdir(exist_ok=True)
        save_file(tensors, folder / side / name)
        tensors.clear()


def copy_seconds(folder: Path) -> float:
    """Copying the tuned checkpoint's files; each copy is taken away again, outside the clock."""
    seconds = 0.0
    for file in sorted((folder / "tuned").glob("*.safetensors")):
        start = time.perf_counter()
        shutil.copyfile(file, folder / "copy")
        seconds += time.perf_counter() - start
        (folder / "copy").unlink()
    return seconds


def arithmetic_seconds(folder: Path, rank: int) -> float:
    """The truncated SVD of every layer's difference, without reading and subtracting."""
    tuned, base = (Checkpoint.open(folder / side).tensors for side in ("tuned", "base"))
    seconds = 0.0
    for name in tuned:
        if len(tuned.shape(name)) == 2 and "layers" in name:
            delta = tuned[name].float() - base[name]
            start = time.perf_counter()
            truncated_svd(delta, rank=rank)
            seconds += time.perf_counter() - start
    return seconds


def verb(folder: Path, rank: int) -> tuple[float, float, dict[str, float]]:
    """Seconds and peak MiB of the whole process of `loraloom extract`, and its report's totals."""
    words = ["extract", folder / "tuned", folder / "base", "--rank", rank, "--out", folder / "out", "--json"]
    start = time.perf_counter()
    with (folder / "report").open("wb") as report:
        process = subprocess.Popen([sys.executable, "-m", "loraloom", *map(str, words)], stdout=report)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(f"loraloom extract ended with status {status}")
    told = json.loads((folder / "report").read_text())
    shutil.rmtree(folder / "out")
    return seconds, usage.ru_maxrss / 1024, {key: told[key] for key in ("carried", "size", "checkpoint_size")}


def _apart(job: str, folder: Path, number: float) -> str:
    """Run a job of this module in a process of its own: a child's peak memory counts what its parent held."""
    words = [sys.executable, "-m", "bench.compose.extract", "--job", job, "--folder", folder, "--number", number]
    done = subprocess.run(list(map(str, words)), check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def measure(gigabytes: float, rounds: int, rank: int) -> bool:
    """Print the table; whether the bounds are met."""
    found: dict[str, list[float]] = {"copy": [], "arithmetic": [], "extract": [], "peak": [], "ratio": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _apart("make", folder, gigabytes)
        told: dict[str, float] = {}
        for _ in range(rounds):
            found["copy"].append(copy_seconds(folder))
            seconds, peak, told = verb(folder, rank)
            found["extract"].append(seconds)
            found["peak"].append(peak)
            found["arithmetic"].append(float(_apart("arithmetic", folder, rank)))
            found["ratio"].append(seconds / (found["copy"][-1] + found["arithmetic"][-1]))
    median = {name: statistics.median(values) for name, values in found.items()}
    over = median["extract"] / (median["copy"] + median["arithmetic"])
    print(f"pair of {told['checkpoint_size'] / 1e9:.2f} GB in bf16, rank {rank}, {rounds} rounds,", end=" ")
    print(f"{torch.get_num_threads()} threads; carried {told['carried']:.1%}, adapter {told['size'] / 1e6:.1f} MB\n")
    print("| what | seconds | peak MiB |\n|---|---:|---:|")
    print(f"| copying one checkpoint | {median['copy']:.2f} | |")
    print(f"| the truncated SVDs alone | {median['arithmetic']:.2f} | |")
    print(f"| `loraloom extract`, the whole process | {median['extract']:.2f} | {max(found['peak']):.0f} |")
    low, high = min(found["ratio"]), max(found["ratio"])
    print(f"\nextract / (copy + arithmetic): {over:.2f} (rounds {low:.2f} to {high:.2f}; at most {MOST});", end=" ")
    print(f"peak {max(found['peak']):.0f} MiB (at most {MOST_MEMORY})")
    return over <= MOST and max(found["peak"]) <= MOST_MEMORY


# -- decompositions -----------------------------------------------------------------------------------


def decompositions(sizes: list[tuple[int, int]], rank: int) -> None:
    """Time and excess of the remainder over the best one, of low rank and noise and of noise alone."""
    print("| matrix | spectrum | truncated_svd | excess | torch.svd_lowrank | excess | torch.linalg.svd |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for shape in sizes:
        generator = torch.Generator().manual_seed(1)
        for name, size in (("low rank and noise", LOW_RANK_SIZE), ("noise alone", 0.0)):
            b, a = torch.randn(shape[0], 8, generator=generator), torch.randn(8, shape[1], generator=generator)
            matrix = b @ a * size + torch.randn(shape, generator=generator) * NOISE
            _decomposition(f"{shape[0]} × {shape[1]}", name, matrix, rank)


def _decomposition(label: str, name: str, matrix: Tensor, rank: int) -> None:
    ours, ours_seconds = _timed(lambda: truncated_svd(matrix, rank=rank))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        (u, s, v), theirs_seconds = _timed(lambda: torch.svd_lowrank(matrix, q=rank, niter=2))
    values, whole_seconds = _timed(lambda: torch.linalg.svd(matrix, full_matrices=False).S)
    best = float(values[rank:].double().norm())
    found = [_remainder(matrix, ours.u * ours.s, ours.v), _remainder(matrix, (u * s).double(), v.t().double())]
    # The whole decomposition is in float32: an excess below its rounding is told as that.
    excess = [max(one / best - 1, 0.0) for one in found]
    print(
        f"| {label} | {name} | {ours_seconds:.2f} s | {excess[0]:.0e} | {theirs_seconds:.2f} s | {excess[1]:.0e} | "
        f"{whole_seconds:.2f} s |",
        flush=True,
    )


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def _remainder(matrix: Tensor, left: Tensor, right: Tensor) -> float:
    total = 0.0
    for rows, own in zip(matrix.split(512), left.split(512), strict=True):
        total += float((rows.double() - own @ right).square().sum())
    return total**0.5


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="size of each of the two checkpoints")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--decompositions", action="store_true", help="the table of single matrices instead")
    parser.add_argument("--sizes", default="1280x1280,4096x4096,4096x11008", help="of the single matrices")
    parser.add_argument("--job", choices=("make", "arithmetic"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job == "make":
        make_pair(arguments.folder, arguments.number)
    elif arguments.job == "arithmetic":
        print(arithmetic_seconds(arguments.folder, int(arguments.number)))
    elif arguments.decompositions:
        given = [tuple(map(int, size.split("x"))) for size in arguments.sizes.split(",")]
        decompositions([(rows, columns) for rows, columns in given], arguments.rank)
    else:
        sys.exit(0 if measure(arguments.gigabytes, arguments.rounds, arguments.rank) else 1)
