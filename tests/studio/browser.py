"""A real browser and a served page for the tests; skipped where chromium, playwright or gradio are absent."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 30_000
"""Milliseconds until something on the page counts as not coming; a busy machine is slow, not wrong."""

DROP = """([selector, name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  const target = document.querySelector(selector);
  for (const kind of ["dragenter", "dragover", "drop"])
    target.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


def needed() -> None:
    """Skip the test where something that it needs is absent."""
    if not CHROMIUM.is_file():
        pytest.skip("chromium is not installed")
    for library in ("playwright", "gradio"):
        pytest.importorskip(library, reason=f"{library} is not installed")


@contextmanager
def browser(folder: Path) -> Iterator[Any]:
    """A browser with a profile of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            folder, executable_path=CHROMIUM, args=ARGUMENTS, viewport={"width": 1280, "height": 900}
        )
        context.set_default_timeout(PATIENCE)
        try:
            yield context
        finally:
            context.close()


class Tab:
    """One open page, what it asked for and what it complained about."""

    def __init__(self, context: Any, url: str) -> None:
        self.page = context.new_page()
        self.foreign: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self._asked(request.url, url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.goto(url)

    def _asked(self, address: str, url: str) -> None:
        if not address.startswith((url, "data:", "blob:")):
            self.foreign.append(address)

    def ready(self) -> Tab:
        """Wait until the page can be used."""
        self.page.wait_for_selector(".ll-row")
        self.page.wait_for_selector("#ll-counts b")
        return self

    @property
    def picture(self) -> str | None:
        """The address of the picture that is shown."""
        found = self.page.query_selector("#ll-picture img")
        return found.get_attribute("src") if found else None

    def new_picture(self, before: str | None) -> float:
        """Wait for another picture; seconds until it was there."""
        began = time.perf_counter()
        self.page.wait_for_function(
            "(old) => ![null, undefined, old].includes(document.querySelector('#ll-picture img')?.getAttribute('src'))",
            arg=before,
        )
        return time.perf_counter() - began

    def status(self, text: str) -> str:
        """Wait until the line below the picture holds a text; the line."""
        self.page.wait_for_function("(text) => document.querySelector('#ll-status').innerText.includes(text)", arg=text)
        return str(self.page.inner_text("#ll-status"))

    def value(self, name: str) -> str:
        """What a field holds."""
        return str(self.page.input_value(f"#{name} :is(textarea, input)"))

    def write(self, name: str, text: str) -> None:
        """Put a text into a field."""
        self.page.fill(f"#{name} :is(textarea, input)", text)

    def open(self, name: str) -> None:
        """Choose a tab, from the menu where the page is narrow."""
        button = self.page.get_by_role("tab", name=name, exact=True)
        if button.count() and button.first.is_visible():
            button.first.click()
            return
        self.page.locator(".overflow-menu button").first.click()
        self.page.locator(".overflow-dropdown button", has_text=name).click()

    def drop(self, selector: str, name: str, data: bytes, kind: str = "image/png") -> None:
        """Drag a file from elsewhere onto the page."""
        self.page.evaluate(DROP, [selector, name, kind, base64.b64encode(data).decode()])

    def message(self) -> str:
        """The text of the message that comes up; it is closed again."""
        toast = self.page.wait_for_selector(".toast-body")
        text = str(toast.inner_text())
        self.page.click(".toast-close")
        self.page.wait_for_selector(".toast-body", state="detached")
        return text

    def overflows(self) -> bool:
        """Whether the page is wider than the window."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth + 1"))

    def shoot(self, name: str, folder: Path) -> Path:
        """A screenshot for people to look at; $LORALOOM_ARTEFACTS names a folder that lasts."""
        place = Path(os.environ.get("LORALOOM_ARTEFACTS") or folder)
        place.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=place / f"studio-{name}.png", full_page=True)
        return place / f"studio-{name}.png"
