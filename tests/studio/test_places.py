"""No name from the page leaves the chosen folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraloom.errors import ConfigError
from loraloom.studio.places import check_reach, inside, plain_name

OUT = (
    "../x",
    "/etc/passwd",
    "a/b",
    "..",
    ".",
    "",
    " ",
    "a\\b",
    "~/x",
    ".hidden",
    "x\0y",
    "x" * 200,
    "nul",
    "C:x",
    "a\nb",
)


@pytest.mark.parametrize("name", OUT)
def test_what_is_no_plain_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="plain name"):
        inside(tmp_path, name, "run")


@pytest.mark.parametrize("name", ["style", "my run 2", "größe.v2", "a-b_c+d.png", "风格"])
def test_plain_names_stay_as_they_are(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name, "run") == tmp_path / name
    assert plain_name(f" {name} ", "run") == name


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="leads out of the folder 'folder'"):
        inside(tmp_path / "folder", "link", "run")


@pytest.fixture
def house(tmp_path: Path) -> Path:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "train.csv").write_text("text,label\n")
    (tmp_path / "secret.csv").write_text("text,label\n")
    (tmp_path / "data" / "link.csv").symlink_to(tmp_path / "secret.csv")
    return tmp_path


@pytest.mark.parametrize(
    "text", ["data/train.csv", "sentiment", "owner/name", "owner/name:split", "a sentence, with / a slash", "data/deep"]
)
def test_settings_may_name_what_lies_inside_or_is_no_file(house: Path, text: str) -> None:
    check_reach({"data": {"train": text}}, [house / "data"], start=house)


@pytest.mark.parametrize(
    "text",
    [
        "secret.csv",
        "../secret.csv",
        "/etc/passwd",
        "data/../secret.csv",
        "~/x",
        "data/link.csv",
        "\\\\host\\x",
        "C:\\x",
    ],
)
def test_settings_may_not_name_what_lies_outside(house: Path, text: str) -> None:
    for settings in ({"data": {"train": text}}, {"options": {"pictures": [{"a": text}]}}):
        with pytest.raises(ConfigError, match=r"(data.train|options.pictures.a): .* lies outside"):
            check_reach(settings, [house / "data"], start=house)


def test_texts_that_no_file_can_have_are_refused(house: Path) -> None:
    for text in ("a\0b", "x" * 5000):
        with pytest.raises(ConfigError, match="too odd"):
            check_reach({"base": text}, [house], start=house)
