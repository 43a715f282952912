"""The paint tab's components: words, picture, adapters and settings, in the order of the Tab key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from loraloom.studio.composing import METHODS
from loraloom.studio.desk import Desk
from loraloom.studio.form import MOST_BATCH, MOST_SIDE, MOST_STEPS, Form
from loraloom.studio.ui import asset, status


@dataclass(frozen=True)
class Words:
    """Prompts and the buttons below them."""

    prompt: Any
    negative: Any
    counts: Any
    paint: Any
    stop: Any
    keep: Any


@dataclass(frozen=True)
class Stage:
    """Where the picture appears."""

    picture: Any
    status: Any
    batch: Any


@dataclass(frozen=True)
class Knobs:
    """The settings of sampling."""

    sampler: Any
    steps: Any
    guidance: Any
    width: Any
    height: Any
    seed: Any
    dice: Any
    batch: Any
    clip_skip: Any


@dataclass(frozen=True)
class Reader:
    """Where a recipe comes in from elsewhere."""

    drop: Any
    text: Any
    read: Any


@dataclass(frozen=True)
class Maker:
    """Where the adapters that are on become one."""

    name: Any
    how: Any
    rank: Any
    write: Any
    told: Any


@dataclass(frozen=True)
class PaintTab:
    """The whole tab."""

    words: Words
    stage: Stage
    live: Any
    new_seed: Any
    rack: Any
    knobs: Knobs
    reader: Reader
    maker: Maker

    @property
    def fields(self) -> list[Any]:
        """The components in the order of `Form`."""
        knobs = self.knobs
        size = [knobs.width, knobs.height]
        words = [self.words.prompt, self.words.negative]
        return [*words, knobs.sampler, knobs.steps, knobs.guidance, *size, knobs.seed, knobs.batch, knobs.clip_skip]

    @property
    def turned(self) -> list[Any]:
        """The events, beside the rack's, after which a live page paints again."""
        knobs = self.knobs
        sliders = [knobs.steps, knobs.guidance, knobs.width, knobs.height, knobs.clip_skip]
        return [knobs.sampler.input, knobs.seed.submit, *(slider.release for slider in sliders)]


def lay_out(desk: Desk) -> PaintTab:
    """Put the components where they belong."""
    form = desk.first_form()
    with gr.Row(elem_id="ll-desk"):
        with gr.Column(elem_id="ll-words"):
            words = _words(form)
        with gr.Column(elem_id="ll-picture-side"):
            stage = _stage(quick=desk.quick)
        with gr.Column(elem_id="ll-knobs"):
            with gr.Row(equal_height=True):
                live = gr.Checkbox(
                    desk.quick, label="Live", info="Paint at every turn of a knob", elem_id="ll-live", min_width=150
                )
                new_seed = gr.Checkbox(
                    False, label="New seed", info="Another at every Paint", elem_id="ll-new-seed", min_width=150
                )
            rack = gr.HTML(
                {},
                html_template='<div class="ll-rack"></div>',
                js_on_load=asset("rack.js"),
                apply_default_css=False,
                elem_id="ll-rack",
                entries=desk.entries(),
            )
            knobs = _knobs(desk, form)
            reader = _reader()
            maker = _maker()
    return PaintTab(words, stage, live, new_seed, rack, knobs, reader, maker)


def _words(form: Form) -> Words:
    prompt = gr.Textbox(form.prompt, label="Prompt", lines=3, max_lines=12, elem_id="ll-prompt")
    negative = gr.Textbox(
        form.negative,
        label="Negative prompt",
        lines=1,
        max_lines=8,
        elem_id="ll-negative",
        placeholder="What the picture should not show",
    )
    counts = gr.HTML("", elem_id="ll-counts", apply_default_css=False)
    with gr.Row():
        paint = gr.Button("Paint", variant="primary", elem_id="ll-paint", scale=3, min_width=120)
        stop = gr.Button("Stop", elem_id="ll-stop", interactive=False, scale=1, min_width=80)
        keep = gr.Button("Keep", elem_id="ll-keep", interactive=False, scale=1, min_width=80)
    return Words(prompt, negative, counts, paint, stop, keep)


def _stage(*, quick: bool) -> Stage:
    picture = gr.Image(
        label="Picture",
        type="filepath",
        format="png",
        interactive=False,
        height=440,
        elem_id="ll-picture",
        elem_classes=["ll-pixels"] if quick else [],
        buttons=["download", "fullscreen"],
    )
    told = gr.HTML(status("Ctrl+Enter paints"), elem_id="ll-status", apply_default_css=False)
    batch = gr.Gallery(
        label="All of this batch",
        columns=4,
        height=200,
        visible=False,
        allow_preview=False,
        buttons=[],
        elem_id="ll-batch",
        format="png",
        object_fit="contain",
    )
    return Stage(picture, told, batch)


def _knobs(desk: Desk, form: Form) -> Knobs:
    small = form.width <= 128
    least, most, by = (32, 256, 8) if small else (256, MOST_SIDE, 64)
    with gr.Accordion("Settings", open=True):
        with gr.Row():
            sampler = gr.Dropdown(desk.samplers(), value=form.sampler, label="Sampler", elem_id="ll-sampler")
            seed = gr.Number(
                form.seed, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, elem_id="ll-seed", min_width=110
            )
            dice = gr.Button("Another", size="sm", elem_id="ll-dice", scale=0, min_width=90)
        with gr.Row():
            steps = gr.Slider(1, MOST_STEPS, form.steps, step=1, label="Steps", elem_id="ll-steps")
            guidance = gr.Slider(0, 30, form.guidance, step=0.5, label="Guidance", elem_id="ll-guidance")
        with gr.Row():
            width = gr.Slider(least, most, form.width, step=by, label="Width", elem_id="ll-width")
            height = gr.Slider(least, most, form.height, step=by, label="Height", elem_id="ll-height")
        with gr.Row():
            batch = gr.Slider(1, MOST_BATCH, form.batch, step=1, label="Pictures", elem_id="ll-count")
            clip_skip = gr.Slider(1, 12, form.clip_skip, step=1, label="Clip skip", elem_id="ll-clip-skip")
    return Knobs(sampler, steps, guidance, width, height, seed, dice, batch, clip_skip)


def _reader() -> Reader:
    with gr.Accordion("Read a recipe", open=True):
        drop = gr.File(label="Drop a PNG to take over its settings", height=150, elem_id="ll-drop")
        with gr.Row():
            text = gr.Textbox(
                label="Or paste its text", lines=1, max_lines=6, elem_id="ll-recipe-text", placeholder="… Steps: 20, …"
            )
            read = gr.Button("Take over", size="sm", elem_id="ll-read", scale=0, min_width=96)
    return Reader(drop, text, read)


def _maker() -> Maker:
    with gr.Accordion("Make one adapter of those that are on", open=False):
        name = gr.Textbox(label="Name of the new adapter", max_lines=1, elem_id="ll-mix-name")
        with gr.Row():
            how = gr.Radio(list(METHODS), value=next(iter(METHODS)), label="How", elem_id="ll-mix-how")
            rank = gr.Number(16, label="Rank", precision=0, minimum=1, elem_id="ll-mix-rank", min_width=80)
        write = gr.Button("Write it", size="sm", elem_id="ll-mix-write")
        told = gr.HTML("", elem_id="ll-mix-told", apply_default_css=False)
    return Maker(name, how, rank, write, told)
