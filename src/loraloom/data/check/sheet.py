"""A data set on one page: how long, how large, how balanced; and samples to look at. Written as PNG."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import fontManager

from loraloom.data.check.check import Checked
from loraloom.data.check.findings import shortened
from loraloom.data.check.part import Part
from loraloom.data.check.sheet_captions import captions_height, draw_captions
from loraloom.data.check.sheet_pictures import draw_pictures, pictures_height
from loraloom.data.check.sheet_recordings import draw_recordings, recordings_height
from loraloom.data.check.sheet_style import BLUE, GREY, INCHES, ORANGE, TEXT
from loraloom.data.check.sheet_texts import draw_texts, texts_height
from loraloom.errors import OutputError

_HEAD, _PANEL = 3.0, 2.95  # inches
_PANELS = 4
_BARS = 16
_WANTED = (
    "tokens",
    "words",
    "seconds",
    "boxes a picture",
    "box side",
    "width / height",
    "width",
    "height",
    "level (dB)",
    "characters",
)
_UNITS = {"seconds": "seconds", "width": "width (pixels)", "height": "height (pixels)", "box side": "box side (pixels)"}
_OTHER_SCRIPTS = ("Noto Sans CJK", "Noto Sans Arabic", "WenQuanYi", "Arial Unicode", "PingFang", "Microsoft YaHei")

_BODIES = {
    "texts": (texts_height, draw_texts),
    "pictures": (pictures_height, draw_pictures),
    "captions": (captions_height, draw_captions),
    "recordings": (recordings_height, draw_recordings),
}


def draw_sheet(path: Path, checked: Checked) -> None:
    """Write the sample sheet of a data set. Raises OutputError where the file cannot be written."""
    height_of, draw = _BODIES[checked.modality.sheet]
    head, body = _head_height(checked.parts[0]), height_of(checked.parts[0])
    figure = Figure(figsize=(INCHES, head + body))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that no installed font has: an empty square is drawn
        grid = figure.add_gridspec(2, 1, height_ratios=[head, body], left=0, right=1, top=1, bottom=0, hspace=0)
        _draw_head(figure.add_subfigure(grid[0, 0]), checked)
        draw(figure.add_subfigure(grid[1, 0]), checked.parts[0])
        _write(path, figure)


def _name_of(part: Part) -> str:
    """The data set's name: of a split, that of the folder which holds the splits."""
    path = Path(part.source)
    return path.parent.name if path.stem == part.name and path.parent.name else path.name


def _head_height(part: Part) -> float:
    """Inches of the head; less where there is nothing to draw in it."""
    return _HEAD if part.tallies or any(len(set(figures)) > 1 for figures in part.series.values()) else 0.6


def _write(path: Path, figure: Figure) -> None:
    for text in figure.findobj(match=lambda artist: hasattr(artist, "set_fontfamily")):
        text.set_fontfamily(["DejaVu Sans", *_fonts()])  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, dpi=100, format="png")
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_bytes(buffer.getvalue())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def _fonts() -> list[str]:
    """Installed fonts that hold the scripts which the usual one lacks."""
    return sorted({font.name for font in fontManager.ttflist if font.name.startswith(_OTHER_SCRIPTS)})


def _draw_head(figure: SubFigure, checked: Checked) -> None:
    parts = checked.parts
    told = ", ".join(f"{part.name} {len(part.examples):,}" for part in parts)
    problems = len(checked.report.problems)
    title = f"{checked.report.task} · {shortened(_name_of(parts[0]), 50)} · {told}"
    line = 1 - 0.17 / _head_height(parts[0])
    figure.text(0.015, line, title, fontsize=12, weight="bold", va="center", parse_math=False)
    mark = "no problems found" if not problems else f"problems of {problems} kind{'s' if problems > 1 else ''}"
    figure.text(0.985, line, mark, fontsize=10, ha="right", va="center", color=ORANGE if problems else GREY)
    roles = list(parts[0].tallies)[:2]
    units = [unit for unit in _ordered(parts[0]) if len(set(parts[0].series[unit])) > 1][: _PANELS - len(roles)]
    same = [f"{unit} {figures[0]:,.6g}" for unit, figures in parts[0].series.items() if len(set(figures)) == 1]
    if same:
        told = f"all of them: {', '.join(same)}"
        below = line - 0.18 / _head_height(parts[0])
        figure.text(0.985, below, told, fontsize=8, color=GREY, ha="right", va="center")
    left = 0.5
    for unit in units:
        _draw_lengths(_panel(figure, left), parts, unit)
        left += _PANEL + 0.45
    for role in roles:
        names = [name for name, _ in _bars(parts[0], role)]
        left += 0.075 * max(map(len, names))
        _draw_balance(_panel(figure, left), parts[0], role)
        left += _PANEL + 0.35


