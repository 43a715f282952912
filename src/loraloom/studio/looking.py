"""Looking at adapters: facts from the file's header, and how much of its rank each layer uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from loraloom.adapters.spectrum import Spectrum
from loraloom.formats import read_any
from loraloom.formats.updates import Update, updates_of
from loraloom.tasks import create_task
from loraloom.training.inspection import SiteReport, draw_inspection, inspect_run, rank_verdict
from loraloom.training.restore import open_run

_UNSHOWN = ("metadata", "path", "size")


def facts_of(entry: Any) -> dict[str, str]:
    """What the header of a `ShelfEntry` tells, in words."""
    facts = entry.facts
    values = asdict(facts) if is_dataclass(facts) and not isinstance(facts, type) else dict(facts or {})
    told = {"file": entry.path.name, "size": _size(entry.path)}
    told |= {name.replace("_", " "): _words(value) for name, value in values.items() if name not in _UNSHOWN}
    return {name: value for name, value in told.items() if value}


def metadata_of(entry: Any) -> dict[str, str]:
    """What the program that trained it wrote into the file."""
    found = getattr(entry.facts, "metadata", None) or {}
    return {str(name): _cut(str(value)) for name, value in sorted(found.items())}


def side_by_side(entries: Sequence[Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table: one column per adapter, one row per fact."""
    told = [facts_of(entry) for entry in entries]
    names = list(dict.fromkeys(name for facts in told for name in facts))
    rows = [[name, *(facts.get(name, "–") for facts in told)] for name in names]
    return ["", *(entry.name for entry in entries)], rows


def layers_of(path: Path) -> tuple[str, list[SiteReport]]:
    """A sentence on how much of the rank is used, and every layer, the strongest first; from the file alone."""
    updates, _ = updates_of(read_any(path))
    sites = [_report(update) for update in updates.values()]
    return rank_verdict(sites), sorted(sites, key=lambda site: -site.change)


def _report(update: Update) -> SiteReport:
    return SiteReport.of(update.path, update.rank, Spectrum(tuple(update.product().singular_values().tolist())))


def layer_rows(sites: Sequence[SiteReport]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table of layers."""
    columns = ["layer", "‖ΔW‖", "rank", "effective", "99 % in"]
    return columns, [
        [site.path, f"{site.change:.4g}", str(site.rank), f"{site.effective_rank:.1f}", str(site.rank_99)]
        for site in sites
    ]


def inspect_folder(folder: Path, picture: Path) -> str:
    """The verdict on a finished run against its base; its spectra are drawn to `picture`."""
    found = inspect_run(open_run(folder, create_task))
    draw_inspection(picture, found)
    return found.verdict


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    kib = sum(file.stat().st_size for file in files) / 1024
    return f"{kib:.0f} KiB" if kib < 1024 else f"{kib / 1024:.1f} MiB"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(number)}" for name, number in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(_words(entry) for entry in list(value)[:12]) + (" …" if len(value) > 12 else "")
    return "" if value is None else f"{value:g}" if isinstance(value, float) else _cut(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= 300 else text[:300] + " …"
