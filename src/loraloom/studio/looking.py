"""Looking at adapters: facts from the file's header, and how much of its rank each layer uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from loraloom.adapters.spectrum import Spectrum, singular_values
from loraloom.formats import read_any
from loraloom.tasks import create_task
from loraloom.training.inspection import SiteReport, draw_inspection, inspect_run, rank_verdict
from loraloom.training.restore import open_run

_A, _B = ".lora_A.weight", ".lora_B.weight"
_PREFIX = "base_model.model."
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
    file = read_any(path)
    sites = _sites(file.tensors, file.config)
    return rank_verdict(sites), sorted(sites, key=lambda site: -site.change)


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


def _sites(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> list[SiteReport]:
    sites = []
    for name, down in tensors.items():
        up = tensors.get(name.removesuffix(_A) + _B)
        if not name.endswith(_A) or up is None or up.shape[1] != down.shape[0]:
            continue
        path = name.removesuffix(_A).removeprefix(_PREFIX)
        spectrum = Spectrum(tuple(singular_values(down, up, _scale(config, path, down.shape[0]))))
        sites.append(
            SiteReport(
                path=path,
                relative_change=0.0,
                change=spectrum.norm,
                rank=down.shape[0],
                effective_rank=spectrum.effective_rank,
                rank_90=spectrum.rank_for(0.90),
                rank_99=spectrum.rank_for(0.99),
                singular_values=spectrum.values,
            )
        )
    return sites


def _scale(config: Mapping[str, Any], path: str, rank: int) -> float:
    """alpha / rank of one layer, as PEFT's configuration has it: an own alpha wins over the general one."""
    own = config.get("alpha_pattern") or {}
    alpha = next((value for name, value in own.items() if path == name or path.endswith(f".{name}")), None)
    alpha = alpha if alpha is not None else config.get("lora_alpha", rank)
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


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
