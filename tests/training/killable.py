"""Runs in processes of their own that start in milliseconds and may be killed.

They are forked from a server that has imported everything and has never computed, so that no thread of the
test process is lost in them.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what torch.optim loads at its first use, in seconds
from tiny_task import TinyTask

from loraloom.training import results
from loraloom.training.config import TrainConfig
from loraloom.training.run import train

# The server reads its path from here alone (before Python 3.13 it passes over its parent's sys.path).
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path[1:]])
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["killable"])


def run_once(
    settings: dict[str, Any], resume: bool, kill_at: int = 0, environment: Mapping[str, str] | None = None
) -> None:
    """A run that kills its own process, as SIGKILL does, at the `kill_at`-th touch of the disk."""
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    results.draw_curves = _no_picture
    if kill_at:
        touches = iter(range(1, kill_at))
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "rename"), (Path, "unlink"), (shutil, "rmtree")):
            setattr(owner, name, _deadly(getattr(owner, name), lambda: next(touches, None) is None))
    train(TrainConfig.model_validate(settings), TinyTask(), resume=resume)


def _no_picture(path: Path, *_: Any, **__: Any) -> None:
    """A picture takes a second to draw and is not what is looked at here."""
    path.write_bytes(b"")


def _deadly(real: Callable[..., Any], now: Callable[[], bool]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        if now():
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)

    return call


def start(*arguments: Any, **named: Any) -> multiprocessing.process.BaseProcess:
    """`run_once` in a process of its own."""
    process = SERVER.Process(target=run_once, args=arguments, kwargs=named)
    process.start()
    return process


def exit_status(*arguments: Any) -> int | None:
    """How `run_once` in a process of its own ended: 0, or the negative number of the signal that killed it."""
    process = start(*arguments)
    process.join(60)
    return process.exitcode
