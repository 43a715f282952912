"""`loraloom resize`: an adapter at the smallest rank that keeps what is asked for."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraloom.cli.adapter_source import adapter_path
from loraloom.cli.options import Debug, Json
from loraloom.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from loraloom.compose.resize import ResizeReport
    from loraloom.compose.resize.ranks import SiteRanks

_TOLD = 5


def resize(
    adapter: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER",
            help="A file or folder of any known program, or the name of a style that comes with Loraloom.",
            show_default=False,
        ),
    ],
    *,
    rank: Annotated[int | None, typer.Option(metavar="R", help="One rank for all layers; a smaller one stays.")] = None,
    energy: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Per layer the smallest rank that keeps this share of ‖ΔW‖², e.g. 0.99."),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="OUT", help="What to write; without it nothing is written.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(metavar="kohya|diffusers|peft|loralib", help="Format to write. [default: the adapter's own]"),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="fp16|bf16|fp32", help="Precision to write. [default: what the adapter has]")
    ] = None,
    base_kind: Annotated[
        str | None,
        typer.Option(metavar="sd1|sd2|sdxl|sd3|flux", help="Family of the base. [default: what the file speaks of]"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a target that is there already.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all, show what would be, and write nothing.")
    ] = False,
    png: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw what each rank would keep to this .png file.")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Show every layer instead of every block.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing where all is well.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Give an adapter the smallest rank that keeps what you ask for.

    Without --rank and --energy it shows which ranks 90, 95, 99 and 99.9 % of the update would take. The energy is the
    share of the squared Frobenius norm ‖ΔW‖² of each layer. What is written is read back and compared first.
    """
    check_png(png)
    from loraloom.cli import output
    from loraloom.compose.resize import ResizeJob
    from loraloom.compose.resize import resize as run
    from loraloom.compose.resize.drawing import draw_ranks

    target = None if out is None else Path(out)
    job = ResizeJob(adapter_path(adapter), rank, energy, target, to, dtype, base_kind, overwrite, dry_run)
    report = run(job)
    if png is not None:
        draw_ranks(Path(png), report)
    if json:
        output.emit({**report.to_json(), "png": png})
    elif not quiet:
        _show(report, layers=layers)
        output.say(*_verdict(report, job.dry_run), *([f"drawn in {png}"] if png else []))


def check_png(png: str | None) -> None:
    """Raises ConfigError or OutputError for a picture that could not be written, before any work is done."""
    if png is not None and not png.endswith(".png"):
        raise ConfigError(f"--png '{png}': the name must end in .png")
    if png is not None and not Path(png).absolute().parent.is_dir():
        raise OutputError(f"--png '{png}': there is no such folder")


def _show(report: ResizeReport, *, layers: bool) -> None:
    from loraloom.cli import output

    if not report.choice.given:
        columns = ("keeps of ‖ΔW‖²", "lowest rank", "median", "highest", "numbers", "of all", "error of ΔW")
        output.show_table(columns, _previews(report))
    head = "layer" if layers else "block"
    columns = (head, *(() if layers else ("layers",)), "rank", *_ahead(report))
    groups = [[site] for site in report.sites] if layers else _by_block(report.sites)
    output.show_table(columns, [_row(group, report, layers=layers) for group in groups])


def _ahead(report: ResizeReport) -> tuple[str, ...]:
    if report.choice.given:
        return "new rank", "keeps", "error of ΔW"
    return tuple(f"{100 * preview.energy:g} % in" for preview in report.previews)


def _previews(report: ResizeReport) -> list[list[str]]:
    from loraloom.cli import output

    now = report.numbers[0]
    return [
        [
            f"{100 * preview.energy:g} %",
            str(min(preview.ranks)),
            f"{statistics.median(preview.ranks):g}",
            str(max(preview.ranks)),
            f"{preview.numbers:,}",
            output.percent(preview.numbers / now, 0),
            output.percent(preview.error),
        ]
        for preview in report.previews
    ]


def _by_block(sites: tuple[SiteRanks, ...]) -> list[list[SiteRanks]]:
    blocks: dict[str, list[SiteRanks]] = {}
    for site in sites:
        blocks.setdefault(site.block, []).append(site)
    return list(blocks.values())


def _row(group: list[SiteRanks], report: ResizeReport, *, layers: bool) -> list[str]:
    from loraloom.cli import output
    from loraloom.compose.resize.ranks import overall_error, overall_share

    name = [group[0].path] if layers else [group[0].block, str(len(group))]
    before = _span([site.before for site in group])
    if report.choice.given:
        error, kept = overall_error(group), overall_share(group)
        after = _span([site.after for site in group])
        return [*name, before, after, output.percent(kept, 2), output.percent(error, 2) if error else "0"]
    places = {site.path: index for index, site in enumerate(report.sites)}
    ranks = [[preview.ranks[places[site.path]] for site in group] for preview in report.previews]
    return [*name, before, *map(_span, ranks)]


def _span(ranks: list[int]) -> str:
    """Ranks as "4" or "2–16"."""
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low}–{high}"


def _verdict(report: ResizeReport, dry_run: bool) -> list[str]:
    """What it comes to, in a sentence or two."""
    lines = _notes(report)
    if not report.choice.given:
        return [*lines, f"nothing written: choose --rank or --energy, and --out{_advice(report)}"]
    if not report.changed:
        told = f"no layer has a rank above {report.choice.rank}" if report.choice.rank else "every rank is needed"
        lines.append(f"{told}: the adapter stays as it is")
    else:
        lines.append(_sizes(report))
    if report.target is not None:
        lines.append(f"written to {report.target} ({report.written}), read back and compared")
    else:
        lines.append("nothing written: this was a dry run" if dry_run else "nothing written: add --out")
    return lines


def _sizes(report: ResizeReport) -> str:
    from loraloom.cli import output

    before, after = report.numbers
    if report.size_after is not None:
        told = f"{output.file_size(report.size_before)} → {output.file_size(report.size_after)}"
    else:
        told = f"{before:,} → {after:,} numbers"
    smaller = f"{before / after:.1f} × fewer numbers"
    kept, error = output.percent(report.kept, 2), output.percent(report.error, 2)
    return f"{told}, {smaller}; {kept} of ‖ΔW‖² kept, error of ΔW {error}"


def _advice(report: ResizeReport) -> str:
    """Which of the shares is a bargain: the largest that still halves the adapter."""
    now = report.numbers[0]
    small = [preview for preview in report.previews if preview.numbers <= now / 2]
    if not small:
        return "; 90 % of the update needs more than half of the numbers: the rank is used"
    best = small[-1]
    return f"; {100 * best.energy:g} % of the update fits into {100 * best.numbers / now:.0f} % of the numbers"


def _notes(report: ResizeReport) -> list[str]:
    notes = []
    if zero := sum(site.norm == 0 for site in report.sites):
        notes.append(f"note: {zero} of {len(report.sites)} layers change nothing (ΔW = 0): rank 1 is left of each")
    reasons: dict[str, list[str]] = {}
    for site in report.sites:
        if site.why_whole and (site.groups > 1 or report.changed):
            reasons.setdefault(site.why_whole, []).append(site.path)
    for why, paths in reasons.items():
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        notes.append(f"note: left as it is, {why}: {paths[0]}{more}")
    if len(notes) > _TOLD:
        notes = [*notes[:_TOLD], f"note: and {len(notes) - _TOLD} more kinds of layers left as they are"]
    if report.whole:
        notes.append(f"{report.whole} tensors (heads, biases) carried over whole")
    return notes
