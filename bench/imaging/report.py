"""Tables of figures: printed, and put between their marks in docs/imaging.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

REPORT = Path(__file__).parents[2] / "docs" / "imaging.md"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def put(name: str, text: str, path: Path = REPORT) -> None:
    """Print `text` and put it between the marks `<!-- name -->` and `<!-- /name -->`, which are added if need be."""
    print(text, flush=True)
    whole = path.read_text(encoding="utf-8") if path.exists() else "# Images\n"
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in whole or end not in whole:
        whole = f"{whole.rstrip()}\n\n{begin}\n{end}\n"
    before, rest = whole.split(begin, 1)
    after = rest.split(end, 1)[1]
    path.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")


def share(count: float, of: int) -> str:
    """ "171 of 200 (85.5 %)"."""
    return f"{count:.0f} of {of} ({100 * count / of:.1f} %)"
