"""`loraloom merge`: a base model with adapters folded into its weights, as a checkpoint of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraloom.cli.options import Debug, Json

if TYPE_CHECKING:
    from loraloom.compose.merge import MergeReport
    from loraloom.compose.merge.shards import Written

_TABLE = 8
_NOTES = 6


def merge(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE",
            help="The base model: a folder that transformers or diffusers wrote, a .safetensors file, or a name.",
            show_default=False,
        ),
    ],
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER[:WEIGHT]…",
            help="Adapters of any known program, or names of styles, each with its weight (1 where none is given) and "
            "factors per block: ink:0.7:blocks=down*0,up.2*1.5.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder to write the checkpoint to.", show_default=False)],
    dtype: Annotated[
        str | None, typer.Option(metavar="fp16|bf16|fp32", help="Precision to write. [default: each tensor's own]")
    ] = None,
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="Make a dense copy of a base quantised by bitsandbytes.")
    ] = False,
    check: Annotated[
        str | None,
        typer.Option(
            metavar="layers|outputs",
            help="How the result is checked: layer by layer, or also as whole models, which both fit into memory then. "
            "[default: outputs up to 500 MB]",
        ),
    ] = None,
    head: Annotated[
        str | None, typer.Option(metavar="NAME", help="The adapter whose head is taken, where several have one.")
    ] = None,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Merge into another base than the one an adapter was trained over.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is there already.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be changed, and write nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing where all is well.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Fold adapters into a base model, as a checkpoint of its own.

    Tensors keep their precision, and what the rounding eats of the update is told. What was written is read back and
    held against base and adapters before it gets its name: status 1, and no folder, where it does not act as both.
    To take an adapter out again, merge it with the opposite weight.
    """
    from loraloom.cli import output
    from loraloom.compose.merge import MergeJob
    from loraloom.compose.merge import merge as run
    from loraloom.compose.weights import parse_weighted

    weighted = tuple(parse_weighted(text, _adapter) for text in adapters)
    report = run(MergeJob(base, weighted, Path(out), dtype, dequantize, check, head, any_base, overwrite, dry_run))
    if json:
        output.emit(report.to_json())
    elif not (quiet and report.holds):
        _show(report)
    if not report.holds:
        print(f"loraloom: {_verdict(report)}", file=sys.stderr)
        raise typer.Exit(1)


def _adapter(given: str) -> Path:
    """Where an adapter lies; a bare word that is no path here is the name of a style."""
    from loraloom.imaging.shelf import AdapterShelf

    is_word = given.replace("-", "_").isidentifier() and not Path(given).exists()
    return AdapterShelf().find(given) if is_word else Path(given)


def _show(report: MergeReport) -> None:
    from loraloom.cli import output

    updates = [one for one in report.written if one.kind == "update"]
    if updates and not report.job.dry_run:
        rows = [_row(one) for one in updates[:_TABLE]]
        columns = ("tensors that rounding costs most", "rank", "‖ΔW‖/‖W‖", "of the update", "of the weight", "probe")
        output.show_table(columns, rows)
    elif updates:
        rows = [
            [one.name, str(one.rank) if one.rank else "", " × ".join(map(str, one.shape)), _dtype(one)]
            for one in updates[:_TABLE]
        ]
        output.show_table(("tensors that would change", "rank", "shape", "dtype"), rows)
    if len(updates) > _TABLE:
        output.say(f"and {len(updates) - _TABLE} more")
    if whole := [one.name for one in report.written if one.kind == "whole"]:
        output.say(f"taken over whole: {', '.join(whole[:_NOTES])}{', …' if len(whole) > _NOTES else ''}")
    output.say(*(f"note: {note}" for note in report.notes[:_NOTES]))
    if len(report.notes) > _NOTES:
        output.say(f"note: and {len(report.notes) - _NOTES} more like these")
    if report.holds:
        output.say(*_totals(report), _verdict(report))


def _row(one: Written) -> list[str]:
    rounding = one.rounding
    change = (rounding.update / rounding.weight) ** 0.5 if rounding.weight else 0.0
    held = "" if one.probe is None else ("within" if one.probe.holds else f"{one.probe.difference:.1e} off")
    return [
        one.name,
        str(one.rank) if one.rank else "",
        f"{change:.1e}",
        _share(rounding.of_update),
        f"{rounding.of_weight:.1e}",
        held,
    ]


def _share(share: float) -> str:
    if share < 1e-4:
        return f"{share:.1e}"
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.2g} %"


def _dtype(one: Written) -> str:
    return str(one.dtype).removeprefix("torch.")


def _totals(report: MergeReport) -> list[str]:
    from loraloom.cli import output

    lines = [f"{len(report.written)} of {report.tensors} tensors, {output.file_size(report.size)} of weights"]
    if report.job.dry_run:
        return lines
    lines[0] += f"; rounding took {_share(report.rounding.of_update)} of the whole update"
    if report.conversion is not None:
        lines[0] += f", and {report.conversion.of_weight:.1e} of the tensors that no adapter changes"
    if report.outputs is not None:
        found = report.outputs
        lines.append(
            f"run whole ({', '.join(found.models)}): outputs differ from those of base + adapters by "
            f"{found.difference:.1e} of their size (limit {found.limit:.0e}); the adapters move them by "
            f"{_share(found.effect)}"
        )
    return lines


def _verdict(report: MergeReport) -> str:
    """What the merge came to, in one sentence."""
    out = report.job.out
    if report.job.dry_run:
        return f"everything fits; nothing was written to {out}"
    if report.holds:
        how = "" if report.outputs is None else ", and so does the whole model"
        return f"every changed layer acts as base + adapters{how}; written to {out}"
    if report.failed:
        worst = report.failed[0]
        told = "" if worst.probe is None else f" ({worst.probe.difference:.1e}, {worst.probe.limit:.1e} is allowed)"
        return (
            f"{out} was not written: {len(report.failed)} of {len(report.written)} changed tensors do not act as base "
            f"+ adapters, e.g. {worst.name!r}{told}"
        )
    if not report.moved:
        return f"{out} was not written: rounding to the tensors' dtype leaves nothing of the update; say --dtype fp32"
    assert report.outputs is not None
    return (
        f"{out} was not written: run whole, it differs from base + adapters by {report.outputs.difference:.1e} of the "
        f"outputs' size, and {report.outputs.limit:.0e} is allowed"
    )
