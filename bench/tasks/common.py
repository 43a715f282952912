"""One row of docs/results.md: train base, LoRA and full from the example's YAML files, score all, write the table.

    python -m bench.tasks translation            one row
    python -m bench.tasks                        all of them
    python -m bench.tasks translation --keep     one row, but for finished runs of the same settings
    python -m bench.tasks --list                 what there is

The base is made as `examples/…/base.yaml` says (where there is no pretrained one), the adapter as
`examples/…/lora.yaml`, and full fine-tuning as the adapter's file with `full` in its place. All three are
scored on the same held-out files, whole, by the verb `evaluate`'s own function.
"""

from __future__ import annotations

import math
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch

from loraloom.cli.output import file_size, is_share, percent, with_interval
from loraloom.errors import ConfigError
from loraloom.tasks import create_task
from loraloom.training.config import load_config
from loraloom.training.reporter import EvalEvent, RunPlan, SilentReporter
from loraloom.training.restore import open_run
from loraloom.training.run import train
from loraloom.training.use import evaluate

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "docs" / "results.md"
RUNS = ROOT / "runs" / "results"

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Metrics by contender ("base", "LoRA", "full fine-tuning", …), then by the name of the held-out set."""


@dataclass(frozen=True)
class HeldOut:
    """Examples to score on."""

    source: str
    """As `--data` takes it."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `data` for reading it, e.g. {"words": "7-"}."""


@dataclass(frozen=True)
class Claim:
    """What must hold, and whether it was found to."""

    sentence: str
    """With the figures in it."""
    holds: bool


@dataclass(frozen=True)
class Row:
    """One task on real data."""

    name: str
    """Of the marker in docs/results.md, and of the folder under runs/results."""
    title: str
    lora: str
    """The adapter's YAML file, relative to the project."""
    held_out: Mapping[str, HeldOut]
    """By the name that the table shows; the first is what the claims are about."""
    metrics: Sequence[str]
    claims: Callable[[Scores], list[Claim]]
    base: str | None = None
    """The base's YAML file; None where the adapter's file names a pretrained one."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of every contender that differ from the adapter's file, e.g. fewer examples."""
    full: Mapping[str, Any] = field(default_factory=dict)
    """Settings of full fine-tuning that differ from the adapter's, e.g. its learning rate."""
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further contenders: settings that differ from the adapter's file, by name."""
    seeds: int = 1
    """How many times every contender is trained, from seeds 0, 1, …; the table shows the mean of the scores."""
    prepare: Callable[[], None] | None = None
    """Called first: draws data that are not there yet."""
    says: str = ""
    """What such a small base can show, and what it cannot: a paragraph of Markdown."""


@dataclass(frozen=True)
class Trained:
    """One contender after its run."""

    folder: Path
    record: Mapping[str, Any]


class Told(SilentReporter):
    """Tells on stderr that a run goes on."""

    def __init__(self, name: str) -> None:
        self.name = name

    def started(self, plan: RunPlan) -> None:
        """What trains."""
        print(f"{self.name}: {plan.trained_parameters:,} parameters, {plan.steps} steps", file=sys.stderr, flush=True)

    def evaluated(self, event: EvalEvent) -> None:
        """A score."""
        told = f"{self.name}: epoch {event.epoch:.1f}, {event.metric} {event.score:.4f}"
        print(told, file=sys.stderr, flush=True)


def run_row(row: Row, *, overrides: Mapping[str, Any] | None = None, runs: Path = RUNS) -> Scores:
    """Train and score everything of a row anew, from the example's files. Returns the scores.

    `overrides` are settings by dotted key for every run of it: a test's smaller slice. The runs lie in
    `runs`/<name> afterwards.
    """
    return _score(row, _train_all(row, dict(overrides or {}), runs / row.name))


def write_row(row: Row, *, keep: bool = False) -> None:
    """Run a row and put its table into docs/results.md; says on stdout what it came to.

    `keep` takes finished runs of the same settings as they are.
    """
    began = time.perf_counter()
    trained = _train_all(row, {}, RUNS / row.name, keep=keep)
    scores = _score(row, trained)
    text = _markdown(row, trained, scores, None if keep else time.perf_counter() - began)
    print(text)
    REPORT.write_text(_replaced(REPORT.read_text("utf-8"), row.name, text), "utf-8")


def _train_all(row: Row, overrides: dict[str, Any], folder: Path, *, keep: bool = False) -> dict[str, list[Trained]]:
    """The runs of every contender, one per seed."""
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    if row.prepare is not None:
        row.prepare()
    base = {}
    if row.base is not None:
        made = _train("base", row.base, {**overrides, "out": str(folder / "base")})
        base = {"base": str(made.folder)}
    contenders = {"LoRA": {}, "full fine-tuning": {"method": "full", **row.full}, **row.others}
    trained: dict[str, list[Trained]] = {}
    for name, settings in contenders.items():
        every = {**row.settings, **overrides, **base, **settings}
        out = folder / name.replace(" ", "-").lower()
        trained[name] = [_train(name, row.lora, {**every, "out": str(out)})]
        for seed in range(1, row.seeds):
            again = {**every, "seed": seed, "out": f"{out}-seed-{seed}"}
            trained[name].append(_train(f"{name}, seed {seed}", row.lora, again))
    return trained


