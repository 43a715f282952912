"""The adapters tab: what lies in the folders, side by side, and layer by layer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gradio as gr

from loraloom.errors import ConfigError
from loraloom.formats.writing import FORMATS
from loraloom.studio.composing import compared
from loraloom.studio.converting import write_as
from loraloom.studio.desk import Desk
from loraloom.studio.looking import facts_of, inspect_folder, layer_rows, layers_of, metadata_of, side_by_side
from loraloom.studio.ui import UNLIMITED, UNQUEUED, facts, in_words, quiet, status, table

_NONE = "Choose one adapter to look into it, or several to see them side by side."
_MOST = 6


def build(desk: Desk, tab: Any) -> None:
    """Lay the tab out and tie it to the desk."""
    with gr.Row(elem_classes=["ll-narrow"]):
        chosen = gr.Dropdown(
            desk.names(),
            value=[],
            multiselect=True,
            max_choices=_MOST,
            label="Adapters",
            elem_id="ll-looked-at",
            scale=3,
        )
        run = gr.Dropdown([], label="Or a finished run", elem_id="ll-looked-at-run", scale=2)
    with gr.Row(elem_classes=["ll-narrow"]):
        inspect = gr.Button("Inspect its layers", variant="primary", elem_id="ll-inspect", scale=0, min_width=200)
        compare = gr.Button("Compare them", elem_id="ll-compare", scale=0, min_width=200)
    told = gr.HTML(quiet(_NONE), elem_id="ll-facts", apply_default_css=False)
    picture = gr.Image(visible=False, show_label=False, interactive=False, format="png", elem_id="ll-spectra")
    layers = gr.HTML("", elem_id="ll-layers", apply_default_css=False)
    _lay_out_writer(desk, chosen)

    def refresh(kept: list[str] | None) -> tuple[Any, ...]:
        desk.look_again()
        names = desk.names()
        return (
            gr.Dropdown(choices=names, value=[name for name in kept or [] if name in names]),
            gr.Dropdown(choices=[name for name in desk.runs.names() if desk.runs.status(name).state == "finished"]),
        )

    @in_words
    def show(names: list[str] | None) -> tuple[Any, ...]:
        return shown(desk, names or []), "", gr.Image(visible=False)

    @in_words
    def look_into(names: list[str] | None, run_name: str | None) -> tuple[Any, ...]:
        if run_name and not names:
            return _run_shown(desk, run_name)
        if not names or len(names) != 1:
            raise ConfigError("choose exactly one adapter or one run to inspect")
        verdict, sites = layers_of(desk.adapter(names[0]).path)
        return status(verdict[0].upper() + verdict[1:]) + table(*layer_rows(sites)), gr.Image(visible=False)

    @in_words
    def lay_side_by_side(names: list[str] | None) -> tuple[Any, ...]:
        found = compared(desk, names or [])
        told = "".join(status(sentence) for sentence in found.sentences) + table(found.columns, found.rows)
        return told, gr.Image(value=str(found.picture), visible=True)

    tab.select(refresh, chosen, [chosen, run], **UNQUEUED)
    chosen.change(show, chosen, [told, layers, picture], **UNLIMITED)
    compare.click(lay_side_by_side, chosen, [layers, picture], **{**UNLIMITED, "show_progress": "minimal"})
    inspect.click(look_into, [chosen, run], [layers, picture], **{**UNLIMITED, "show_progress": "minimal"})


def _lay_out_writer(desk: Desk, chosen: Any) -> None:
    with gr.Accordion("Write in another program's format", open=False):
        with gr.Row(elem_classes=["ll-narrow"]):
            to = gr.Dropdown(list(FORMATS), value=FORMATS[0], label="Format", elem_id="ll-convert-to")
            name = gr.Textbox(label="Name of the new file", max_lines=1, elem_id="ll-convert-name")
            write = gr.Button("Write and compare", elem_id="ll-convert", scale=1, min_width=150)
        proof = gr.HTML("", elem_id="ll-convert-proof", apply_default_css=False)

    @in_words
    def convert(names: list[str] | None, kind: str, new: str) -> str:
        if not names or len(names) != 1:
            raise ConfigError("choose exactly one adapter to write")
        return status(write_as(desk, names[0], kind, new or ""))

    write.click(convert, [chosen, to, name], proof, **{**UNLIMITED, "show_progress": "minimal"})


def shown(desk: Desk, names: list[str]) -> str:
    """The facts of one adapter, or of several beside one another."""
    entries = [desk.adapter(name) for name in names]
    if not entries:
        return quiet(_NONE)
    if len(entries) > 1:
        return table(*side_by_side(entries))
    return facts(facts_of(entries[0])) + facts(metadata_of(entries[0]))


def _run_shown(desk: Desk, name: str) -> tuple[Any, ...]:
    with tempfile.TemporaryDirectory(prefix="loraloom-") as folder:
        path = Path(folder) / "spectra.png"
        verdict = inspect_folder(desk.runs.folder(name), path)
        kept = desk.draft_file(path)
    return status(verdict[0].upper() + verdict[1:]), gr.Image(value=str(kept), visible=True)
