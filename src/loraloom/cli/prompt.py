"""`loraloom prompt`: how a prompt for pictures is understood, step by step."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from loraloom.cli import output
from loraloom.cli.options import Debug, Json
from loraloom.errors import ConfigError, DataError
from loraloom.imaging.prompt import LoraTag, ParsedPrompt, Part, Stage, Tag, parse_prompt


def prompt(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="The prompt; - reads it from stdin.", show_default=False)
    ] = None,
    *,
    negative: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Negative prompt, shown as well. It has no tags and no AND.")
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", help="Sampling steps that schedules refer to, 1 to 1000.")] = 20,
    file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Prompts, one JSON string per line; one line each with --json. - is stdin."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show how a prompt for pictures is understood, step by step.

    What is said when, at which weight, and which adapters act how strongly.
    The language is that of the Stable-Diffusion web UI: (more), [less], (text:1.3), [from:to:0.5], [a|b], AND,
    BREAK, <lora:NAME:0.8>. Brackets that never close and the like are no errors; they are warned of.
    """
    if (text is None) == (file is None):
        raise ConfigError("a prompt is needed: either as TEXT, or in --file FILE" + (", not both" if text else ""))
    if file is not None:
        if negative is not None:
            raise ConfigError("--negative goes with one TEXT, not with --file")
        _show_file(file, steps, json)
        return
    read = parse_prompt(_typed(text or ""), steps=steps)
    against = None if negative is None else parse_prompt(negative, steps=steps, negative=True)
    if json:
        data = read.to_json()
        _print_json(data if against is None else {**data, "negative": against.to_json()}, indent=2)
        return
    _show(read)
    if against is not None:
        output.say("", "negative prompt")
        _show(against)


# -- input ------------------------------------------------------------------------------------------


def _typed(text: str) -> str:
    if text != "-":
        return text
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"stdin: byte {error.start + 1} is no UTF-8 text") from None


def _show_file(file: str, steps: int, json: bool) -> None:
    """Every prompt of a file. All lines are read before the first is shown, so that a bad one leaves no half."""
    for number, text in enumerate(_prompts(file), 1):
        read = parse_prompt(text, steps=steps)
        if json:
            _print_json(read.to_json())
        else:
            output.say(*([""] if number > 1 else []), f"line {number}: {_shown(text)}")
            _show(read)


def _prompts(file: str) -> list[str]:
    """The JSON strings of a file. Raises DataError with the number of the first line that is none."""
    lines = _content(file).removesuffix(b"\n").split(b"\n")  # not splitlines(): a string may hold a U+2028
    name = "stdin" if file == "-" else file
    return [] if lines == [b""] else [_string(line, f"{name}, line {number}") for number, line in enumerate(lines, 1)]


def _content(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except FileNotFoundError:
        raise DataError(f"--file '{file}': there is no such file") from None
    except IsADirectoryError:
        raise DataError(f"--file '{file}': a folder was found, and a file is needed") from None


def _string(line: bytes, place: str) -> str:
    try:
        value = json_format.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # ValueError: bad JSON as well as bad UTF-8
        value = None
    if not isinstance(value, str):
        found = _shown(line.decode("utf-8", "replace").strip())
        found = f"{found[:40]}…" if len(found) > 40 else found or "an empty line"
        raise DataError(f'{place}: {found} found, and one JSON string is needed, e.g. "a red boat"')
    return value


# -- output -----------------------------------------------------------------------------------------


def _print_json(data: dict[str, Any], indent: int | None = None) -> None:
    """One object on stdout, on one line without `indent`; letters as they are, where they can be encoded."""
    text = json_format.dumps(output.plain(data), ensure_ascii=False, indent=indent, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which a JSON string may hold
        text = json_format.dumps(output.plain(data), indent=indent, allow_nan=False)
    output.say(text)


def _show(read: ParsedPrompt) -> None:
    """Tables for people."""
    rows = [row for number, part in enumerate(read.parts, 1) for row in _part_rows(number, part, len(read.parts))]
    output.show_table(("part", "steps", "weight", "text"), rows)
    if read.loras:
        columns = ("adapter", "text encoder", "denoiser", "blocks", "steps")
        output.show_table(columns, [_lora_row(lora) for lora in read.loras])
    output.say(*(f"not an adapter: {_shown(_tag(tag))}" for tag in read.networks))
    output.say(*(f"warning: {_shown(sentence)}" for sentence in read.warnings))


def _part_rows(number: int, part: Part, count: int) -> list[list[str]]:
    """A row per segment; stages that say the same stand together."""
    name = f"{number} × {part.weight:g}" if count > 1 or part.weight != 1 else str(number)
    rows: list[list[str]] = []
    for text, steps in _by_text(part.schedule).items():
        segments = next(stage.segments for stage in part.schedule if stage.text == text)
        said = [segment for segment in segments if segment.text] or segments  # a BREAK has an empty one beside it
        for index, segment in enumerate(said):
            first = (name if not rows else "", _spans(steps) if index == 0 else "")
            is_break = segment == ("BREAK", -1.0)
            said_as = _shown(segment.text) if segment.text.strip() else "␣" * bool(segment.text)
            cells = ("–", "BREAK: a new chunk") if is_break else (_weight(segment.weight), said_as)
            rows.append([*first, *cells])
    return rows


def _by_text(schedule: Sequence[Stage]) -> dict[str, list[tuple[int, int]]]:
    """First and last steps for each text."""
    spans: dict[str, list[tuple[int, int]]] = {}
    start = 1
    for stage in schedule:
        found = spans.setdefault(stage.text, [])
        if found and found[-1][1] == start - 1:
            found[-1] = (found[-1][0], stage.end_step)
        else:
            found.append((start, stage.end_step))
        start = stage.end_step + 1
    return spans


def _spans(spans: Iterable[tuple[int, int]]) -> str:
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in spans)


def _lora_row(lora: LoraTag) -> list[str]:
    blocks = ", ".join(f"{name} × {factor:g}" for name, factor in lora.blocks.items())
    starts = [1, *(end + 1 for end, _ in lora.steps)]
    pieces = [
        f"{_spans([(start, end)])} × {factor:g}" for start, (end, factor) in zip(starts, lora.steps, strict=False)
    ]
    return [_shown(lora.name), _weight(lora.te), _weight(lora.unet), blocks or "all", ", ".join(pieces) or "all"]


def _weight(weight: float) -> str:
    """Four figures are enough to look at; --json has them all."""
    return f"{weight:.4g}"


def _tag(tag: Tag) -> str:
    return f"<{':'.join([tag.name, *tag.args, *(f'{key}={value}' for key, value in tag.named.items())])}>"


def _shown(text: str) -> str:
    """Text for a terminal: no line breaks, and nothing that a terminal would obey."""
    marked = text.replace("\r\n", "⏎").replace("\n", "⏎")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in marked)
