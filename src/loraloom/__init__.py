"""Loraloom: small adapters for large pretrained models (LoRA), trained exactly and fast.

    >>> import loraloom
    >>> adapters = loraloom.attach(model, rank=8, targets="all-linear")   # the base is frozen from here on
    >>> optimizer = torch.optim.AdamW(adapters.parameters(), lr=1e-3)     # one's own loop goes on as ever
    >>> loraloom.save(adapters, "default", "my-adapter")                  # a folder that PEFT reads too
    >>> loraloom.load(fresh_model, "my-adapter")

Names are fetched when they are first used (PEP 562), so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loraloom.adapters import AdapterSet, AdapterSpec, LoRA, adapters_of, attach, plan_attach
    from loraloom.compose.compare import compare
    from loraloom.compose.extract import ExtractJob, extract
    from loraloom.compose.merge import MergeJob, merge
    from loraloom.compose.mix import MixJob, mix
    from loraloom.compose.resize import ResizeJob, resize
    from loraloom.compose.weights import Weighted
    from loraloom.errors import LoraloomError
    from loraloom.formats.convert import Conversion, convert
    from loraloom.formats.peft import load_adapter as load
    from loraloom.formats.peft import save_adapter as save
    from loraloom.tasks import create_task
    from loraloom.training.config import TrainConfig, load_config
    from loraloom.training.restore import open_run
    from loraloom.training.run import train
    from loraloom.training.use import evaluate, predict

__version__ = "0.1.0"

__all__ = [
    "attach",
    "LoRA",
    "AdapterSet",
    "AdapterSpec",
    "adapters_of",
    "plan_attach",
    "save",
    "load",
    "train",
    "TrainConfig",
    "load_config",
    "create_task",
    "open_run",
    "evaluate",
    "predict",
    "convert",
    "Conversion",
    "compare",
    "mix",
    "MixJob",
    "Weighted",
    "resize",
    "ResizeJob",
    "merge",
    "MergeJob",
    "extract",
    "ExtractJob",
    "LoraloomError",
    "__version__",
]

_HOMES = {
    "attach": "loraloom.adapters:attach",
    "LoRA": "loraloom.adapters:LoRA",
    "AdapterSet": "loraloom.adapters:AdapterSet",
    "AdapterSpec": "loraloom.adapters:AdapterSpec",
    "adapters_of": "loraloom.adapters:adapters_of",
    "plan_attach": "loraloom.adapters:plan_attach",
    "save": "loraloom.formats.peft:save_adapter",
    "load": "loraloom.formats.peft:load_adapter",
    "train": "loraloom.training.run:train",
    "TrainConfig": "loraloom.training.config:TrainConfig",
    "load_config": "loraloom.training.config:load_config",
    "create_task": "loraloom.tasks:create_task",
    "open_run": "loraloom.training.restore:open_run",
    "evaluate": "loraloom.training.use:evaluate",
    "predict": "loraloom.training.use:predict",
    "convert": "loraloom.formats.convert:convert",
    "Conversion": "loraloom.formats.convert:Conversion",
    "compare": "loraloom.compose.compare:compare",
    "mix": "loraloom.compose.mix:mix",
    "MixJob": "loraloom.compose.mix:MixJob",
    "Weighted": "loraloom.compose.weights:Weighted",
    "resize": "loraloom.compose.resize:resize",
    "ResizeJob": "loraloom.compose.resize:ResizeJob",
    "merge": "loraloom.compose.merge:merge",
    "MergeJob": "loraloom.compose.merge:MergeJob",
    "extract": "loraloom.compose.extract:extract",
    "ExtractJob": "loraloom.compose.extract:ExtractJob",
    "LoraloomError": "loraloom.errors:LoraloomError",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'loraloom' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
