"""What a composed adapter tells of itself: a run.json that the verbs can open, and a model card.

An adapter that was made from others was not trained and not scored: its record says what it is over, how it is used
and what it was made from, and no word of losses, scores or seconds that belong to its sources.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import yaml

from loraloom.training.output import RECORD_NAME
from loraloom.training.record import RECORD_FORMAT, versions

CARD_NAME = "README.md"
_FRAME = ("task", "base", "metric", "shares", "precision", "task_state", "settings")
"""What says how an adapter is opened and scored; it holds for whatever is made of the adapter too."""
_TOLD = ("created", "data", "base", "made")
"""What is told of each source."""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")


def carried_record(records: Sequence[Mapping[str, Any]], note: Mapping[str, Any]) -> bytes | None:
    """A run.json for an adapter made of adapters with these, so that evaluate, predict and generate open it.

    The first record decides how the result is used: let it be that of the adapter whose head is kept. `note` tells
    what was done ("how", "sources", "error" …) and becomes the entry "made". None where there is no record, or where
    they are for different tasks or bases, so that no one of them holds for the whole.
    """
    frames = [record for record in records if record.get("method") == "lora"]
    if not frames or len(frames) < len(records) or not _alike(frames):
        return None
    first = frames[0]
    record = {
        "format": RECORD_FORMAT,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "method": "lora",
        **{key: first[key] for key in _FRAME if key in first},
        "made": {**note, "from": [{key: one[key] for key in _TOLD if key in one} for one in frames]},
        "versions": versions(),
        "notes": ["made from trained adapters, not trained and not scored itself; 'settings' are those of the first"],
    }
    return (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()


def _alike(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all are for one task over one base."""
    return len({(record.get("task"), _fingerprint(record)) for record in records}) == 1


def _fingerprint(record: Mapping[str, Any]) -> str | None:
    base = record.get("base")
    return base.get("fingerprint") if isinstance(base, Mapping) else None


def card(title: str, lines: Iterable[str], record: Mapping[str, Any] | None = None) -> bytes:
    """README.md of a composed adapter: a front matter as the Hub knows it, the title, and a paragraph per line.

    With a source's `record` the base model and the task stand in the front matter.
    """
    front = yaml.safe_dump(_front_matter(record or {}), sort_keys=False, allow_unicode=True)
    return ("\n\n".join([f"---\n{front}---", f"# {title}", *lines]) + "\n").encode()


def _front_matter(record: Mapping[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {"tags": ["loraloom", "lora"]}
    base, task = record.get("base"), record.get("task")
    if task is not None:
        data = {"library_name": "diffusers" if task == "text-to-image" else "peft", "pipeline_tag": task, **data}
    # The Hub refuses a card whose base_model is not a name there.
    if isinstance(base, Mapping) and base.get("source") != "folder" and _HUB_NAME.fullmatch(str(base.get("name"))):
        data["tags"].append(f"base_model:adapter:{base['name']}")
        return {"base_model": base["name"], **data}
    return data


def beside(
    records: Sequence[Mapping[str, Any]], note: Mapping[str, Any], title: str, lines: Iterable[str]
) -> dict[str, bytes]:
    """The files that lie beside a composed adapter's own in its folder, by name."""
    carried = carried_record(records, note)
    files = {CARD_NAME: card(title, lines, records[0] if carried else None)}
    return files if carried is None else files | {RECORD_NAME: carried}
