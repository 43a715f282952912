"""Options that several verbs share, and flags made from the fields of a settings class."""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
import yaml
from pydantic.fields import FieldInfo

from loraloom.errors import ConfigError

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; all else goes to stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Run = Annotated[str, typer.Argument(metavar="DIR", help="Folder that `loraloom train` wrote.", show_default=False)]
Base = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Base model: a folder or a name. [default: the one that was trained on]"),
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Examples per forward pass. [default: as in training]")
]
TextColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="Column that holds the text. [default: as in training]")
]
LabelColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="Column that holds the label. [default: as in training]")
]


@dataclass(frozen=True)
class Flag:
    """One command line option that sets one setting."""

    name: str
    """With its dashes, e.g. "--rank"."""
    key: str
    """Dotted key of the setting, e.g. "adapter.rank"."""
    field: FieldInfo | None = None
    """The setting's own description and type; None for an entry of a free mapping."""
    help: str = ""
    """Instead of the field's description."""

    @property
    def parameter(self) -> str:
        """The name of the function parameter that typer fills."""
        return self.name.removeprefix("--").replace("-", "_")

    def option(self) -> inspect.Parameter:
        """The option as a parameter of a typer command; absent means that the setting is not given."""
        kind = _kind(self.field)
        names = [self.name, f"--no-{self.name[2:]}"] if kind == "flag" else [self.name]
        described = self.help or f"{self.field.description if self.field else ''}{_default(self.field)}"
        metavar = None if kind == "flag" else kind
        option = typer.Option(*names, help=described, metavar=metavar, show_default=False)
        annotation = Annotated[bool | None, option] if kind == "flag" else Annotated[str | None, option]
        return inspect.Parameter(self.parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def settings_flags(flags: Iterable[Flag]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb all of `flags` as options; it receives those that were used as `settings`, key to value."""
    table = {flag.parameter: flag for flag in flags}

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(verb)
        def command(**given: Any) -> None:
            used = {name: given.pop(name) for name in table}
            settings = {
                table[name].key: parse_value(table[name].field, value)
                for name, value in used.items()
                if value is not None
            }
            verb(**given, settings=settings)

        own = [p for p in inspect.signature(verb, eval_str=True).parameters.values() if p.name != "settings"]
        made = [flag.option() for flag in table.values()]
        positional = [p for p in own if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        keyword = [p for p in own if p.kind is inspect.Parameter.KEYWORD_ONLY]
        command.__signature__ = inspect.Signature([*positional, *made, *keyword])  # type: ignore[attr-defined]
        return command

    return decorate


def parse_value(field: FieldInfo | None, text: str | bool) -> Any:
    """What a word of the command line means for a setting: text stays text, all else is read as YAML.

    Where the setting takes a list, commas separate its entries.
    """
    accepted = _members(field)
    if isinstance(text, bool) or accepted == {str}:
        return text
    listed = list[str] in accepted
    if listed and not text.startswith(("[", "re:")) and ("," in text or str not in accepted):
        return [part.strip() for part in text.split(",") if part.strip()]
    if listed and text.startswith("re:"):  # a comma may well be part of the expression
        return text if str in accepted else [text]
    return _yaml(text)


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: a date that no calendar has, such as 2024-02-31
        return text


def parse_assignment(assignment: str, fields: dict[str, FieldInfo]) -> tuple[str, Any]:
    """Key and value of one `--set key.path=value`. Raises ConfigError when there is no `=`."""
    key, equals, text = assignment.partition("=")
    if not equals or not re.fullmatch(r"[\w.\-]+", key.strip()):
        raise ConfigError(f"--set {assignment!r} is not of the form key=value, e.g. adapter.rank=16")
    key, text = key.strip(), text.strip()
    if key in fields:
        return key, parse_value(fields[key], text)
    mapping = fields.get(key.rpartition(".")[0])
    return key, text if mapping is not None and mapping.annotation == dict[str, str] else _yaml(text)


def _members(field: FieldInfo | None) -> set[Any]:
    """The types that a setting accepts; text for an entry of a free mapping."""
    if field is None:
        return {str}
    annotation = field.annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return set(get_args(annotation)) - {type(None)}
    return {annotation}


def _kind(field: FieldInfo | None) -> str:
    """What help shows as the option's value; "flag" for a yes or no."""
    accepted = _members(field)
    if accepted == {bool}:
        return "flag"
    for member in accepted:
        if get_origin(member) is Literal:
            return "|".join(map(str, get_args(member)))
    if list[str] in accepted:
        return "NAME,…"
    return "N" if accepted == {int} else "X" if accepted == {float} else "TEXT"


def _default(field: FieldInfo | None) -> str:
    """What applies when the option is not given, as help shows it."""
    if field is None or field.is_required():
        return ""
    default = field.get_default(call_default_factory=True)
    return "" if default is None or default is False or default == [] else f" [default: {default}]"
