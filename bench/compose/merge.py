"""Merging an adapter into a checkpoint of several gigabytes, against plain copying of its files.

    python -m bench.compose.merge                      # 3 GB in bf16, three rounds: about 4 minutes, 7 GB of disk
    python -m bench.compose.merge --gigabytes 0.2 --rounds 1

A checkpoint of random weights with the tensors of a Llama, in shards of 1 GB, is made in a temporary folder, and a
rank-16 adapter on all its linear layers. Turn by turn, each from a process of its own: the files are copied and
flushed to the disk; they are merged (written, flushed, read back and checked). Beside that the arithmetic alone is
timed, W + scale · B · A in float32 on tensors in memory, block by block. The goal is at most 1.5 × copying plus
arithmetic, at a peak of under 1 GB.
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
from collections.abc import Callable
from pathlib import Path

import torch

WIDTH, INNER, WORDS, RANK = 2048, 5632, 32000, 16
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_LINEAR = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}
_BLOCK = 1 << 18


def outline(gigabytes: float, dtype: torch.dtype) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama's tensors, in as many layers as come to that size."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS, WIDTH)}
    ends = 2 * WORDS * WIDTH
    layer = sum(rows * columns for rows, columns in _LINEAR.values())
    layers = max(1, round((gigabytes * 1e9 / dtype.itemsize - ends) / layer))
    for number in range(layers):
        stem = f"model.layers.{number}"
        shapes |= {f"{stem}.{name}.weight": shape for name, shape in _LINEAR.items()}
        shapes |= {f"{stem}.{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (WIDTH,), "lm_head.weight": (WORDS, WIDTH)}


def make_checkpoint(folder: Path, gigabytes: float, dtype: torch.dtype) -> int:
    """Write the checkpoint; returns how many layers it has."""
    from safetensors.torch import save_file

    shapes = outline(gigabytes, dtype)
    layers = sum(name.endswith("q_proj.weight") for name in shapes)
    folder.mkdir()
    places: dict[str, str] = {}
    held: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def put() -> None:
        name = f"model-{len(set(places.values())) + 1:05d}.safetensors"
        save_file(held, folder / name, {"format": "pt"})
        places.update(dict.fromkeys(held, name))
        held.clear()

    for name, shape in shapes.items():
        held[name] = (torch.randn(shape, generator=generator) * 0.02).to(dtype)
        if sum(tensor.nbytes for tensor in held.values()) > 1e9:
            put()
    put()
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": WORDS,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return layers


def make_adapter(folder: Path, layers: int) -> None:
    """Write a PEFT adapter on every linear layer of the checkpoint but the output's."""
    from safetensors.torch import save_file

    folder.mkdir()
    tensors = {}
    generator = torch.Generator().manual_seed(1)
    for number in range(layers):
        for name, (rows, columns) in _LINEAR.items():
            stem = f"base_model.model.model.layers.{number}.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator) * 0.02
            tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator) * 0.02
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    targets = sorted({name.rpartition(".")[2] for name in _LINEAR})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "task_type": "CAUSAL_LM"}))


def copy_files(source: Path, target: Path) -> None:
    """Copy a folder's files as the system does it, and wait until the disk has them."""
    target.mkdir()
    for file in sorted(source.iterdir()):
        copied = shutil.copyfile(file, target / file.name)
        with open(copied, "rb+") as opened:
            os.fsync(opened.fileno())


def merge_files(source: Path, adapter: Path, target: Path) -> None:
    """Merge, with the check that the verb makes for a checkpoint of this size."""
    from loraloom.compose.merge import MergeJob, merge
    from loraloom.compose.weights import Weighted

    if not merge(MergeJob(str(source), (Weighted(adapter),), target, check="layers")).holds:
        raise RuntimeError("the merge did not hold")


