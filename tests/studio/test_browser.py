"""The page in a real browser."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.studio import browser
from tests.studio.browser import Tab
from tests.studio.fakes import FakePainter

from loraloom.imaging.recipe import read_picture
from loraloom.studio.desk import Desk
from loraloom.studio.places import Places

pytestmark = pytest.mark.timeout(240)

ODD = "<img src=x onerror=document.title='taken'>"
"""A name of a file, which must stay one."""


@dataclass
class Studio:
    """What the tests of this file share: one server, one browser, and the page that is open in it."""

    url: str
    desk: Desk
    painter: FakePainter
    context: Any
    tab: Tab
    shots: Path


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    browser.needed()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from loraloom.studio import page
    from loraloom.studio.address import Address

    root = tmp_path_factory.mktemp("studio")
    os.environ["GRADIO_TEMP_DIR"] = str(root / "uploads")
    (root / "adapters").mkdir()
    for name in ("pencil", "neon", ODD):
        (root / "adapters" / f"{name}.safetensors").write_bytes(b"weights")
    painter = FakePainter(root / "adapters")
    desk = Desk(painter, Places((root / "adapters",), root / "pictures", root / "runs", (root,)))
    built = page.build(desk)
    url = page.serve(built, desk, Address(), block=False)
    with browser.browser(root / "profile") as context:
        yield Studio(url, desk, painter, context, Tab(context, url).ready(), root)
    built.close(verbose=False)
    desk.close()


@pytest.fixture
def tab(studio: Studio) -> Tab:
    """The page, on its first tab and without a delay."""
    studio.painter.pause = 0.0
    studio.tab.open("Paint")
    return studio.tab


def test_the_page_opens_alone_and_counts_tokens(studio: Studio, tab: Tab) -> None:
    assert tab.page.title() == "Loraloom studio", "a file name was taken for HTML"
    assert ODD in tab.page.inner_text("#ll-rack")
    assert tab.foreign == [] and tab.complaints == []
    tab.write("ll-prompt", "a red (house")
    tab.page.wait_for_function("document.querySelector('#ll-counts b').innerText === '3'")
    assert "Prompt 3 / 75 tokens, 1 chunk" in tab.page.inner_text("#ll-counts")
    unnamed = tab.page.evaluate(
        """() => [...document.querySelectorAll('input, textarea, button')].filter((e) => e.offsetParent
           && !e.getAttribute('aria-label') && !(e.labels && e.labels.length) && !e.innerText && !e.title)
           .map((e) => e.outerHTML.slice(0, 100))"""
    )
    assert unnamed == []


def test_ctrl_enter_paints_and_a_slider_repaints(studio: Studio, tab: Tab) -> None:
    before = tab.picture
    tab.write("ll-prompt", "a red house in a meadow")
    tab.page.press("#ll-prompt textarea", "Control+Enter")
    tab.new_picture(before)
    assert "seed 1" in tab.status("kept as")
    (kept, *_) = studio.desk.gallery.files()
    assert read_picture(kept).prompt == "a red house in a meadow"
    before = tab.picture
    slider = tab.page.get_by_role("slider", name="pencil: weight")
    slider.focus()
    slider.press("ArrowLeft")
    assert tab.new_picture(before) < 15
    (use,) = studio.painter.recipes[-1].adapters
    assert (use.name, use.te, use.unet) == ("pencil", 0.95, 0.95)
    tab.page.get_by_role("button", name="pencil: separate weight for the text encoder").click()
    before = tab.picture
    tab.page.get_by_role("slider", name="pencil: text").press("ArrowRight")
    tab.new_picture(before)
    (use,) = studio.painter.recipes[-1].adapters
    assert (use.te, use.unet) == (1.0, 0.95)
    tab.page.click("#ll-keep")
    tab.status("kept as")
    tab.shoot("paint", studio.shots)


def test_a_recipe_is_read_back_from_a_dropped_picture(studio: Studio, tab: Tab, tmp_path: Path) -> None:
    recipe = studio.painter.recipe(prompt="a blue boat <lora:neon:0.5>", negative="dark", seed=77, steps=5)
    studio.painter.paint(recipe)[0].save(tmp_path / "boat.png")
    tab.drop("#ll-drop button", "boat.png", (tmp_path / "boat.png").read_bytes())
    tab.status("settings taken over, seed 77")
    assert tab.value("ll-prompt") == "a blue boat <lora:neon:0.5>" and tab.value("ll-negative") == "dark"
    assert tab.value("ll-seed") == "77" and tab.value("ll-steps") == "5"
    assert tab.page.inner_text(".ll-rack-head").startswith("0 of 3 on")


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("notes.png", b"<script>alert(1)</script>", "is no picture that can be read here"),
        ("notes.txt", b"hello", "is no picture"),
        ("cut.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "picture"),
    ],
)
def test_a_bad_file_is_refused_in_words(tab: Tab, name: str, data: bytes, told: str) -> None:
    clear = tab.page.query_selector("#ll-drop button[aria-label='Clear']")
    if clear is not None:
        clear.click()
    tab.page.wait_for_selector("#ll-drop button:has(.wrap)")
    tab.drop("#ll-drop button", name, data, "text/plain" if name.endswith("txt") else "image/png")
    message = tab.message()
    assert told in message and "Traceback" not in message and "Error:" not in message


def test_a_failure_is_told_without_a_traceback(tab: Tab) -> None:
    tab.write("ll-prompt", "crash")
    tab.page.keyboard.press("Control+Enter")
    assert "painting failed with RuntimeError: <b>boom</b>" in tab.message()
    tab.write("ll-prompt", "a cat <lora:/etc/passwd:1>")
    tab.page.keyboard.press("Control+Enter")
    assert "there is no such adapter in the folders" in tab.message()


def test_escape_stops(studio: Studio, tab: Tab) -> None:
    studio.painter.pause = 0.5
    tab.write("ll-prompt", "a slow one")
    tab.page.keyboard.press("Meta+Enter")
    tab.status("step 2 of")
    tab.page.keyboard.press("Escape")
    tab.status("stopped")
    assert not studio.desk.easel.busy
    tab.page.wait_for_selector("#ll-stop[disabled], #ll-stop [disabled]")


def test_an_adapter_that_is_put_into_the_folder_appears(studio: Studio, tab: Tab) -> None:
    (studio.desk.places.adapters[0] / "watercolour.safetensors").write_bytes(b"weights")
    tab.page.wait_for_selector(".ll-name:text-is('watercolour')")
    tab.page.fill(".ll-rack input[type=search]", "water")
    assert tab.page.locator(".ll-row:visible").count() == 1
    tab.page.fill(".ll-rack input[type=search]", "")


def test_the_gallery_brings_settings_back(studio: Studio, tab: Tab) -> None:
    tab.write("ll-prompt", "something else")
    tab.open("Gallery")
    tab.page.locator("#ll-gallery .thumbnail-item").last.click()
    tab.page.wait_for_selector("#ll-gallery-recipe td:text-is('a red house in a meadow')")
    tab.shoot("gallery", studio.shots)
    tab.page.click("#ll-gallery-use")
    tab.page.wait_for_selector("#ll-prompt textarea", state="visible")
    tab.page.wait_for_function("document.querySelector('#ll-prompt textarea').value === 'a red house in a meadow'")


def test_the_training_form_writes_the_settings_and_says_what_is_missing(studio: Studio, tab: Tab) -> None:
    tab.open("Train")
    tab.write("ll-train-adapter-rank", "12")
    tab.page.click("#ll-train-check")
    assert "data" in tab.message()
    tab.write("ll-train-data-train", "/etc/passwd")
    tab.write("ll-train-out", "../elsewhere")
    tab.page.click("#ll-train-start")
    assert "no plain name" in tab.message()
    tab.page.get_by_text("All settings, as YAML").click()
    tab.page.wait_for_selector("#ll-yaml .cm-content:has-text('rank: 12')")
    tab.page.click("#ll-train-epochs :is(textarea, input)")
    tab.page.keyboard.type("7")
    tab.page.wait_for_selector("#ll-yaml .cm-content:has-text('epochs: 7')")
    tab.shoot("train", studio.shots)


@pytest.mark.parametrize(("name", "width", "scheme"), [("small", 390, "light"), ("dark", 1280, "dark")])
def test_small_screens_and_dark_ones(studio: Studio, name: str, width: int, scheme: str) -> None:
    studio.painter.pause = 0.0
    tab = Tab(studio.context, studio.url)
    tab.page.emulate_media(color_scheme=scheme)
    tab.page.set_viewport_size({"width": width, "height": 844})
    tab.page.reload()
    tab.ready()
    tab.page.keyboard.press("Control+Enter")
    tab.new_picture(None)
    tab.shoot(name, studio.shots)
    red, *_ = tab.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (red < 60) == (scheme == "dark")
    for other in ("Gallery", "Grid", "Adapters", "Train", "Paint"):
        tab.open(other)
        assert not tab.overflows(), f"{other} is wider than {width} pixels"
    assert tab.foreign == []
    tab.page.close()


def test_no_foreign_name_leads_here(studio: Studio) -> None:
    request = urllib.request.Request(studio.url, headers={"Host": "evil.example:7860"})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request)
    assert error.value.code == 400


def test_a_password_is_asked_for(studio: Studio) -> None:
    from loraloom.studio import page
    from loraloom.studio.address import Address

    built = page.build(studio.desk)
    url = page.serve(built, studio.desk, Address(password="right-one"), block=False)
    try:
        tab = Tab(studio.context, url)
        for word in ("wrong-one", "right-one"):
            tab.page.wait_for_selector("input[type=password]")
            assert not tab.page.query_selector("#ll-prompt")
            tab.page.locator("input").first.fill(page.USER)
            tab.page.fill("input[type=password]", word)
            tab.page.get_by_role("button", name="Login").click()
        tab.ready()
        tab.page.close()
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{url}config")
        assert error.value.code == 401
    finally:
        built.close(verbose=False)
