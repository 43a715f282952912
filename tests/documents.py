"""Reading Markdown as the tests of the documents need it: blocks of code, commands, links, paths, trees."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "src").rglob("*.md")),
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def blocks(path: Path, language: str) -> list[str]:
    """The contents of all blocks of a language, "" for those that name none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [content for named, content in found if named == language]


def commands(path: Path) -> list[str]:
    """Every command of the ```bash blocks, without comments."""
    lines = "\n".join(blocks(path, "bash")).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def prose(path: Path) -> str:
    """The text without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def links(path: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(path))


def headings(path: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The names under which a browser finds the headings."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(path)}


def quoted(path: Path) -> list[str]:
    """What stands in `backquotes` outside of blocks."""
    return re.findall(r"`([^`\n]+)`", prose(path))


def marked(path: Path, mark: str) -> str:
    """What stands between <!-- mark --> and <!-- /mark -->."""
    found = re.search(rf"<!-- {mark} -->(.*?)<!-- /{mark} -->", path.read_text("utf-8"), re.DOTALL)
    assert found is not None, f"{name_of(path)} has no block {mark}"
    return found[1]


def tree(path: Path) -> Iterator[tuple[str, str]]:
    """(path, caption) of every line of the last block without a language: two blanks per level."""
    above: list[str] = []
    for line in blocks(path, "")[-1].splitlines():
        indent = len(line) - len(line.lstrip())
        entry, _, caption = line.strip().partition(" ")
        above = [*above[: indent // 2], entry]
        yield "".join(above), caption.strip()