def arithmetic(layers: int, dtype: torch.dtype) -> float:
    """Seconds of W + scale · B · A for every adapted weight, on tensors in memory: raise, multiply and add, round."""
    seconds = 0.0
    for rows, columns in _LINEAR.values():
        weight = (torch.randn(rows, columns) * 0.02).to(dtype)
        left, right = torch.randn(rows, RANK), torch.randn(RANK, columns)
        step = max(1, _BLOCK // columns)
        work, out = torch.empty(step, columns), torch.empty(rows, columns, dtype=dtype)
        start = time.perf_counter()
        for _ in range(layers):
            for first in range(0, rows, step):
                block = work[: min(step, rows - first)]
                block.copy_(weight[first : first + step])
                block.addmm_(left[first : first + step], right)
                out[first : first + step].copy_(block)
        seconds += time.perf_counter() - start
    return seconds


def _in_child(side: str, folder: Path) -> dict[str, float]:
    """Run one side in a process of its own: seconds of the work without imports, and peak memory in MB."""
    command = [sys.executable, "-m", "bench.compose.merge", "--side", side, "--folder", str(folder)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(printed.splitlines()[-1])
    return found


def one_side(side: str, folder: Path) -> dict[str, float]:
    """Do one side's work in this process, and remove what it wrote."""
    base, adapter, target = folder / "base", folder / "adapter", folder / f"out-{side}"
    work: dict[str, Callable[[], None]] = {
        "copy": lambda: copy_files(base, target),
        "merge": lambda: merge_files(base, adapter, target),
    }
    if side == "merge":
        import transformers.models.llama.modeling_llama  # noqa: F401 its import is no part of the work

        import loraloom.compose.merge.merging  # noqa: F401
    start = time.perf_counter()
    work[side]()
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return {"seconds": seconds, "peak": _peak()}


def _peak() -> float:
    """This process's largest resident memory in MB; what getrusage tells begins with that of the process before."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def measure(gigabytes: float, rounds: int, dtype: torch.dtype, where: str | None = None) -> dict[str, float]:
    """Medians in seconds, their ratio, and the merging process's peak memory in MB."""
    with tempfile.TemporaryDirectory(dir=where) as name:
        folder = Path(name)
        needed, free = 2.3e9 * gigabytes, shutil.disk_usage(folder).free
        if free < needed + 1e9:
            raise SystemExit(f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB and room are needed")
        layers = make_checkpoint(folder / "base", gigabytes, dtype)
        make_adapter(folder / "adapter", layers)
        sides: dict[str, list[dict[str, float]]] = {"copy": [], "merge": []}
        _in_child("copy", folder)  # both sides then find the files in the system's cache, or both do not
        computed = []
        for turn in range(rounds):
            for side in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                sides[side].append(_in_child(side, folder))
            computed.append(arithmetic(layers, dtype))
        size = sum(file.stat().st_size for file in (folder / "base").iterdir()) / 1e9
    copying, merging = (statistics.median(run["seconds"] for run in sides[side]) for side in ("copy", "merge"))
    counting = statistics.median(computed)
    peak = max(run["peak"] for run in sides["merge"])
    ratio = merging / (copying + counting)
    return {"gb": size, "copy": copying, "arithmetic": counting, "merge": merging, "ratio": ratio, "peak": peak}


def main() -> None:
    """Print the figures as a markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--where", help="a folder on the disk to measure; default: the system's temporary one")
    parser.add_argument("--side", choices=("copy", "merge"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(one_side(given.side, given.folder)))
        return
    found = measure(given.gigabytes, given.rounds, DTYPES[given.dtype], given.where)
    print("| checkpoint | copy | arithmetic | merge | merge / (copy + arithmetic) | peak memory |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {found['gb']:.2f} GB {given.dtype} | {found['copy']:.2f} s | {found['arithmetic']:.2f} s | "
        f"{found['merge']:.2f} s | {found['ratio']:.2f} | {found['peak']:.0f} MB |"
    )


if __name__ == "__main__":
    main()
