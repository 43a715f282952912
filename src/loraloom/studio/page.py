"""The page as a whole: its tabs, its looks, and how it is served."""

from __future__ import annotations

from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from loraloom.studio import paint_events, tab_adapters, tab_gallery, tab_grid, tab_paint, tab_train
from loraloom.studio.address import LOOPBACK, Address
from loraloom.studio.desk import Desk
from loraloom.studio.ui import ASSETS, asset, page_of

MAX_UPLOAD = "64mb"
"""Largest file that the page takes."""
USER = "studio"
"""The name to sign in with where a password is asked for."""

_HEAD = """
<div class="ll-head"><h1>Loraloom studio</h1><p>{base}</p>
<p class="ll-keys"><kbd>Ctrl</kbd>+<kbd>Enter</kbd> paints · <kbd>Esc</kbd> stops</p></div>
"""
# System fonts, and none fetched: gradio's own themes name fonts of a web service.
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def build(desk: Desk) -> Any:
    """The whole page over one desk, as gradio's `Blocks`."""
    with gr.Blocks(title="Loraloom studio", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(_HEAD.format(base=_text(desk.painter.base)), apply_default_css=False)
        with gr.Tabs(selected="paint") as tabs:
            with gr.Tab("Paint", id="paint"):
                paint = tab_paint.lay_out(desk)
                paint_events.connect(desk, paint)
            with gr.Tab("Gallery", id="gallery") as gallery:
                tab_gallery.build(desk, gallery, tabs, paint)
            with gr.Tab("Grid", id="grid"):
                tab_grid.build(desk, paint)
            with gr.Tab("Adapters", id="adapters") as adapters:
                tab_adapters.build(desk, adapters)
            with gr.Tab("Train", id="train") as train:
                tab_train.build(desk, train)

        def closed(request: gr.Request) -> None:
            desk.forget(page_of(request))

        page.unload(closed)
    return page


def serve(page: Any, desk: Desk, address: Address, *, block: bool = True) -> str:
    """Serve the page, and return its address once it listens; `block` waits until it is interrupted.

    Raises OSError when the port is taken.
    """
    page.queue(max_size=64, default_concurrency_limit=4, api_open=False)
    _, url, _ = page.launch(
        server_name=address.host,
        server_port=address.port,
        auth=(USER, address.password) if address.password else None,
        auth_message="The studio listens beyond this machine, so it asks for its password.",
        share=False,
        inbrowser=False,
        quiet=True,
        show_error=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        max_file_size=MAX_UPLOAD,
        allowed_paths=[str(desk.gallery.folder.resolve())],
        theme=_theme(),
        css_paths=[ASSETS / "page.css"],
        js=asset("keys.js"),
        app_kwargs=_app_settings(address),
        prevent_thread_lock=not block,
    )
    return str(url)


def _theme() -> Any:
    base = gr.themes.Base(font=list(_FONT), font_mono=list(_MONO), primary_hue="orange", neutral_hue="zinc")
    # Base's own subdued grey is too pale to read on white (2.6 : 1 where 4.5 : 1 is the least).
    return base.set(
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
    )


def _app_settings(address: Address) -> dict[str, Any]:
    """No documentation pages; on loopback only loopback's own names, so that no foreign name leads here.

    A page elsewhere could let its own name point to 127.0.0.1 and so read this one (DNS rebinding).
    """
    settings: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    if address.host in LOOPBACK:
        hosts = ["127.0.0.1", "localhost", "[::1]"]
        settings["middleware"] = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)]
    return settings


def _text(words: str) -> str:
    return words.replace("&", "&amp;").replace("<", "&lt;")
