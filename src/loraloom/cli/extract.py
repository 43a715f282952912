"""`loraloom extract`: an adapter from the difference of two full checkpoints, and what of it is lost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraloom.cli.options import Debug, Json

if TYPE_CHECKING:
    from loraloom.compose.extract import ExtractReport

_TABLE = 8
_MOST = 5


def extract(
    tuned: Annotated[
        str,
        typer.Argument(
            metavar="TUNED",
            help="The checkpoint with the change: a model's folder, a pipeline's, one .safetensors file, or what "
            "`loraloom train --method full` wrote.",
            show_default=False,
        ),
    ],
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="The checkpoint without it: a path or a name.", show_default=False)
    ],
    *,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where to write the adapter.", show_default=False)],
    rank: Annotated[
        int | None, typer.Option(min=1, metavar="R", help="Rank of every layer's update.", show_default=False)
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Instead of a rank: the smallest per layer that keeps this share of its squared change, e.g. 0.99.",
            show_default=False,
        ),
    ] = None,
    max_rank: Annotated[
        int | None, typer.Option(min=1, metavar="M", help="Largest rank that --energy may take.", show_default=False)
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERNS",
            help="Layers that get an update, separated by commas; '*' takes embeddings too. "
            "[default: every linear layer and convolution]",
        ),
    ] = None,
    keep_others: Annotated[
        bool, typer.Option("--keep-others", help="Carry norms, biases and new heads whole (PEFT's modules_to_save).")
    ] = False,
    dtype: Annotated[str, typer.Option(metavar="fp32|bf16|fp16", help="Precision of the adapter.")] = "fp32",
    to: Annotated[str, typer.Option(metavar="peft|kohya|diffusers|loralib", help="Format to write.")] = "peft",
    base_kind: Annotated[
        str | None,
        typer.Option(
            metavar="sd1|sd2|sdxl|sd3|flux", help="Family of the base, for kohya's names.", show_default=False
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; read headers alone.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing where all is well.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make an adapter of what a fine-tuned checkpoint has over its base.

    Both are read tensor by tensor, so that memory is needed for the largest of them alone. For every layer the best
    update of low rank is taken, and what that leaves out is told; the file is read back and held against the
    difference before it gets its name.
    """
    from loraloom.cli import output
    from loraloom.compose.extract import ExtractJob
    from loraloom.compose.extract import extract as run
    from loraloom.errors import ConfigError

    if rank is not None and energy is not None:
        raise ConfigError("say --rank or --energy, not both; with --energy the largest rank is --max-rank")
    if max_rank is not None and energy is None:
        raise ConfigError("--max-rank goes with --energy; a rank alone is --rank")
    patterns = None if targets is None else tuple(_split(targets))
    with _progress(quiet or json) as progress:
        job = ExtractJob(
            tuned=tuned,
            base=base,
            out=Path(out),
            rank=rank if energy is None else max_rank,
            energy=energy,
            targets=patterns,
            keep_others=keep_others,
            dtype=dtype,
            to=to,
            kind=base_kind,
            overwrite=overwrite,
            dry_run=dry_run,
            progress=progress,
        )
        report = run(job)
    if json:
        output.emit(report.to_json())
    elif not quiet:
        _show_plan(report) if dry_run else _show(report)


def _split(patterns: str) -> Iterator[str]:
    """Patterns between commas; a regular expression may hold some itself, and is then the only one."""
    if patterns.startswith("re:"):
        yield patterns
        return
    yield from (part.strip() for part in patterns.split(",") if part.strip())


