"""README.md of a result: a model card as the Hugging Face Hub and PEFT know it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

_USE_PICTURES = """```
loraloom generate --base BASE --lora THIS_FOLDER:0.8 --prompt "…"
```

Or with diffusers, over the same base: `pipeline.load_lora_weights("THIS_FOLDER")`."""
_USE_PAINTER = """```
loraloom generate --base THIS_FOLDER --prompt "…"
```

Or load this folder with diffusers, as any pipeline."""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")


def model_card(record: Mapping[str, Any]) -> str:
    """The card of a run, from the content of its run.json."""
    parts = [
        f"---\n{_front_matter(record)}---",
        f"# {_title(record)}",
        _what(record),
        "## Scores\n\n" + _scores(record),
        "## How it was trained\n\n" + _how(record),
        "## Use\n\n" + _use(record),
        "## Limits\n\n" + _limits(record),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(record: Mapping[str, Any]) -> str:
    lora = record["method"] == "lora"
    name = record["base"]["name"]
    data: dict[str, Any] = {
        "library_name": _library(record),
        "pipeline_tag": record["task"],
        "tags": ["loraloom", *(["lora"] if lora else [])],
    }
    # The Hub refuses a card whose base_model is not a name there.
    if record["base"]["source"] != "folder" and _HUB_NAME.fullmatch(name):
        data = {"base_model": name, **data}
        if lora:
            data["tags"].append(f"base_model:adapter:{name}")
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _library(record: Mapping[str, Any]) -> str:
    if record["task"] == "text-to-image":
        return "diffusers"
    return "peft" if record["method"] == "lora" else "transformers"


def _title(record: Mapping[str, Any]) -> str:
    kind = "LoRA adapter" if record["method"] == "lora" else "Fine-tuned model"
    return f"{kind} for {record['task'].replace('-', ' ')}"


def _what(record: Mapping[str, Any]) -> str:
    trained, share = record["parameters"]["trained"], record["parameters"]["share"]
    size = f"{record['result_bytes'] / 2**20:.1f} MiB"
    labels = record["task_state"].get("labels")
    told = f" Labels: {', '.join(str(label) for label in labels)}." if labels else ""
    if record["method"] == "full":
        return f"All {trained:,} weights of `{record['base']['name']}` were trained ({size} on disk).{told}"
    effective = record["effective"]
    return (
        f"A low-rank update of `{record['base']['name']}` at {effective['sites']} layers: {trained:,} trained numbers, "
        f"{share:.2%} of the base model's, {size} on disk.{told}"
    )


def _scores(record: Mapping[str, Any]) -> str:
    base = "base, untrained head" if record["base"].get("heads") else "base"
    columns = {base: record["metrics"]["base"], "trained": record["metrics"]["trained"]}
    if "trained_over_fp32_base" in record["metrics"]:
        columns["trained, over the fp32 base"] = record["metrics"]["trained_over_fp32_base"]
    names = [name for name in record["metrics"]["trained"] if not name.endswith(("_low", "_high"))]
    lines = [f"| metric | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name in names:
        values = " | ".join(_with_interval(metrics, name) for metrics in columns.values())
        lines.append(f"| {name} | {values} |")
    count = record["data"]["evaluation_examples"]
    return "\n".join([*lines, "", f"On {count:,} held-out examples; 95 % intervals in brackets."])


def _with_interval(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return "–"
    value = metrics[name]
    text = str(int(value)) if value == int(value) and abs(value) > 1 else f"{value:.4f}"
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return text if low is None or high is None else f"{text} [{low:.3f}, {high:.3f}]"


def _how(record: Mapping[str, Any]) -> str:
    training, settings, effective = record["training"], record["settings"], record["effective"]
    rates = ", ".join(f"{role} {rate:g}" for role, rate in effective["learning_rate"].items())
    epochs = training["steps"] / training["steps_per_epoch"]
    rows = {
        "Base model": f"`{record['base']['name']}`, weights sha256 `{record['base']['fingerprint']}`",
        "Training examples": f"{record['data']['train_examples']:,}",
        "Steps": f"{training['steps']} of batch {settings['batch_size']} ({epochs:.2g} epochs); kept: step "
        f"{training['best_step']}",
        "Peak learning rate": f"{rates}; {settings['schedule']} schedule, warm-up {settings['warmup']:.0%}",
        "Precision": f"{record['precision']}; seed {training['seed']}",
        "Training time": f"{training['seconds']['training']:.1f} s, peak memory "
        f"{record['memory_mib']['peak_above_base']:,.0f} MiB above the base model's",
    }
    if record["method"] == "lora":
        rows["Adapter"] = (
            f"rank {_listed(effective['rank'])}, alpha {_listed(effective['alpha'])}, scaling {effective['scaling']} "
            f"= {_listed(effective['scale'])}"
        )
    lines = [f"- {name}: {value}" for name, value in rows.items()]
    return "\n".join([*lines, "", "Every setting, version and data hash is in `run.json`."])


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _use(record: Mapping[str, Any]) -> str:
    if record["task"] == "text-to-image":
        return _USE_PICTURES if record["method"] == "lora" else _USE_PAINTER
    command = "```\nloraloom predict THIS_FOLDER --data FILE\nloraloom inspect THIS_FOLDER\n```"
    if record["method"] == "full":
        return command + "\n\nOr load this folder with transformers, as any model."
    return (
        command + "\n\nOr with PEFT, over the base model of the task:\n\n```python\nfrom peft import PeftModel\n\n"
        'model = PeftModel.from_pretrained(base_model, "THIS_FOLDER")\n```'
    )


def _limits(record: Mapping[str, Any]) -> str:
    lines = [
        f"The scores hold for data like the {record['data']['evaluation_examples']:,} held-out examples; measure on "
        "your own before relying on them. What the base model does wrong, the result may do too."
    ]
    if record["method"] == "lora":
        lines.append("The adapter acts only over the base model named above, with weights of that sha256.")
    notes = [f"- {note}" for note in record["notes"]]
    if notes:
        lines += ["Noted during the run:", "\n".join(notes)]
    return "\n\n".join(lines)
