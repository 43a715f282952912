"""What happens in the paint tab."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from loraloom.imaging.prompt import parse_prompt
from loraloom.studio.composing import write_mix
from loraloom.studio.desk import Desk
from loraloom.studio.easel import Event, Failed, Painted, Progress
from loraloom.studio.form import Form, new_seed
from loraloom.studio.tab_paint import PaintTab
from loraloom.studio.ui import QUIET, UNLIMITED, UNQUEUED, in_words, page_of, status, tell

Updates = dict[Any, Any]

_WAITING = 5
"""Painting requests of all pages together that may wait; gradio's queue holds the rest."""


def connect(desk: Desk, tab: PaintTab) -> None:
    """Tie the tab's components to the desk."""
    _connect_painting(desk, tab)
    _connect_words(desk, tab)
    _connect_recipes(desk, tab)
    _connect_maker(desk, tab)
    _connect_shelf(desk, tab)


class _Painting:
    """Paint, live or at the press of a button, and what the page shows of it."""

    def __init__(self, desk: Desk, tab: PaintTab) -> None:
        self._desk, self._tab = desk, tab

    def paint(self, request: gr.Request, fresh: bool, said: Any, *values: Any) -> Iterator[Any]:
        """The button: all pictures of the batch, kept in the gallery."""
        form = Form.of(values)
        if fresh:
            form = replace(form, seed=new_seed())
        events = self._desk.paint(form.values, said, page=page_of(request))
        tab = self._tab
        yield {tab.knobs.seed: form.seed, tab.words.stop: gr.Button(interactive=True), tab.stage.status: status("…", 0)}
        yield from self._shown(events, page_of(request), keep=True)

    def repaint(self, request: gr.Request, live: bool, said: Any, *values: Any) -> Iterator[Any]:
        """A knob was turned: one picture, which lasts until the next."""
        if not live:
            yield {self._tab.stage.status: status("Live is off: Ctrl+Enter paints")}
            return
        events = self._desk.paint(values, said, page=page_of(request), live=True)
        yield {self._tab.words.stop: gr.Button(interactive=True)}
        yield from self._shown(events, page_of(request), keep=False)

    def stop(self, request: gr.Request) -> str:
        """Stop whatever is painted for this page."""
        return status("stopping" if self._desk.stop(page_of(request)) else "nothing is being painted")

    def keep(self, request: gr.Request) -> Updates:
        """Put a live picture into the gallery."""
        kept = self._desk.keep(page_of(request))
        told = status(f"kept as {', '.join(path.name for path in kept)}")
        return {self._tab.stage.status: told, self._tab.words.keep: gr.Button(interactive=False)}

    def choose(self, event: gr.SelectData) -> Any:
        """One picture of the batch, large."""
        return event.value["image"]["path"]

    def _shown(self, events: Iterator[Event], page: str, *, keep: bool) -> Iterator[Any]:
        """The events of a painting as changes of the page."""
        stage, began = self._tab.stage, time.perf_counter()
        done = {self._tab.words.stop: gr.Button(interactive=False)}
        for event in events:
            if isinstance(event, Progress):
                yield {stage.status: status(f"step {event.step} of {event.steps}", event.step / max(event.steps, 1))}
            elif isinstance(event, Failed):
                tell([event.sentence], "Not painted")
                yield {stage.status: status(event.sentence), **done}
            elif isinstance(event, Painted):
                seconds = time.perf_counter() - began
                yield (self._finished(event, seconds, page, keep) if event.pictures else self._stopped()) | done
            else:  # a newer wish of this page shows its own picture
                yield gr.skip()

    def _stopped(self) -> Updates:
        return {self._tab.stage.status: status("stopped")}

    def _finished(self, event: Painted, seconds: float, page: str, keep: bool) -> Updates:
        stage, first = self._tab.stage, event.pictures[0]
        files = [str(self._desk.draft(picture)) for picture in event.pictures]
        told = [f"{first.image.width} × {first.image.height}", f"seed {first.seed}", f"{seconds:.1f} s"]
        if event.stopped:
            told.append("stopped early")
        if keep:
            kept = [path.name for path in self._desk.keep(page)]
            told.append(f"kept as {kept[0]}" + (f" and {len(kept) - 1} more" if kept[1:] else ""))
        tell(list(dict.fromkeys(note for picture in event.pictures for note in picture.notes)))
        return {
            stage.picture: files[0],
            stage.status: status(" · ".join(told)),
            stage.batch: gr.Gallery(value=files if files[1:] else None, visible=bool(files[1:])),
            self._tab.words.keep: gr.Button(interactive=not keep),
        }


