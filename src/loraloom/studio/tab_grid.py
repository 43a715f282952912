"""The grid tab: a sheet of pictures over two things that vary, from the settings of the paint tab."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from loraloom.studio.desk import Desk
from loraloom.studio.easel import Event, Failed, Painted, Progress
from loraloom.studio.sheets import EXAMPLES, NOTHING, Side, grid_of, keep_sheet, kinds, needs_name, paint_sheet
from loraloom.studio.tab_paint import PaintTab
from loraloom.studio.ui import QUIET, UNQUEUED, in_words, page_of, quiet, status, tell

_ABOUT = "The sheet starts from the prompts, adapters and settings of the Paint tab; what varies is set here."


@dataclass(frozen=True)
class _SideFields:
    kind: Any
    name: Any
    values: Any

    @property
    def all(self) -> list[Any]:
        return [self.kind, self.name, self.values]


def build(desk: Desk, paint: PaintTab) -> None:
    """Lay the tab out and tie it to the desk."""
    gr.HTML(quiet(_ABOUT), apply_default_css=False)
    with gr.Row(elem_classes=["ll-narrow"]):
        rows = _side(desk, "Rows", "seed", "1..3")
        columns = _side(desk, "Columns", "guidance", "1, 2, 4, 8")
    with gr.Row():
        make = gr.Button("Make the sheet", variant="primary", elem_id="ll-grid-make", scale=3, min_width=140)
        stop = gr.Button("Stop", elem_id="ll-grid-stop", interactive=False, scale=1, min_width=80)
    said = gr.HTML("", elem_id="ll-grid-status", apply_default_css=False)
    sheet = gr.Image(
        label="Sheet", interactive=False, format="png", elem_id="ll-sheet", buttons=["download", "fullscreen"]
    )
    making = _Making(desk, said, sheet, stop)
    make.click(
        in_words(making.make),
        [paint.rack, *rows.all, *columns.all, *paint.fields],
        [said, sheet, stop],
        concurrency_limit=1,
        concurrency_id="painting",
        trigger_mode="once",
        **QUIET,
    )
    stop.click(in_words(making.stop), None, said, **UNQUEUED)


class _Making:
    """A sheet painted, and what the page shows of it."""

    def __init__(self, desk: Desk, said: Any, sheet: Any, stop: Any) -> None:
        self._desk, self._said, self._sheet, self._stop = desk, said, sheet, stop

    def make(self, request: gr.Request, uses: Any, *values: Any) -> Iterator[dict[Any, Any]]:
        """Paint cell by cell, and draw the sheet."""
        rows, columns = Side(*map(_text, values[:3])), Side(*map(_text, values[3:6]))
        grid = grid_of(self._desk, self._desk.recipe(values[6:], uses), rows, columns)
        events = paint_sheet(self._desk, grid, page=page_of(request))
        yield {self._said: status("…", 0), self._stop: gr.Button(interactive=True)}
        yield from self._shown(events)

    def stop(self, request: gr.Request) -> str:
        """Stop whatever is painted for this page."""
        return status("stopping" if self._desk.stop(page_of(request)) else "nothing is being painted")

    def _shown(self, events: Iterator[Event]) -> Iterator[dict[Any, Any]]:
        began = time.perf_counter()
        done = {self._stop: gr.Button(interactive=False)}
        for event in events:
            if isinstance(event, Progress):
                yield {self._said: status(event.words, event.step / max(event.steps, 1))}
            elif isinstance(event, Failed):
                tell([event.sentence], "Not painted")
                yield {self._said: status(event.sentence), **done}
            elif isinstance(event, Painted):
                yield self._finished(event, time.perf_counter() - began) | done

    def _finished(self, event: Painted, seconds: float) -> dict[Any, Any]:
        if not event.pictures:
            return {self._said: status("stopped")}
        made = event.pictures[0]
        path = keep_sheet(self._desk, made)
        tell(list(made.notes))
        missing = [f"stopped, {made.missing} still empty: Make the sheet goes on"] if made.missing else []
        told = [
            f"{len(made.grid)} cells",
            *missing,
            f"{made.painted} painted",
            f"{seconds:.1f} s",
            f"kept as {path.name}",
        ]
        return {self._sheet: str(path), self._said: status(" · ".join(told))}


def _side(desk: Desk, title: str, kind: str, values: str) -> _SideFields:
    name_id = f"ll-grid-{title.lower()}"
    with gr.Column(min_width=260), gr.Group():
        chosen = gr.Dropdown(kinds(), value=kind, label=title, elem_id=f"{name_id}-kind")
        name = gr.Dropdown(
            desk.names(), label="Of which adapter", visible=False, allow_custom_value=True, elem_id=f"{name_id}-name"
        )
        text = gr.Textbox(values, label="Values", max_lines=4, elem_id=f"{name_id}-values")

    def change(now: str) -> tuple[Any, Any]:
        wanted = needs_name(now)
        label = "Text to replace" if wanted == "text" else "Of which adapter"
        example = ", ".join(desk.samplers()[:3]) if now == "sampler" else EXAMPLES.get(now, "")
        choices = desk.names() if wanted == "adapter" else []
        return (
            gr.Dropdown(choices=choices, value=choices[0] if choices else "", label=label, visible=bool(wanted)),
            gr.Textbox(value=example, visible=now != NOTHING),
        )

    chosen.input(change, chosen, [name, text], **UNQUEUED)
    return _SideFields(chosen, name, text)


def _text(value: Any) -> str:
    return "" if value is None else str(value)
