"""`loraloom evaluate`: score a trained model on labelled examples."""

from __future__ import annotations

from typing import Annotated

import typer

from loraloom.cli.options import Base, BatchSize, Debug, Json, LabelColumn, Run, TextColumn


def evaluate(
    run: Run,
    *,
    data: Annotated[str, typer.Option(metavar="FILE", help="Labelled examples, of any kind that train reads.")],
    base: Base = None,
    batch_size: BatchSize = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Score a trained model on a file of labelled examples."""
    from loraloom.cli import output
    from loraloom.cli.opening import note, opened
    from loraloom.training.restore import evaluate as score

    columns = {"text": text_column, "label": label_column}
    model = opened(run, base=base, batch_size=batch_size, columns=columns)
    metrics = score(model, data, note=note)
    if json:
        output.emit({"run": run, "data": data, "metric": model.task.metric, "metrics": metrics})
        return
    names = [name for name in metrics if not name.endswith(("_low", "_high")) and name != "n"]
    output.show_table(("metric", f"{run} on {data}"), [[name, output.with_interval(metrics, name)] for name in names])
    if "n" in metrics:
        output.say(f"{metrics['n']:.0f} examples; in brackets the 95 % interval")