def _train(name: str, file: str, settings: Mapping[str, Any]) -> Trained:
    config = load_config(ROOT / file, settings)
    for attempt in ("kept", "anew"):
        try:
            result = train(config, create_task(config.task, **config.task_options), reporter=Told(name), resume=True)
            return Trained(result.out, result.record)
        except ConfigError:  # what lies there is a run of other settings
            if attempt == "anew":
                raise
            shutil.rmtree(config.out, ignore_errors=True)
    raise AssertionError


def _score(row: Row, trained: Mapping[str, list[Trained]]) -> dict[str, dict[str, dict[str, float]]]:
    scores: dict[str, dict[str, dict[str, float]]] = {"base": {}}
    for name, runs in trained.items():
        opened = [open_run(run.folder, create_task) for run in runs]
        scores[name] = {}
        for label, held_out in row.held_out.items():
            for one in opened:
                one.data_changes = dict(held_out.data)
            scores[name][label] = _mean([evaluate(one, held_out.source) for one in opened])
            if name == "LoRA":
                scores["base"][label] = evaluate(opened[0], held_out.source, without_adapter=True)
    return scores


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of every score over the seeds, and of the ends of its interval: the held-out examples are the same for all."""
    return {metric: statistics.fmean(one[metric] for one in scores) for metric in scores[0]}


def _markdown(row: Row, trained: Mapping[str, list[Trained]], scores: Scores, seconds: float | None) -> str:
    columns = [(label, metric) for label in row.held_out for metric in row.metrics]
    several = len(row.held_out) > 1
    heads = [f"{metric.replace('_', ' ')}{f', {label}' if several else ''}" for label, metric in columns]
    lines = [
        f"| | {' | '.join(heads)} | trained | on disk | training |",
        "|---|" + "---|" * (len(columns) + 3),
    ]
    for name, found in scores.items():
        runs = trained.get(name, [])
        record = runs[0].record if runs else trained["LoRA"][0].record
        cells = [with_interval(found[label], metric, share=is_share(record, metric)) for label, metric in columns]
        lines.append(f"| {_called(name, record)} | {' | '.join([*cells, *_costs(runs)])} |")
    claims = [f"- {'yes' if claim.holds else '**no**'}: {claim.sentence}" for claim in row.claims(scores)]
    setting = _setting(row, trained["LoRA"][0].record, seconds)
    return "\n".join([f"## {row.title}", "", setting, "", *lines, "", *claims, *(["", row.says] if row.says else [])])


def _called(name: str, record: Mapping[str, Any]) -> str:
    return "base, untrained head" if name == "base" and record["effective"].get("heads") else name


def _costs(runs: Sequence[Trained]) -> list[str]:
    """Trained parameters and size of a contender's first run, and the mean of the times; of the base nothing."""
    if not runs:
        return ["–", "–", "–"]
    parameters = runs[0].record["parameters"]
    seconds = statistics.fmean(run.record["training"]["seconds"]["training"] for run in runs)
    return [
        f"{parameters['trained']:,} ({percent(parameters['share'], 1)})",
        file_size(runs[0].record["result_bytes"]),
        f"{seconds:.0f} s",
    ]


def _setting(row: Row, record: Mapping[str, Any], seconds: float | None) -> str:
    counts = record["data"]
    threads = "1 thread" if torch.get_num_threads() == 1 else f"{torch.get_num_threads()} threads"
    took = "" if seconds is None else f", {seconds:.0f} s in all"
    files = f"`{row.lora}`" if row.base is None else f"`{row.base}`, `{row.lora}`"
    means = f"means of {row.seeds} seeds; " if row.seeds > 1 else ""
    return (
        f"{files}; {means}{counts['train_examples']:,} training examples; measured {date.today().isoformat()} with "
        f"torch {record['versions']['torch']} on a CPU ({threads}){took}. "
        f"Again: `python -m bench.tasks {row.name}`."
    )


def _replaced(report: str, name: str, text: str) -> str:
    """The report with a row's part exchanged, or put at its end."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    part = f"{begin}\n{text}\n{end}"
    if begin not in report:
        return f"{report.rstrip()}\n\n{part}\n"
    before, _, rest = report.partition(begin)
    return before + part + rest.partition(end)[2]


def apart(low: Mapping[str, float], high: Mapping[str, float], metric: str) -> bool:
    """Whether the 95 % interval of `high` lies above that of `low`."""
    return high[f"{metric}_low"] > low[f"{metric}_high"]


def surely_ahead(low: Mapping[str, float], high: Mapping[str, float], metric: str) -> float:
    """Where the 95 % interval of `high` − `low` begins, from the two scores' own intervals.

    The samples are taken for independent, which for scores on the same examples errs on the careful side.
    Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10.
    """
    above = high[metric] - high[f"{metric}_low"]
    below = low[f"{metric}_high"] - low[metric]
    return high[metric] - low[metric] - math.hypot(above, below)
