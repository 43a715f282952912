"""`loraloom mix`: one adapter made of several, each by its weight, with the error printed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraloom.cli.adapter_source import adapter_path
from loraloom.cli.options import Debug, Json

if TYPE_CHECKING:
    from loraloom.compose.mix import MixPlan, MixReport
    from loraloom.compose.sources import Source

_TABLE = 8
_NOTHING = 1e-6
"""An error that is the rounding of float32, of which no layer is worth a line."""
_NOTES = 5


def mix(
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER[:WEIGHT][:blocks=NAME*FACTOR,…]…",
            help="Files and folders of any known program, or names of the styles that come with Loraloom, each with "
            "its weight, 1 where none is said. Factors may be given for blocks (down, up.2, mid, te …) or for "
            "patterns of layers.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[str, typer.Option(metavar="PATH", help="Folder or file to write.", show_default=False)],
    how: Annotated[
        str,
        typer.Option(
            metavar="exact|svd|ties|dare|magnitude-prune",
            help="exact: the weighted sum itself, its rank the sum of the ranks. svd: the nearest to that of --rank. "
            "The others keep a share of the entries of each adapter.",
        ),
    ] = "exact",
    rank: Annotated[
        int | None, typer.Option(metavar="R", help="Rank of the result. [default: the largest; of exact the sum]")
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(metavar="D", help="Share of entries kept. [default: ties 0.2, dare and magnitude-prune 0.5]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="What dare drops. [default: 0]")] = None,
    head: Annotated[
        str | None, typer.Option(metavar="ADAPTER", help="Whose head is kept, where several have different ones.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The base model, where biases that are kept whole need its own.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(metavar="peft|kohya|diffusers|loralib", help="Format. [default: peft, or the files' own]"),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="fp16|bf16|fp32", help="Precision. [default: what all have, else fp32]")
    ] = None,
    base_kind: Annotated[
        str | None,
        typer.Option(metavar="sd1|sd2|sdxl|sd3|flux", help="Family of the base. [default: what the files speak of]"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a target that is there already.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and write nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only where it is.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make one adapter of several, each by its weight, with the error printed.

    The exact sum of the updates is the truth against which every other way reports its error, layer by layer.
    """
    from loraloom.cli import output
    from loraloom.compose.mix import MixJob, make_mix, plan_mix
    from loraloom.compose.weights import parse_weighted

    weighted = [parse_weighted(text, adapter_path) for text in adapters]
    job = MixJob(weighted, Path(out), how, rank, density, seed, to, dtype, base_kind, head, base, overwrite)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        plan = plan_mix(job)
        report = None if dry_run else make_mix(plan)
    notes = [str(one.message) for one in told if one.category is UserWarning] + list(plan.notes)
    if json:
        output.emit({**(report or plan).to_json(), "notes": notes, "written": report is not None})
        return
    if report is None:
        _show_plan(plan)
    elif not quiet:
        _show(report)
    if not quiet:
        _say_notes([*(report.warnings if report else ()), *notes])
    output.say(_where(plan, report))


def _show_plan(plan: MixPlan) -> None:
    from loraloom.cli import output
    from loraloom.compose.mix.plan import dtype_name
    from loraloom.compose.mix.report import method_words, weight_words

    rows = [
        [*_told(one.source, weight_words(one)), one.source.facts.format, dtype_name(one.source.dtype)]
        for one in (*plan.ingredients, *plan.idle)
    ]
    output.show_table(("adapter", "weight", "layers", "rank", "format", "dtype"), rows)
    output.say(f"{method_words(plan.method)}: {len(plan.sites)} layers in {dtype_name(plan.dtype)}")
    output.say(*(f"head {module!r} of {source.name!r}" for module, source in plan.heads.items()))
    if plan.biases:
        output.say(f"{len(plan.biases)} biases")


def _told(source: Source, weight: str) -> list[str]:
    return [source.name, weight, str(len(source.updates)), str(source.rank)]


def _show(report: MixReport) -> None:
    """The adapters, then the layers that are furthest from the exact sum."""
    from loraloom.cli import output
    from loraloom.compose.mix.report import percent, weight_words
    from loraloom.compose.mix.sparsify import MIXTURES

    rows = [
        [*_told(one.ingredient.source, weight_words(one.ingredient)), f"{one.norm:.4g}", percent(report.share(one))]
        for one in report.sources
    ]
    output.show_table(("adapter", "weight", "layers", "rank", "‖w ΔW‖", "share"), rows)
    worst = report.worst(_TABLE) if report.error > _NOTHING else []
    cut = report.plan.method.how in MIXTURES
    columns = ["layers furthest from the exact sum", "rank", "‖exact‖", "‖result‖", "error"]
    names = [one.ingredient.name for one in report.sources]
    table = [
        [site.path, str(site.rank), f"{site.exact:.4g}", f"{site.size:.4g}", percent(site.error)]
        + ([percent(site.left_out)] if cut else [])
        + [percent(share) for share in site.shares]
        for site in worst
    ]
    if table:
        output.show_table([*columns, *(["cut"] if cut else []), *names], table)


def _say_notes(notes: list[str]) -> None:
    from loraloom.cli import output

    output.say(*(f"note: {note}" for note in notes[:_NOTES]))
    if len(notes) > _NOTES:
        output.say(f"note: and {len(notes) - _NOTES} more like these")


def _where(plan: MixPlan, report: MixReport | None) -> str:
    if report is None:
        return f"nothing was written; without --dry-run it goes to {plan.target.path} ({plan.target.to})"
    return f"{report.verdict}; written to {plan.target.path}"
