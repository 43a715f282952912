"""`loraloom convert`: an adapter file in another program's format, with the proof that it is the same."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraloom.cli.adapter_source import adapter_path
from loraloom.cli.options import Debug, Json

if TYPE_CHECKING:
    from loraloom.formats.certificate import Certificate

_TABLE = 5
_SAME = "the same to the bit"


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="An adapter: a file or folder of any known program, or the name of a style that comes with Loraloom.",
            show_default=False,
        ),
    ],
    target: Annotated[str, typer.Argument(metavar="OUT", help="What to write.", show_default=False)],
    *,
    to: Annotated[
        str, typer.Option(metavar="kohya|diffusers|peft|loralib", help="Format to write.", show_default=False)
    ],
    dtype: Annotated[
        str | None, typer.Option(metavar="fp16|bf16|fp32", help="Precision to write. [default: what the source has]")
    ] = None,
    base_kind: Annotated[
        str | None,
        typer.Option(metavar="sd1|sd2|sdxl|sd3|flux", help="Family of the base. [default: what the file speaks of]"),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, metavar="R", help="Cut what is no plain LoRA (LoHa, LoKr, full differences) to this rank."),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(metavar="X", help="The lora_alpha of a loralib file, which does not hold it.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a target that is there already.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing where all is well.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write an adapter file in another program's format, and prove that it is the same.

    The written file is read back, and the update of every layer compared with the source's. Status 1, and no file,
    where a layer differs by more than 1e-6 of its size, or than the rounding of the precision that was asked for.
    """
    from loraloom.cli import output
    from loraloom.formats.convert import Conversion
    from loraloom.formats.convert import convert as run

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        certificate = run(Conversion(adapter_path(source), Path(target), to, dtype, base_kind, rank, alpha, overwrite))
    notes = [str(warning.message) for warning in told if warning.category is UserWarning]
    if json:
        output.emit({**certificate.to_json(), "notes": notes})
    elif not (quiet and certificate.holds):
        _show(certificate, notes)
    if not certificate.holds:
        print(f"loraloom: {_verdict(certificate)}", file=sys.stderr)
        raise typer.Exit(1)


def _show(certificate: Certificate, notes: list[str]) -> None:
    from loraloom.cli import output

    worst = certificate.worst(_TABLE)
    if worst:
        cut = any(site.approximation for site in worst)
        columns = ("layers that differ most", "rank", "‖ΔW‖", "difference", *(["left out by the SVD"] if cut else []))
        rows = [
            [site.path, str(site.rank), f"{site.norm:.4g}", f"{site.difference:.1e}"]
            + ([_percent(site.approximation)] if cut else [])
            for site in worst
        ]
        output.show_table(columns, rows)
    output.say(*(f"note: {note}" for note in notes[:_TABLE]))
    if len(notes) > _TABLE:
        output.say(f"note: and {len(notes) - _TABLE} more like these")
    if certificate.holds:
        output.say(_verdict(certificate))


def _verdict(certificate: Certificate) -> str:
    """What the comparison came to, in a sentence or two."""
    count, largest = len(certificate.sites), certificate.largest
    if not certificate.holds:
        over = sum(site.difference > certificate.limit for site in certificate.sites)
        advice = "; write fp32 or bf16 instead" if certificate.dtype == "fp16" else ""
        return (
            f"{certificate.target} was not written: {over} of {count} layers differ by more than "
            f"{certificate.limit:.1e} of their size (at most {largest:.1e}){advice}"
        )
    same = f"differences of ΔW at most {largest:.1e} (limit {certificate.limit:.1e})" if largest else _SAME
    if certificate.approximation:
        same = f"an SVD left out at most {_percent(certificate.approximation)} of one; of what is kept, {same}"
    family = f" for {certificate.kind}" if certificate.kind else ""
    whole = f", {certificate.whole} tensors carried over whole" if certificate.whole else ""
    layers = f"{count} layer{'s' if count > 1 else ''}"
    return (
        f"{certificate.read} → {certificate.written}{family}: {layers}, {same}{whole}; written to {certificate.target}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
