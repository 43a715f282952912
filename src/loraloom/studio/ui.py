"""What the page's parts share: errors in words, small pieces of HTML, the assets."""

from __future__ import annotations

import functools
import html
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from loraloom.errors import LoraloomError

ASSETS = Path(__file__).with_name("assets")
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""For events that need no spinner; no event of the page is offered as an interface for programs."""
UNQUEUED: dict[str, Any] = {**QUIET, "queue": False}
"""For events that must not wait behind a painting."""
UNLIMITED: dict[str, Any] = {**QUIET, "concurrency_limit": None}
"""Messages to the page travel with the queue: events that may tell something go through it, without a limit."""


def asset(name: str) -> str:
    """The text of one of the page's own files."""
    return (ASSETS / name).read_text("utf-8")


def in_words(function: Callable[..., Any]) -> Callable[..., Any]:
    """An event that tells whatever goes wrong as one sentence on the page, never as a traceback."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def steps(*arguments: Any) -> Iterator[Any]:
            try:
                yield from function(*arguments)
            except Exception as error:
                raise as_words(error) from None

        return steps

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            raise as_words(error) from None

    return call


def as_words(error: Exception) -> gr.Error:
    """An exception as the page shows it; text from files or names is never taken for HTML."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, LoraloomError):
        return gr.Error(html.escape(str(error)), title="That did not work", print_exception=False)
    told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return gr.Error(html.escape(f"failed with {told}"), title="A failure of ours", print_exception=False)


def tell(sentences: Sequence[str], title: str = "Note") -> None:
    """Sentences that the user should know, as one message on the page."""
    if sentences:
        gr.Warning("<br>".join(html.escape(sentence) for sentence in sentences), title=title)


def status(sentence: str, share: float | None = None) -> str:
    """One line, and a bar where the share of the work that is done is known."""
    told = f'<div class="ll-status" role="status"><span>{html.escape(sentence)}</span>'
    if share is not None:
        told += f'<div class="ll-bar"><span style="width:{100 * min(1.0, max(0.0, share)):.1f}%"></span></div>'
    return told + "</div>"


def quiet(sentence: str) -> str:
    """A sentence in the background."""
    return f'<p class="ll-quiet">{html.escape(sentence)}</p>' if sentence else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table that can be scrolled sideways on a small screen."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="ll-table" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def facts(values: Mapping[str, Any]) -> str:
    """Names and values, one below another."""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>'
        for name, value in values.items()
        if value not in (None, "", [], {})
    )
    return f'<div class="ll-table"><table><tbody>{rows}</tbody></table></div>'


def page_of(request: gr.Request) -> str:
    """What tells one open page from another."""
    return str(request.session_hash or "")
