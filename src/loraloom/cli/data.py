"""`loraloom data`: look at a data set before training on it. Its verb is `check`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraloom.cli.options import Debug, Json, parse_assignment
from loraloom.data.config import DataConfig
from loraloom.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from loraloom.data.check import Checked, Tokens
    from loraloom.data.check.part import Progress

EPILOG = "loraloom data VERB --help explains a verb; each has --json and --debug."

_UNSOUND = 2
"""Exit status of --strict where something should be mended."""

_CHUNK = 1_000  # texts that are tokenised at once

_COLUMNS = "columns."


def data() -> None:
    """Look at a data set before training on it."""


def check(
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", help="A file, folder or dataset, as train reads it.", show_default=False),
    ],
    *,
    task: Annotated[str, typer.Option(metavar="TASK", help="What the data are for, e.g. text-classification.")],
    held_out: Annotated[
        str | None,
        typer.Option(
            "--eval",
            metavar="PATH",
            help="Held-out examples, checked as well, and for leaks. [default: the splits that PATH holds]",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Split of a dataset to train on.")] = None,
    eval_split: Annotated[str | None, typer.Option(metavar="NAME", help="Split of a dataset to evaluate on.")] = None,
    text_column: Annotated[str | None, typer.Option(metavar="NAME", help="Column that holds the text.")] = None,
    label_column: Annotated[str | None, typer.Option(metavar="NAME", help="Column that holds the label.")] = None,
    sets: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Column of a role, e.g. columns.source=english; repeatable."),
    ] = [],  # noqa: B006 typer wants the default as it is
    delimiter: Annotated[str | None, typer.Option(metavar="CHARACTER", help="Between the fields of a file.")] = None,
    base: Annotated[
        str | None, typer.Option(metavar="NAME", help="Base model: counts its tokens, and tells what it would cut.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tokens of a text. [default: all that the base takes]")
    ] = None,
    sheet: Annotated[str | None, typer.Option(metavar="FILE", help="Draw a sample sheet to this .png file.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="End with status 2 if anything should be mended before training.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Read a whole data set without training, and say what it holds and what is wrong with it.

    Nothing stops it: rows and files that cannot be used are counted and named. It tells lengths, durations and
    sizes, how balanced the labels are, odd texts, pictures and recordings, duplicates, and leaks between splits.
    """
    _check_target(sheet, base, max_length)
    columns = {"text": text_column, "label": label_column}
    config = _config(path, held_out, split, eval_split, delimiter, columns, sets)
    from loraloom.cli import output
    from loraloom.cli.data_report import show_report
    from loraloom.data.check import check_data
    from loraloom.data.check.sheet import draw_sheet

    tokens = None if base is None else _tokens(task, base, max_length)
    with _progress() as progress:
        found = check_data(task, config, tokens=tokens, progress=progress)
    if sheet is not None:
        draw_sheet(Path(sheet), found)
    if json:
        output.emit({"path": path, "sheet": sheet, **found.report.to_dict()})
    else:
        show_report(found.report)
        output.say(*([f"drawn in {sheet}"] if sheet else []))
    if strict:
        _end_unless_sound(found)


SUBVERBS: dict[str, Callable[..., None]] = {"check": check}
"""The verbs of this group."""


def _check_target(sheet: str | None, base: str | None, max_length: int | None) -> None:
    if sheet is not None and not sheet.endswith(".png"):
        raise ConfigError(f"--sheet '{sheet}': the name must end in .png")
    if sheet is not None and not Path(sheet).absolute().parent.is_dir():
        raise OutputError(f"--sheet '{sheet}': there is no such folder")
    if max_length is not None and base is None:
        raise ConfigError("--max-length counts tokens, and needs a --base whose tokens are meant")


def _config(
    path: str,
    held_out: str | None,
    split: str | None,
    eval_split: str | None,
    delimiter: str | None,
    columns: dict[str, str | None],
    sets: Sequence[str],
) -> DataConfig:
    """What is to be read. Raises ConfigError."""
    from loraloom.training.settings_file import read_settings

    given: dict[str, Any] = {"train": path, "eval": held_out, "split": split, "eval_split": eval_split}
    given["delimiter"] = delimiter
    given |= {f"{_COLUMNS}{role}": name for role, name in columns.items()}
    for entry in sets:
        key, value = parse_assignment(entry, DataConfig.model_fields)
        if not key.startswith(_COLUMNS):
            raise ConfigError(f"--set {key}: a check takes columns.ROLE=NAME alone; other settings are options of it")
        given[key] = str(value)
    return read_settings(DataConfig, None, {key: value for key, value in given.items() if value is not None})


def _tokens(task: str, name: str, max_length: int | None) -> Tokens:
    """How a base cuts texts into tokens. Raises BaseModelError."""
    from loraloom.data.check import Tokens

    tokenizer, positions = _tokenizer(task, name)
    limits = [positions, int(tokenizer.model_max_length), max_length]

    def count(texts: Sequence[str]) -> list[int]:
        starts = range(0, len(texts), _CHUNK)
        rows = [tokenizer(list(texts[start : start + _CHUNK]), verbose=False)["input_ids"] for start in starts]
        return [len(ids) for chunk in rows for ids in chunk]

    return Tokens(name, count, min((limit for limit in limits if limit and 0 < limit < 10**6), default=None))


def _tokenizer(task: str, name: str) -> tuple[Any, int | None]:
    """A base's tokenizer, and how many positions its configuration tells of."""
    if task == "text-to-image":
        from loraloom.tasks.diffusion.tokenizer import load_prompt_tokenizer

        return load_prompt_tokenizer(name), None
    from loraloom.tasks.models.bases import resolve_base
    from loraloom.tasks.models.loading import load_config, load_tokenizer

    base = resolve_base(name)
    return load_tokenizer(base), getattr(load_config(base).get_text_config(), "max_position_embeddings", None)


def _progress() -> AbstractContextManager[Progress | None]:
    """A bar on stderr while files are read, where someone is there to see it."""
    if not sys.stderr.isatty():
        return nullcontext(None)
    from loraloom.cli.data_report import reading_bar

    return reading_bar()


def _end_unless_sound(found: Checked) -> None:
    """Tell what should be mended, as one sentence, and end with a status of its own."""
    problems = found.report.problems
    if not problems:
        return
    name, first = problems[0]
    more = f"; and {len(problems) - 1} other kinds of problems" if len(problems) > 1 else ""
    print(f"loraloom: {name}: {first.sentence}{more}", file=sys.stderr)
    raise typer.Exit(_UNSOUND)
