"""The gallery tab: every picture that was kept, and its settings brought back."""

from __future__ import annotations

from typing import Any

import gradio as gr

from loraloom.imaging.recipe import Recipe, read_picture
from loraloom.studio.desk import Desk
from loraloom.studio.paint_events import taken_over
from loraloom.studio.tab_paint import PaintTab
from loraloom.studio.ui import UNLIMITED, facts, in_words, quiet

_NONE = "Choose a picture to see how it was made."


def build(desk: Desk, tab: Any, tabs: Any, paint: PaintTab) -> None:
    """Lay the tab out and tie it to the desk. `tab` is the tab itself, `tabs` what holds all of them."""
    chosen = gr.State("")
    names = gr.State([])
    with gr.Row(elem_classes=["ll-narrow"]):
        shown = gr.Gallery(
            label="Kept pictures",
            show_label=False,
            columns=5,
            height=560,
            allow_preview=False,
            buttons=[],
            format="png",
            object_fit="contain",
            elem_id="ll-gallery",
            elem_classes=["ll-pixels"] if desk.quick else [],
        )
        with gr.Column(min_width=260):
            told = gr.HTML(quiet(_NONE), elem_id="ll-gallery-recipe", apply_default_css=False)
            use = gr.Button("Use its settings", variant="primary", interactive=False, elem_id="ll-gallery-use")
            remove = gr.Button("Delete", variant="stop", interactive=False, elem_id="ll-gallery-delete")
    buttons = [use, remove]

    def refresh() -> tuple[Any, ...]:
        files = desk.gallery.files()
        told_now = quiet(
            _NONE if files else f"Painted pictures appear here; they lie in the folder {desk.gallery.folder}."
        )
        pictures = [str(path) for path in files]
        return pictures, [path.name for path in files], "", told_now, *(gr.Button(interactive=False) for _ in buttons)

    @in_words
    def choose(known: list[str], event: gr.SelectData) -> tuple[Any, ...]:
        name = known[event.index]
        recipe = read_picture(desk.gallery.find(name))
        return name, quiet(name) + facts(recipe_facts(recipe)), *(gr.Button(interactive=True) for _ in buttons)

    @in_words
    def bring_back(name: str) -> dict[Any, Any]:
        form, states, notes = desk.read(desk.gallery.find(name))
        return {**taken_over(desk, paint, form, states, notes), tabs: gr.Tabs(selected="paint")}

    @in_words
    def delete(name: str) -> None:
        desk.gallery.remove(name)

    everything = [shown, names, chosen, told, *buttons]
    tab.select(refresh, None, everything, **UNLIMITED)
    shown.select(choose, names, [chosen, told, *buttons], **UNLIMITED)
    use.click(bring_back, chosen, [*paint.fields, paint.rack, paint.stage.status, tabs], **UNLIMITED)
    remove.click(delete, chosen, None, **UNLIMITED).success(refresh, None, everything, **UNLIMITED)


def recipe_facts(recipe: Recipe) -> dict[str, str]:
    """A recipe in words, for reading."""
    adapters = [
        f"{use.name} {use.unet:g}" + (f" (text {use.te:g})" if use.te != use.unet else "") for use in recipe.adapters
    ]
    return {
        "prompt": recipe.prompt,
        "negative": recipe.negative,
        "adapters": ", ".join(adapters),
        "sampler": f"{recipe.sampler}, {recipe.steps} steps, guidance {recipe.guidance:g}",
        "size": f"{recipe.width} × {recipe.height}",
        "seed": str(recipe.seed),
        "clip skip": str(recipe.clip_skip) if recipe.clip_skip > 1 else "",
        "base": recipe.base,
    }