def _panel(figure: SubFigure, left: float) -> Axes:
    """A panel of the head, so many inches from the left."""
    width = min(_PANEL, max(1.2, INCHES - 0.2 - left))
    return figure.add_axes((left / INCHES, 0.14, width / INCHES, 0.66))


def _ordered(part: Part) -> list[str]:
    """The most telling figures first; of pairs, both sides."""
    return sorted(part.series, key=lambda unit: next((n for n, one in enumerate(_WANTED) if unit.endswith(one)), 99))


def _draw_lengths(axes: Axes, parts: Sequence[Part], unit: str) -> None:
    """Shares of the examples by length, of every part in the same bins."""
    figures = [part.series[unit] for part in parts if part.series.get(unit)]
    least, most = min(map(min, figures)), max(map(max, figures))
    cut = sorted(figures[0])[int(0.995 * (len(figures[0]) - 1))]  # one giant must not flatten all the others
    high = max(cut, least + 1e-9) if most > 1.5 * cut > 0 else most
    whole = all(value == int(value) for value in figures[0][:100])
    most_bins = min(40, max(8, int(3 * len(figures[0]) ** 0.5)))
    bins = min(most_bins, int(high - least) + 1) if whole else most_bins
    edge = (least - 0.5, least - 0.5 + bins * -(-(high - least + 1) // bins)) if whole else (least, high)
    for part, values, colour in zip(parts, figures, (BLUE, ORANGE, GREY), strict=False):
        counts, edges = np.histogram(values, bins, edge)
        filled = colour == BLUE
        axes.stairs(
            counts / len(values), edges, fill=filled, color=colour, alpha=0.45 if filled else 1.0, label=part.name
        )
    axes.set_title(_UNITS.get(unit, unit), fontsize=9, loc="left", color=TEXT)
    axes.set_yticks([])
    axes.set_xlim(*edge)
    beyond = f"longest {most:,.6g} →" if most > edge[1] else ""
    axes.set_xlabel(beyond, fontsize=7.5, loc="right", color=GREY, labelpad=1)
    axes.tick_params(labelsize=7.5)
    axes.spines[["right", "top", "left"]].set_visible(False)
    if len(parts) > 1:
        axes.legend(frameon=False, fontsize=7.5, loc="upper right", handlelength=1.2)


def _bars(part: Part, role: str) -> list[tuple[str, int | None]]:
    """Names and counts to show: of many, the most and the least frequent, and between them how many more."""
    counts: list[tuple[str, int | None]] = [
        (shortened(name, 24), count)
        for name, count in sorted(part.tallies[role].items(), key=lambda entry: (-entry[1], entry[0]))
    ]
    if len(counts) <= _BARS:
        return counts
    half = _BARS // 2
    return [*counts[:half], (f"… {len(counts) - 2 * half} more …", None), *counts[-half:]]


def _draw_balance(axes: Axes, part: Part, role: str) -> None:
    """The count of each label; of many, the most and the least frequent."""
    counts, shown = part.tallies[role], _bars(part, role)
    places = range(len(shown))
    axes.barh(places, [count or 0 for _, count in shown], color=BLUE, alpha=0.6, height=0.75)
    axes.set_yticks(list(places), [name for name, _ in shown], fontsize=7 if len(shown) > 8 else 8)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    for place, (_, count) in zip(places, shown, strict=True):
        if count is not None:
            axes.text(count, place, f" {count:,}", fontsize=7, va="center", color=GREY)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.margins(x=0.16)
    share = max(counts.values()) / counts.total()
    title = f"{role}: {len(counts)}, the most frequent {100 * share:.1f} %"
    axes.set_title(title, fontsize=9, loc="left", color=TEXT)
    axes.spines[["right", "top", "bottom"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
