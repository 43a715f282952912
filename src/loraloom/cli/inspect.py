"""`loraloom inspect`: what an adapter changes, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loraloom.cli.options import Base, Debug, Json, Run
from loraloom.errors import ConfigError, OutputError


def inspect(
    run: Run,
    *,
    png: Annotated[str | None, typer.Option(metavar="FILE", help="Draw the spectra to this .png file.")] = None,
    base: Base = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what an adapter changes, and how much of its rank it uses."""
    if png is not None and not png.endswith(".png"):
        raise ConfigError(f"--png '{png}': the name must end in .png")
    if png is not None and not Path(png).absolute().parent.is_dir():
        raise OutputError(f"--png '{png}': there is no such folder")
    from loraloom.cli import output
    from loraloom.cli.opening import opened
    from loraloom.training.inspection import draw_inspection, inspect_run

    found = inspect_run(opened(run, base=base))
    if png is not None:
        draw_inspection(Path(png), found)
    if json:
        output.emit({"run": run, "png": png, **found.to_dict()})
        return
    columns = ("layer", "‖ΔW‖ / ‖W‖", "rank", "effective", "90 % in", "99 % in")
    output.show_table(columns, [_cells(site) for site in found.sites])
    if found.patterns:
        rows = [[row["pattern"], row["sites"], f"{row['parameters']:,}"] for row in found.patterns]
        output.show_table(("target pattern", "layers", "parameters"), rows)
    output.say(*_summary(found.record), found.verdict, *([f"drawn in {png}"] if png else []))


def _cells(site: Any) -> list[str]:
    ranks = [str(site.rank), f"{site.effective_rank:.1f}", str(site.rank_90), str(site.rank_99)]
    return [site.path, f"{site.relative_change:.4f}", *(ranks if site.rank else ["full", "–", "–", "–"])]


def _summary(record: dict[str, Any]) -> list[str]:
    """Sizes, the scores side by side, and how far the outputs moved."""
    from loraloom.cli import output

    if "metrics" not in record:
        return ["made from trained adapters and not scored itself; `loraloom evaluate` scores it"]
    parameters, metric, scores = record["parameters"], record["metric"], record["metrics"]
    share = output.is_share(record, metric)
    return [
        f"{record['method']} over {record['base']['name']}: {parameters['trained']:,} trained parameters "
        f"({output.percent(parameters['share'], 2)}), {output.file_size(record['result_bytes'])} on disk",
        f"{metric}: base {output.with_interval(scores['base'], metric, share=share)}, trained "
        f"{output.with_interval(scores['trained'], metric, share=share)}",
        f"outputs on held-out examples moved by {record['evidence']['output_change']:.2f} of their size",
    ]