def _connect_painting(desk: Desk, tab: PaintTab) -> None:
    words, stage, knobs = tab.words, tab.stage, tab.knobs
    painting = _Painting(desk, tab)
    shown = [stage.picture, stage.status, stage.batch, words.stop, words.keep]
    words.paint.click(
        in_words(painting.paint),
        [tab.new_seed, tab.rack, *tab.fields],
        [knobs.seed, *shown],
        concurrency_limit=1,
        concurrency_id="painting",
        trigger_mode="once",
        **QUIET,
    )
    # Not "always_last": a newer wish must reach the desk at once, to stop the older one.
    again: dict[str, Any] = {
        "fn": in_words(painting.repaint),
        "inputs": [tab.live, tab.rack, *tab.fields],
        "outputs": shown,
        "concurrency_limit": _WAITING,
        "concurrency_id": "repainting",
        "trigger_mode": "multiple",
        **QUIET,
    }
    gr.on(tab.turned, **again)
    tab.rack.turn(**again)
    knobs.dice.click(new_seed, None, knobs.seed, **UNQUEUED).then(**again)
    words.stop.click(in_words(painting.stop), None, stage.status, **UNQUEUED)
    words.keep.click(in_words(painting.keep), None, [stage.status, words.keep], **UNLIMITED)
    stage.batch.select(in_words(painting.choose), None, stage.picture, **UNQUEUED)


def _connect_words(desk: Desk, tab: PaintTab) -> None:
    words, inputs = tab.words, [tab.words.prompt, tab.words.negative, tab.knobs.steps]

    def count(prompt: str, negative: str, steps: float) -> str:
        return counted(desk, prompt or "", negative or "", int(steps or 1))

    changed = [words.prompt.change, words.negative.change]
    gr.on(changed, count, inputs, words.counts, trigger_mode="always_last", concurrency_limit=None, **UNQUEUED)
    words.counts.value = counted(desk, words.prompt.value or "", words.negative.value or "", 1)


def counted(desk: Desk, prompt: str, negative: str, steps: int) -> str:
    """Tokens and chunks of both prompts, and what is odd about them."""
    told, odd = [], []
    for name, text in (("Prompt", prompt), ("Negative", negative)):
        parsed = parse_prompt(text, steps=max(1, steps), negative=name == "Negative")
        tokens, chunks = desk.count(text)
        pieces = f"{chunks} chunks" if chunks > 1 else "1 chunk"
        told.append(f"<span>{name} <b>{tokens}</b> / {75 * chunks} tokens, {pieces}</span>")
        odd += [f"{name}: {warning}" for warning in parsed.warnings]
    warnings = "".join(f'<p class="ll-warning">{html.escape(warning)}</p>' for warning in dict.fromkeys(odd))
    return f'<div class="ll-counts" aria-live="polite">{"".join(told)}</div>{warnings}'


def _connect_recipes(desk: Desk, tab: PaintTab) -> None:
    outputs = [*tab.fields, tab.rack, tab.stage.status]

    @in_words
    def read(path: str | None) -> Updates:
        return gr.skip() if path is None else taken_over(desk, tab, *desk.read(path))

    @in_words
    def read_text(text: str) -> Updates:
        return taken_over(desk, tab, *desk.read_text(text or ""))

    tab.reader.drop.upload(read, tab.reader.drop, outputs, **UNLIMITED)
    tab.reader.read.click(read_text, tab.reader.text, outputs, **UNLIMITED)


def taken_over(desk: Desk, tab: PaintTab, form: Form, states: dict[str, Any], notes: Sequence[str]) -> Updates:
    """A recipe in the fields and the rack."""
    tell(notes, "Not all of it is here")
    fields = dict(zip(tab.fields, form.values, strict=True))
    return {**fields, tab.rack: states, tab.stage.status: status(f"settings taken over, seed {form.seed}")}


def _connect_maker(desk: Desk, tab: PaintTab) -> None:
    maker = tab.maker

    @in_words
    def write(said: Any, name: str | None, how: str, rank: float | None) -> str:
        return status(write_mix(desk, said, name or "", how, rank))

    maker.write.click(write, [tab.rack, maker.name, maker.how, maker.rank], maker.told, **UNLIMITED)


def _connect_shelf(desk: Desk, tab: PaintTab) -> None:
    """Look for new adapter files now and then; the rack is sent again only when there are any."""
    seen = gr.State(0)
    timer = gr.Timer(2.0)

    def look(version: int) -> Any:
        desk.look_again()
        if version == desk.version:
            return gr.skip(), gr.skip()
        return gr.HTML(entries=desk.entries()), desk.version

    timer.tick(look, seen, [tab.rack, seen], concurrency_limit=None, trigger_mode="once", **QUIET)
