"""Settings as YAML: a checked reading that knows lines, and a commented reference made from the fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from loraloom.errors import ConfigError, one_error, suggest

Settings = TypeVar("Settings", bound=BaseModel)
Lines = dict[str, int]


def read_settings(kind: type[Settings], path: str | Path | None, overrides: Mapping[str, Any]) -> Settings:
    """Settings of `kind` from a YAML file (or none) and values by dotted key, which win over the file.

    Raises ConfigError that tells every fault: file and line, key, what was found, what would be accepted.
    """
    data, lines = ({}, {}) if path is None else _read_yaml(Path(path))
    title = "the settings" if path is None else str(path)
    for key, value in overrides.items():
        _put(data, key, value, title)
        lines.pop(key, None)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise one_error(ConfigError, title, _faults(kind, error, data, lines)) from None


def dotted_keys(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field of settings by its dotted key, those of nested settings after their parent."""
    for name, field in kind.model_fields.items():
        yield prefix + name, field
        if (nested := _nested(field)) is not None:
            yield from dotted_keys(nested, f"{prefix}{name}.")


def reference_yaml(kind: type[BaseModel], indent: str = "") -> str:
    """A YAML file with every field, its description as a comment and its default as the value.

    Required fields stand as ``key: ...`` with a comment that says so.
    """
    return "".join(_reference_entry(name, field, indent) for name, field in kind.model_fields.items())


def _reference_entry(name: str, field: FieldInfo, indent: str) -> str:
    comment = f"{indent}# {field.description}\n"
    if (nested := _nested(field)) is not None:
        return f"{comment}{indent}{name}:\n{reference_yaml(nested, indent + '  ')}"
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return f"{comment}{indent}{name}: ...  # required\n"
    value = yaml.safe_dump(default, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
    return f"{comment}{indent}{name}: {value}\n"


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _read_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """The file's mapping, and the line of every key by its dotted path."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such configuration file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_yaml_fault(error)}") from None
    if not isinstance(node, yaml.MappingNode) or not isinstance(data, dict):
        raise ConfigError(f"{path}: expected settings as 'key: value' lines, found {_kind_of(data)}")
    return data, _lines(node, path)


def _yaml_fault(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "it is not YAML"
    return f"line {mark.line + 1}: {problem}" if mark is not None else str(problem)


def _kind_of(data: object) -> str:
    return "an empty file" if data is None else f"{type(data).__name__} {str(data)[:40]!r}"


def _lines(node: yaml.MappingNode, path: Path, prefix: str = "") -> Lines:
    """Line of each key. PyYAML lets the last of two equal keys win in silence: here they are refused."""
    lines: Lines = {}
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        line = key_node.start_mark.line + 1
        if key in lines:
            raise ConfigError(f"{path}: line {line}: '{key}' is given twice, first on line {lines[key]}")
        lines[key] = line
        if isinstance(value_node, yaml.MappingNode):
            lines |= _lines(value_node, path, f"{key}.")
    return lines


def _put(data: dict[str, Any], key: str, value: Any, title: str) -> None:
    """Set a value by its dotted key, making the mappings on the way."""
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents):
        below = data.get(parent)
        if below is not None and not isinstance(below, dict):
            above = ".".join(parents[: depth + 1])
            raise ConfigError(f"{title}: '{above}' is {below!r}, so that '{key}' cannot be set in it")
        # A copy: the caller's own mappings must not change.
        data[parent] = dict(below or {})
        data = data[parent]
    data[last] = value


def _faults(kind: type[BaseModel], error: ValidationError, data: dict[str, Any], lines: Lines) -> list[str]:
    """One sentence per wrong key; a union reports each of its members, of which the first is kept."""
    faults: dict[str, str] = {}
    for entry in error.errors(include_url=False):
        key = ".".join(str(part) for part in _path(entry["loc"], entry["type"], data))
        place = f"line {lines[key]}: " if key in lines else ""
        faults.setdefault(key, place + _fault(kind, key, entry))
    return list(faults.values())


def _path(location: tuple[int | str, ...], fault: str, data: Any) -> list[int | str]:
    """The part of pydantic's location that is in the data: it adds the names of union members."""
    path: list[int | str] = []
    for part in location:
        known = (isinstance(data, dict) and part in data) or (isinstance(data, list) and isinstance(part, int))
        if not known:
            return [*path, part] if fault == "missing" else path
        path.append(part)
        data = data[part]
    return path


def _fault(kind: type[BaseModel], key: str, entry: Any) -> str:
    if entry["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_nearest_key(kind, key)}"
    if entry["type"] == "missing":
        field = dict(dotted_keys(kind)).get(key)
        return f"'{key}' is missing; it says: {field.description}" if field else f"'{key}' is missing"
    message = str(entry["msg"]).removeprefix("Value error, ")
    if not key:  # of the settings as a whole: the sentence itself names the keys
        return message
    if message.startswith("Input should be "):
        message = f"it must be {message.removeprefix('Input should be ')}"
    return f"'{key}' is {entry['input']!r}: {message}"


def _nearest_key(kind: type[BaseModel], key: str) -> str:
    """Near keys beside it, else keys anywhere whose last part is near (`rank` for `adapter.rank`)."""
    parent, _, name = key.rpartition(".")
    every = [known for known, _ in dotted_keys(kind)]
    if elsewhere := [known for known in every if known.rpartition(".")[2] == name]:
        return suggest(elsewhere[0], elsewhere)
    beside = [known.rpartition(".")[2] for known in every if known.rpartition(".")[0] == parent]
    return suggest(name, beside) or suggest(name, every)
