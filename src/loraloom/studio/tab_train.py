"""The training tab: a form beside the YAML text, a run's curve and words, start and stop."""

from __future__ import annotations

import html
import json
from typing import Any

import gradio as gr

from loraloom.studio.curve import draw_curve
from loraloom.studio.desk import Desk
from loraloom.studio.runs import RunStatus
from loraloom.studio.settings_form import FORM, FormField, first_settings, form_values, reconciled, usual
from loraloom.studio.ui import QUIET, UNLIMITED, UNQUEUED, in_words, quiet, status
from loraloom.tasks import task_names

_NONE = "No run yet: set one up and start it."
_PER_ROW = 2


def build(desk: Desk, tab: Any) -> None:
    """Lay the tab out and tie it to the desk's runs."""
    with gr.Row(elem_classes=["ll-narrow"]):
        with gr.Column(scale=5, min_width=280):
            settings, form = _settings()
            with gr.Row():
                start = gr.Button("Start", variant="primary", elem_id="ll-train-start", min_width=100)
                check = gr.Button("Check", elem_id="ll-train-check", min_width=80)
        with gr.Column(scale=6, min_width=280):
            with gr.Row():
                run = gr.Dropdown([], label="Run", elem_id="ll-run", scale=3, min_width=160)
                stop = gr.Button("Stop", elem_id="ll-train-stop", interactive=False, scale=1, min_width=80)
                resume = gr.Button("Go on", elem_id="ll-train-resume", interactive=False, scale=1, min_width=80)
            said = gr.HTML(quiet(_NONE), elem_id="ll-run-status", apply_default_css=False)
            curve = gr.HTML("", elem_id="ll-run-curve", apply_default_css=False)
            with gr.Accordion("What it says", open=True):
                tail = gr.HTML("", elem_id="ll-run-tail", apply_default_css=False, autoscroll=False)
    shown = [said, curve, tail, stop, resume]
    # What the form held when it last agreed with the text: Start may be pressed before an event has made them agree.
    # In the page, not in a gr.State: what is sent with a press must be of one moment.
    synced = gr.Textbox(json.dumps([str(field.value or "") for field in form]), visible=False)
    _connect_form(settings, form, synced)
    _connect_runs(
        desk,
        tab,
        [settings, synced, *form],
        {"start": start, "check": check, "stop": stop, "resume": resume},
        run,
        shown,
    )


def _settings() -> tuple[Any, list[Any]]:
    first = first_settings()
    values = dict(zip((field.key for field in FORM), form_values(first), strict=True))
    form = []
    for first_of_row in range(0, len(FORM), _PER_ROW):
        with gr.Row():
            form += [_field(field, values[field.key]) for field in FORM[first_of_row : first_of_row + _PER_ROW]]
    with gr.Accordion("All settings, as YAML", open=False):
        settings = gr.Code(
            first, language="yaml", label="This is what is run", lines=8, max_lines=24, elem_id="ll-yaml"
        )
    return settings, form


def _field(field: FormField, value: str) -> Any:
    name = f"ll-train-{field.key.replace('.', '-').replace('_', '-')}"
    if field.key == "task":
        return gr.Dropdown(list(task_names()), value=value, label=field.label, elem_id=name, min_width=110)
    return gr.Textbox(value, label=field.label, placeholder=usual(field.key), max_lines=1, elem_id=name, min_width=110)


def _connect_form(settings: Any, form: list[Any], synced: Any) -> None:
    @in_words
    def to_text(text: str, before: str, *values: Any) -> tuple[Any, ...]:
        return reconciled(text, json.loads(before), values), json.dumps(values)

    @in_words
    def to_form(text: str) -> tuple[Any, ...]:
        values = form_values(text)
        return json.dumps(values), *values

    for component in form:
        # Text that a program filled in makes no input event; leaving the field is told in any case.
        events = [component.input, component.blur]
        gr.on(events, to_text, [settings, synced, *form], [settings, synced], trigger_mode="always_last", **UNLIMITED)
    settings.input(to_form, settings, [synced, *form], trigger_mode="always_last", **UNQUEUED)


def _connect_runs(
    desk: Desk, tab: Any, written: list[Any], buttons: dict[str, Any], run: Any, shown: list[Any]
) -> None:
    timer = gr.Timer(1.0)

    def look(name: str | None) -> tuple[Any, ...]:
        return run_shown(desk.runs.status(name)) if name in desk.runs.names() else nothing_shown()

    def choose(name: str | None) -> Any:
        names = desk.runs.names()
        kept = name if name in names else next(iter(names), None)
        return gr.Dropdown(choices=names, value=kept)

    @in_words
    def start(text: str, before: str, *values: Any) -> Any:
        name = desk.runs.start(reconciled(text, json.loads(before), values))
        return gr.Dropdown(choices=desk.runs.names(), value=name)

    @in_words
    def check(text: str, before: str, *values: Any) -> str:
        return status(desk.runs.check(reconciled(text, json.loads(before), values)))

    @in_words
    def stop(name: str | None) -> str:
        desk.runs.stop(name or "")
        return status(f"{name} is asked to end; its checkpoints stay")

    @in_words
    def resume(name: str | None) -> None:
        desk.runs.start(desk.runs.settings(name or ""), resume=True)

    told = {**UNLIMITED, "trigger_mode": "once"}
    tab.select(choose, run, run, **UNQUEUED).then(look, run, shown, **UNQUEUED)
    run.change(look, run, shown, **UNQUEUED)
    timer.tick(look, run, shown, trigger_mode="once", concurrency_limit=None, **QUIET)
    buttons["start"].click(start, written, run, **told)
    buttons["check"].click(check, written, shown[0], **told)
    buttons["stop"].click(stop, run, shown[0], **told)
    buttons["resume"].click(resume, run, None, **told).then(look, run, shown, **UNQUEUED)


def run_shown(run: RunStatus) -> tuple[Any, ...]:
    """A run's sentence, curve, last lines, and which buttons can be pressed."""
    share = run.step / run.steps if run.steps and run.state == "running" else None
    tail = f'<pre class="ll-log" tabindex="0">{html.escape(run.tail[-4000:]) or "nothing yet"}</pre>'
    return (
        status(run.sentence, share),
        draw_curve(run.entries, run.steps),
        tail,
        gr.Button(interactive=run.state == "running"),
        gr.Button(interactive=run.state == "stopped"),
    )


def nothing_shown() -> tuple[Any, ...]:
    """The tab without any run."""
    return quiet(_NONE), "", "", gr.Button(interactive=False), gr.Button(interactive=False)
