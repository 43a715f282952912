"""Tasks by name. A task's own libraries are imported when it is created, not before."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any, cast

from loraloom.errors import ConfigError, suggest

if TYPE_CHECKING:
    from loraloom.tasks.base import Task

__all__ = ["create_task", "task_names"]

_TASKS = {"text-classification": "loraloom.tasks.text_classification:TextClassification"}


def task_names() -> tuple[str, ...]:
    """The names that `create_task` knows, sorted."""
    return tuple(sorted(_TASKS))


def create_task(name: str, **options: Any) -> Task:
    """A new task by its name on the command line, e.g. "text-classification".

    `options` are the task's own settings, e.g. `max_length`. Raises ConfigError for an unknown name or
    option.
    """
    if name not in _TASKS:
        known = ", ".join(task_names())
        raise ConfigError(f"task: {name!r} is unknown, {known} can be used{suggest(name, _TASKS)}")
    module, kind = _TASKS[name].split(":")
    made = getattr(importlib.import_module(module), kind)
    accepted = list(inspect.signature(made).parameters)
    for option in options:
        if option not in accepted:
            known = ", ".join(accepted)
            raise ConfigError(f"task {name}: no option {option!r}, {known} can be set{suggest(option, accepted)}")
    return cast("Task", made(**options))
