"""The settings of a training run as a form of the main fields beside the YAML text that is run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from loraloom.errors import ConfigError
from loraloom.tasks import create_task, task_names
from loraloom.training.config import TrainConfig, load_config
from loraloom.training.settings_file import dotted_keys

_MOST_CHARACTERS = 50_000
_MOST_LEVELS = 20
_SETTINGS = dict(dotted_keys(TrainConfig))


@dataclass(frozen=True)
class FormField:
    """One field of the form."""

    key: str
    """Dotted, as in the YAML text."""
    label: str

    @property
    def help(self) -> str:
        """What the setting means, in its own words."""
        return str(_SETTINGS[self.key].description)


FORM = (
    FormField("task", "Task"),
    FormField("base", "Base model"),
    FormField("data.train", "Training data"),
    FormField("data.eval", "Held-out data"),
    FormField("out", "Name of the run"),
    FormField("adapter.rank", "Rank"),
    FormField("learning_rate", "Learning rate"),
    FormField("epochs", "Epochs"),
    FormField("max_steps", "At most so many steps"),
    FormField("batch_size", "Batch size"),
    FormField("seed", "Seed"),
)
"""The main settings, in the order of the form."""

TYPED = frozenset({"adapter.rank", "learning_rate", "epochs", "max_steps", "batch_size", "seed"})
"""Fields whose text is a number."""


def usual(key: str) -> str:
    """What applies where a field is left empty, in a few words."""
    default = _SETTINGS[key].get_default(call_default_factory=True)
    if isinstance(default, int | float | str):
        return str(default)
    return {
        "learning_rate": "0.001 for adapters",
        "max_steps": "no limit",
        "data.eval": "a part of the training data",
    }.get(key, "")


def first_settings() -> str:
    """The settings that the form begins with: they train the bundled base, or a small text classifier."""
    if "text-to-image" in task_names():
        return _dump({"task": "text-to-image", "base": "scenes", "data": {"train": ""}, "out": "my-style"})
    base = "sentence-transformers/all-MiniLM-L6-v2"
    return _dump({"task": "text-classification", "base": base, "data": {"train": "sentiment"}, "out": "my-run"})


def read_text(text: str) -> dict[str, Any]:
    """The mapping that a YAML text holds. Raises ConfigError for one that is none, or that is far too large."""
    if len(text) > _MOST_CHARACTERS:
        raise ConfigError(f"the settings have {len(text):,} characters; {_MOST_CHARACTERS:,} are the most")
    try:
        _check_shape(text)
        data = yaml.safe_load(text)
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"the settings: {_yaml_fault(error)}") from None
    if not isinstance(data, dict | None):
        raise ConfigError(f"the settings: expected 'key: value' lines, found {type(data).__name__}")
    return data or {}


def _check_shape(text: str) -> None:
    """Raise ConfigError for what would unfold without end: aliases of aliases, and brackets within brackets."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError("the settings hold a YAML alias (*name); write its value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_LEVELS:
            raise ConfigError(f"the settings are nested more than {_MOST_LEVELS} levels deep")


def form_values(text: str) -> list[str]:
    """The texts of the form's fields, in its order, as a YAML text gives them; "" where it does not."""
    data = read_text(text)
    return [_get(data, field.key) for field in FORM]


def with_form(text: str, values: Mapping[str, Any]) -> str:
    """The YAML text with the form's values put in; an empty one takes its key away."""
    data = read_text(text)
    for key, value in values.items():
        _set(data, key, _plain(key, value))
    return _dump(data)


def reconciled(text: str, before: Sequence[Any], values: Sequence[Any]) -> str:
    """The YAML text with those of the form's `values` put in that have changed since it agreed with the text."""
    changed = {
        field.key: value
        for field, old, value in zip(FORM, before, values, strict=True)
        if str(old or "").strip() != str(value or "").strip()
    }
    return with_form(text, changed) if changed else text


def checked_config(text: str) -> TrainConfig:
    """The settings of a YAML text, checked whole. Raises ConfigError with the line of each fault."""
    read_text(text)
    with tempfile.TemporaryDirectory(prefix="loraloom-") as folder:
        path = Path(folder) / "settings"
        path.write_text(text, "utf-8")
        try:
            config = load_config(path)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(path), "the settings")) from None
    if not config.data.train.strip():
        raise ConfigError("the settings: 'data.train' is empty; name the training data")
    create_task(config.task, **config.task_options)
    return config


def _plain(key: str, value: Any) -> Any:
    """A field's text as a setting; what is no number stays text, so that the check can say so."""
    text = str(value).strip() if value is not None else ""
    if key not in TYPED:
        return text or None
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text or None


def _get(data: Mapping[str, Any], key: str) -> str:
    value: Any = data
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        below = data.get(parent)
        if not isinstance(below, dict):
            if value is None:
                return
            below = data[parent] = {}
        data = below
    if value is None:
        data.pop(last, None)
    else:
        data[last] = value


def _dump(data: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=100) if data else ""


def _yaml_fault(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "it is not YAML"
    return f"line {mark.line + 1}: {problem}" if mark is not None else str(problem)