@contextmanager
def _progress(silent: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal's stderr, nothing elsewhere."""
    if silent or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import Progress

    from loraloom.cli.output import console

    with Progress(console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("comparing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


# -- what is printed ----------------------------------------------------------------------------------


def _show(report: ExtractReport) -> None:
    from loraloom.cli import output

    if report.sites:
        _show_sites(report)
    if report.others:
        _show_others(report)
    new = [entry for entry in report.new if entry.kept]
    if new:
        output.say(f"carried whole, as the base does not have them so: {_listed(entry.path for entry in new)}")
    if report.missing:
        output.say(f"in the base alone: {_listed(report.missing)}")
    output.say(*(f"note: {note}" for note in report.notes), _verdict(report))


def _show_sites(report: ExtractReport) -> None:
    from loraloom.cli import output

    rows = [
        [
            site.path,
            "×".join(map(str, site.shape)),
            str(site.rank),
            f"{site.norm:.4g}",
            _share(site.change),
            _share(site.left_out),
        ]
        for site in report.sites[:_TABLE]
    ]
    columns = ("layers that lose most", "weight", "rank", "‖ΔW‖", "of ‖W‖", "left out of ‖ΔW‖")
    output.show_table(columns, rows)
    if len(report.sites) > _TABLE:
        best = report.sites[-1]
        output.say(f"and {len(report.sites) - _TABLE} layers more, down to {_share(best.left_out)} ({best.path})")


def _show_others(report: ExtractReport) -> None:
    from loraloom.cli import output

    rows = [
        [other.path, other.reason, _share(other.change), "carried whole" if other.kept else "lost"]
        for other in report.others[:_TABLE]
    ]
    output.show_table(("changed, and no update of a layer", "what it is", "changed by", "result"), rows)
    rest = report.others[_TABLE:]
    if rest:
        lost = sum(not other.kept for other in rest)
        output.say(f"and {len(rest)} more of these, {lost} of them lost")


def _verdict(report: ExtractReport) -> str:
    """What came of it, in a few sentences."""
    from loraloom.cli.output import file_size

    share = f"{file_size(report.size)}, {_share(report.size / report.checkpoint_size)} of the checkpoint"
    layers = f"{len(report.sites)} layer{'s' if len(report.sites) != 1 else ''}"
    told = f"{_ranks(report)} in {layers}, {_share(report.carried_by_sites)} of their squared change carried"
    if not report.sites:
        told = "no update of a layer, only what is carried whole"
    if report.others:
        told += f" ({_share(report.carried)} of that of all weights)"
    if report.lost:
        told += f"; {len(report.lost)} changed tensor{'s' if len(report.lost) != 1 else ''} lost{_advice(report)}"
    return (
        f"{told}\n{report.unchanged} of {report.compared} tensors are unchanged; written to {report.target} ({share})"
    )


def _advice(report: ExtractReport) -> str:
    reasons = {other.reason for other in report.lost}
    hints = []
    if any("not among the targets" in reason for reason in reasons):
        hints.append("--targets '*' gives further layers an update")
    if reasons & {"a norm", "a bias", "a parameter that is no layer's weight"} and report.format == "peft":
        hints.append("--keep-others carries norms and biases")
    return f" ({'; '.join(hints)})" if hints else ""


def _ranks(report: ExtractReport) -> str:
    ranks = sorted({site.rank for site in report.sites})
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"rank {ranks[0]} to {ranks[-1]}"


def _show_plan(report: ExtractReport) -> None:
    from loraloom.cli import output

    kinds = sorted({site.kind for site in report.sites})
    rows = [
        [kind, str(len(own)), str(sum(_numbers(site.shape) for site in own)), _examples(site.path for site in own)]
        for kind in kinds
        for own in [[site for site in report.sites if site.kind == kind]]
    ]
    output.show_table(("kind", "layers", "weights", "such as"), rows)
    output.say(*(f"note: {note}" for note in report.notes))
    known = any(site.rank for site in report.sites)
    size = f"at most {output.file_size(report.size)}" if known else "of a size that the spectra decide"
    output.say(
        f"dry run: {report.compared} tensors would be compared, {len(report.sites)} of them layers that can get an "
        f"update, for an adapter {size} beside {output.file_size(report.checkpoint_size)}; nothing was read or written"
    )


def _numbers(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _examples(paths: Iterable[str]) -> str:
    return next(iter(paths), "")


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _MOST} more" if len(listed) > _MOST else ""
    return ", ".join(listed[:_MOST]) + more


def _share(share: float) -> str:
    if share == float("inf"):
        return "from 0"
    if share >= 10:
        return f"{share:.3g}-fold"
    if share and share < 1e-4:
        return f"{100 * share:.0e} %"
    return f"{100 * share:.3g} %" if share < 0.9995 or share > 1.0005 else f"{100 * share:.4g} %"
