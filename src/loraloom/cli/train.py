"""`loraloom train`: a configuration file, flags, or both; flags win."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from loraloom.cli.options import Debug, Flag, Json, parse_assignment, settings_flags
from loraloom.errors import ConfigError, OutputError
from loraloom.training.config import TrainConfig, load_config, reference_yaml
from loraloom.training.settings_file import dotted_keys

FIELDS = dict(dotted_keys(TrainConfig))
_QUESTIONS = {
    **{name: '--text "…"' for name in ("text-classification", "causal-lm", "translation", "speech-synthesis")},
    "text-to-image": '--text "…" --save DIR',
}
_SETTINGS = {
    "--task": "task",
    "--base": "base",
    "--base-config": "base_config",
    "--quantize": "quantize",
    "--data": "data.train",
    "--eval": "data.eval",
    "--skip-bad": "data.skip_bad",
    "--out": "out",
    "--method": "method",
    "--rank": "adapter.rank",
    "--alpha": "adapter.alpha",
    "--targets": "adapter.targets",
    "--exclude": "adapter.exclude",
    "--layers": "adapter.layers",
    "--dropout": "adapter.dropout",
    "--epochs": "epochs",
    "--max-steps": "max_steps",
    "--batch-size": "batch_size",
    "--max-length": "max_length",
    "--learning-rate": "learning_rate",
    "--precision": "precision",
    "--patience": "patience",
    "--seed": "seed",
    "--tensorboard": "tensorboard",
}
FLAGS = (
    *(Flag(name, key, FIELDS[key]) for name, key in _SETTINGS.items()),
    Flag("--text-column", "data.columns.text", help="Column that holds the text. Without it, detected."),
    Flag("--label-column", "data.columns.label", help="Column that holds the label. Without it, detected."),
    Flag("--also", "options.also", help="text-to-image: further formats to write, 'kohya' for the web UI and ComfyUI."),
)


@settings_flags(FLAGS)
def train(
    config: Annotated[
        str | None, typer.Argument(metavar="CONFIG.yaml", help="Settings as YAML.", show_default=False)
    ] = None,
    *,
    sets: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Any other setting by its key; repeatable.")
    ] = [],  # noqa: B006 typer wants the default as it is
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the output folder.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read, check and show the plan; train and write nothing.")
    ] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Predict memory and time by a few timed steps; train and write nothing.")
    ] = False,
    reference: Annotated[
        bool, typer.Option("--reference", help="Print every setting as a commented YAML file and end.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
    settings: Mapping[str, Any],
) -> None:
    """Fine-tune a base model on your data, with LoRA or in full."""
    if reference:
        typer.echo(reference_yaml(), nl=False)
        return
    if (dry_run or estimate) and resume:
        flag = "--dry-run" if dry_run else "--estimate"
        raise ConfigError(f"{flag} shows how a run would begin; leave out --resume")
    if resume and config is None and not sets and settings.keys() == {"out"}:
        checked = _begun(settings["out"])
    else:
        checked = _configuration(config, settings, sets)
    if estimate:
        _show_estimate(checked, as_json=json)
    elif dry_run:
        _show_plan(checked, as_json=json)
    else:
        _run(checked, resume=resume, as_json=json)


def _configuration(path: str | None, settings: Mapping[str, Any], sets: Sequence[str]) -> TrainConfig:
    """The file, then the flags, then `--set`, each winning over the one before."""
    overrides = {**settings, **dict(parse_assignment(entry, FIELDS) for entry in sets)}
    missing = [name for name in ("--base", "--data", "--out") if _SETTINGS[name] not in overrides]
    if "base_config" in overrides:
        missing = [name for name in missing if name != "--base"]
        overrides.setdefault("base", None)  # what a file says of the base gives way to the flag
    if path is None and missing:
        raise ConfigError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: train needs --base, --data "
            "and --out, or a CONFIG.yaml that holds them"
        )
    return load_config(path, overrides)


def _begun(out: str) -> TrainConfig:
    """The settings of a run that was begun in the folder `out`: `train --resume --out DIR` needs no others."""
    from loraloom.training.output import OutputFolder

    folder = OutputFolder(out)
    if not (folder.resumable or folder.complete):
        raise OutputError(f"out: '{out}' holds no run to resume; give CONFIG.yaml, or --base and --data, to begin one")
    return TrainConfig.model_validate({**folder.read_state()["settings"], "out": out})


def _run(config: TrainConfig, *, resume: bool, as_json: bool) -> None:
    from loraloom.cli import output
    from loraloom.cli.progress import reporting
    from loraloom.tasks import create_task
    from loraloom.training import run

    with reporting() as reporter:
        result = run.train(config, create_task(config.task, **config.task_options), reporter=reporter, resume=resume)
    if as_json:
        output.emit({"out": str(result.out), **result.record})
        return
    record = result.record
    memory, seconds = record["memory_mib"], record["training"]["seconds"]
    found = record["metrics"]
    output.show_table(["", *(name.replace("_", " ") for name in found)], output.score_rows(found, record["shares"]))
    share = output.percent(record["parameters"]["share"], 2)
    output.say(
        f"trained {record['parameters']['trained']:,} parameters ({share}) in "
        f"{output.duration(seconds['training'])}, {memory['peak_above_base']:.0f} MiB above the base model's own",
        f"{'adapter' if config.method == 'lora' else 'model'} in {result.out} "
        f"({output.file_size(record['result_bytes'])})",
        f"next: loraloom predict {result.out} {_QUESTIONS.get(config.task, '--file FILE')}",
    )


def _show_plan(config: TrainConfig, *, as_json: bool) -> None:
    """What a run would adapt and do; everything is read and checked, nothing is written."""
    from loraloom.cli import output
    from loraloom.cli.progress import plan_of, plan_sentence

    plan = plan_of(config)
    if as_json:
        output.emit(asdict(plan))
        return
    columns = ("path", "kind", "weight", "rank", "alpha", "scale", "trained", "pattern")
    output.show_table(columns, [[_cell(site[column]) for column in columns] for site in plan.sites])
    output.say(plan_sentence(plan), f"nothing was written; without --dry-run the result goes to {config.out}")


def _show_estimate(config: TrainConfig, *, as_json: bool) -> None:
    """What a run would take; a few gradients are timed and thrown away, nothing is written."""
    from loraloom.cli import output
    from loraloom.cli.estimate import show
    from loraloom.cli.progress import reporting
    from loraloom.tasks import create_task
    from loraloom.training.estimate import estimate

    with reporting() as reporter:
        found = estimate(config, create_task(config.task, **config.task_options), reporter=reporter)
    if as_json:
        output.emit(asdict(found))
    else:
        show(found, config.out)


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " × ".join(map(str, value))
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
