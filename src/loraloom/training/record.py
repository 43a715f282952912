"""run.json: everything that says how an adapter was made, and what it reaches."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from loraloom.training.job import ADAPTER, Job
from loraloom.training.loop import Loop
from loraloom.training.memory import PeakMemory
from loraloom.training.optim import role_rates

RECORD_FORMAT = 1
_PACKAGES = ("loraloom", "torch", "transformers", "accelerate", "datasets", "safetensors", "tokenizers")


@dataclass
class Findings:
    """What a run found out beside its loop's state."""

    base_metrics: dict[str, float]
    """Scores of the untrained model on the held-out examples."""
    evidence: dict[str, Any] = field(default_factory=dict)
    fp32_metrics: dict[str, float] | None = None
    """Scores of the adapter over the float32 base, where it was trained over another."""
    result_bytes: int = 0
    """Size of the adapter's (or the model's) weights on disk."""
    base_parameters: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


def trained_parameters(job: Job) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in job.gradients_of)


def make_record(job: Job, loop: Loop, findings: Findings, peak: PeakMemory) -> dict[str, Any]:
    """The content of run.json, as JSON data."""
    return {
        "format": RECORD_FORMAT,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "task": job.task.name,
        "method": job.config.method,
        "base": {
            "name": job.base.name,
            "source": job.base.source,
            "fingerprint": job.base.fingerprint,
            "heads": list(job.base.heads),
        },
        "data": _data(job),
        "metric": job.task.metric,
        "shares": sorted(job.task.shares),
        "metrics": _metrics(loop, findings),
        "effective": effective(job),
        "parameters": _parameters(job, findings),
        "result_bytes": findings.result_bytes,
        "precision": job.precision.name,
        "training": _training(job, loop, findings),
        "memory_mib": {"base": round(peak.baseline_mib, 1), "peak_above_base": round(peak.peak_mib, 1)},
        "evidence": findings.evidence,
        "machine": machine(job),
        "versions": versions(),
        "notes": list(findings.notes),
        "task_state": job.task.state(),
        "settings": job.config.settings(),
    }


def effective(job: Job) -> dict[str, Any]:
    """Rate, alpha, rank and scaling as they acted, together: one without the others says nothing."""
    rates = role_rates(job.config)
    used = {group["role"]: rates[group["role"]] for group in job.groups}
    if job.adapters is None:
        return {"learning_rate": used}
    sites = job.adapters.plan(ADAPTER).sites
    return {
        "learning_rate": used,
        "rank": sorted({site.rank for site in sites}),
        "alpha": sorted({site.alpha for site in sites}),
        "scale": sorted({site.scale for site in sites}),
        "scaling": job.adapters.spec(ADAPTER).scaling,
        "sites": len(sites),
        "heads": list(job.adapters.spec(ADAPTER).heads),
    }


def versions() -> dict[str, str]:
    """Python's version and those of the libraries that a result depends on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine(job: Job) -> dict[str, Any]:
    """What computed; no names or paths."""
    device = job.processes.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": platform.machine(),
        "system": platform.system(),
        "threads": torch.get_num_threads(),
        "processes": job.processes.count,
    }


def weights_bytes(folder: Path) -> int:
    """Bytes of the safetensors files in a result."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def _data(job: Job) -> dict[str, Any]:
    return {
        "sha256": job.splits.hashes,
        "train_examples": len(job.splits.train),
        "evaluation_examples": len(job.splits.evaluation),
        "truncated": job.truncated,
    }


def _metrics(loop: Loop, findings: Findings) -> dict[str, Any]:
    metrics: dict[str, Any] = {"base": findings.base_metrics, "trained": loop.state.best_metrics}
    if findings.fp32_metrics is not None:
        metrics["trained_over_fp32_base"] = findings.fp32_metrics
    return metrics


def _parameters(job: Job, findings: Findings) -> dict[str, Any]:
    trained = trained_parameters(job)
    return {
        "trained": trained,
        "base": findings.base_parameters,
        "share": trained / findings.base_parameters if findings.base_parameters else None,
    }


def _training(job: Job, loop: Loop, findings: Findings) -> dict[str, Any]:
    state = loop.state
    seconds = state.training_seconds
    examples = state.step * job.config.batch_size
    return {
        "steps": state.step,
        "planned_steps": job.steps,
        "steps_per_epoch": job.steps_per_epoch,
        "best_step": state.best_step,
        "stopped_early": loop.stopped_early,
        "micro_batch_size": loop.stepper.micro,
        "seconds": {
            "training": round(seconds, 3),
            "evaluation": round(state.evaluation_seconds, 3),
            **{name: round(value, 3) for name, value in findings.seconds.items()},
        },
        "examples_per_second": round(examples / seconds, 1) if seconds else None,
        "seed": job.config.seed,
    }
