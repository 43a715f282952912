"""`loraloom evaluate`: score a trained model on labelled examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loraloom.cli.options import Base, BatchSize, Debug, Json, LabelColumn, Run, TextColumn, parse_assignment
from loraloom.data.config import DataConfig


def evaluate(
    run: Run,
    *,
    data: Annotated[str, typer.Option(metavar="PATH", help="Labelled examples, of any kind that train reads.")],
    base: Base = None,
    batch_size: BatchSize = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    sets: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of `data`, e.g. where.speaker=lucas; repeatable."),
    ] = [],  # noqa: B006 typer wants the default as it is
    without_adapter: Annotated[
        bool, typer.Option("--without-adapter", help="Score the base model alone, beneath its untrained head.")
    ] = False,
    figures: Annotated[
        str | None, typer.Option(metavar="DIR", help="Draw what there is to see of the scores into this folder.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Score a trained model on a file of labelled examples."""
    from loraloom.cli import output
    from loraloom.cli.opening import data_changes, note, opened
    from loraloom.training.use import evaluate as score

    columns = {"text": text_column, "label": label_column}
    changes = data_changes(dict(parse_assignment(entry, DataConfig.model_fields) for entry in sets))
    model = opened(run, base=base, batch_size=batch_size, columns=columns, changes=changes)
    metrics = score(
        model,
        data,
        without_adapter=without_adapter,
        figures=Path(figures) if figures is not None else None,
        note=note,
    )
    if json:
        output.emit({"run": run, "data": data, "metric": model.task.metric, "metrics": metrics})
        return
    output.show_table(("metric", f"{run} on {data}"), output.score_rows({run: metrics}, model.task.shares))
    if "n" in metrics:
        output.say(f"{metrics['n']:.0f} examples; in brackets the 95 % interval")
    if figures is not None:
        output.say(f"drawn in {figures}")
