"""Tasks by name. A task's own libraries are imported when it is created, not before."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from loraloom.errors import ConfigError, one_error, suggest

if TYPE_CHECKING:
    from loraloom.tasks.base import Task, TaskOptions

__all__ = ["create_task", "option_fields", "task_names"]

_TASKS = {
    "causal-lm": "loraloom.tasks.causal_lm:CausalLM",
    "image-classification": "loraloom.tasks.image_classification:ImageClassification",
    "object-detection": "loraloom.tasks.object_detection:ObjectDetection",
    "speech-recognition": "loraloom.tasks.speech_recognition:SpeechRecognition",
    "speech-synthesis": "loraloom.tasks.speech_synthesis:SpeechSynthesis",
    "text-classification": "loraloom.tasks.text_classification:TextClassification",
    "text-to-image": "loraloom.tasks.text_to_image:TextToImage",
    "translation": "loraloom.tasks.translation:Translation",
}


def task_names() -> tuple[str, ...]:
    """The names that `create_task` knows, sorted."""
    return tuple(sorted(_TASKS))


def create_task(name: str, **options: Any) -> Task:
    """A new task by its name on the command line, e.g. "text-classification".

    `options` are the task's own settings, e.g. `max_length`. Raises ConfigError for an unknown name or
    option, and for a value that the option cannot have.
    """
    made = _task_class(name)
    return cast("Task", made(_checked_options(name, made.Options, options)))


def option_fields(name: str) -> dict[str, FieldInfo]:
    """The task's own settings by name. Raises ConfigError for an unknown task."""
    return dict(_task_class(name).Options.model_fields)


def _task_class(name: str) -> Any:
    if name not in _TASKS:
        known = ", ".join(task_names())
        raise ConfigError(f"task: {name!r} is unknown, {known} can be used{suggest(name, _TASKS)}")
    module, kind = _TASKS[name].split(":")
    return getattr(importlib.import_module(module), kind)


def _checked_options(name: str, kind: type[TaskOptions], options: Mapping[str, Any]) -> TaskOptions:
    for option in options:
        if option not in kind.model_fields:
            known = ", ".join(kind.model_fields) or "nothing"
            near = suggest(option, kind.model_fields)
            raise ConfigError(f"task {name}: no option {option!r}, {known} can be set{near}")
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        faults = [
            f"'{'.'.join(map(str, fault['loc']))}' is {fault['input']!r}: {_told(str(fault['msg']))}"
            for fault in error.errors(include_url=False)
        ]
        raise one_error(ConfigError, f"options of {name}", faults) from None


def _told(message: str) -> str:
    """pydantic's sentence in our words."""
    return message.removeprefix("Value error, ").replace("Input should be ", "it must be ")
