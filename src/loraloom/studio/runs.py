"""Training runs of the studio: started as processes of their own, watched by their files, ended by their id."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from loraloom.errors import ConfigError
from loraloom.studio.places import Places, check_reach, inside
from loraloom.studio.settings_form import checked_config
from loraloom.training.files import replace_bytes, replace_json, writing
from loraloom.training.log import LOG_NAME, read_log
from loraloom.training.output import OutputFolder

State = Literal["running", "finished", "stopped", "failed"]

_NOTES = ".studio"
_NAME_FILES = ("base", "base_config", "data", "options")
"""The settings that may name files; the others are words, some of which could be names of folders too."""
_TAIL_BYTES = 20_000
_PLANNED = re.compile(r"(\d+) steps of \d+")
_LEFT = re.compile(r"step \d+/\d+ .* (\S+(?: \S+)?) left$", re.MULTILINE)
_GRACE = 8.0
"""Seconds between a request to end and the next, stronger one."""


@dataclass(frozen=True)
class RunStatus:
    """One run as the page shows it."""

    name: str
    state: State
    step: int
    steps: int | None
    """Planned in all; None until the run has told."""
    seconds_left: str
    """As the run tells it, "" when it does not."""
    entries: list[dict[str, Any]]
    """Of its log: steps and evaluations."""
    tail: str
    """The end of what it printed."""

    @property
    def sentence(self) -> str:
        """Where the run stands, in one sentence."""
        told = f"step {self.step} of {self.steps}" if self.steps else f"step {self.step}" if self.step else ""
        if self.state == "running":
            return f"{self.name} is running: {told or 'reading its data'}{self._left}"
        if self.state == "finished":
            return f"{self.name} is finished"
        if self.state == "stopped":
            return f"{self.name} was stopped{f' at {told}' if told else ''}; Go on takes it up from its last checkpoint"
        return f"{self.name} failed: {last_sentence(self.tail)}"

    @property
    def _left(self) -> str:
        return f", {self.seconds_left} left" if self.seconds_left else ""


class Runs:
    """The runs in one folder. At most one that was started here trains at a time."""

    def __init__(
        self,
        places: Places,
        *,
        start: Path | None = None,
        program: Sequence[str] = (sys.executable, "-m", "loraloom"),
    ) -> None:
        self._places = places
        self._program = program
        self._start = (start or Path.cwd()).resolve()
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Every run in the folder, the newest first."""
        folder = self._places.runs
        if not folder.is_dir():
            return []
        begun = {path.stem: path for path in (folder / _NOTES).glob("*.json")}
        found = {path.name: path for path in folder.iterdir() if path.is_dir() and _is_run(path)}
        times = {name: path.stat().st_mtime for name, path in {**begun, **found}.items()}
        return sorted(times, key=lambda name: -times[name])

    def running(self) -> str | None:
        """The name of the run that trains now."""
        folder = self._places.runs / _NOTES
        return next((path.stem for path in folder.glob("*.json") if self._process(path.stem) is not None), None)

    def start(self, text: str, *, resume: bool = False) -> str:
        """Start a run with the settings of a YAML text and return its name.

        Raises ConfigError for settings that cannot be used, or when a run is going on; OutputError for an
        output folder that is taken.
        """
        out = self._checked(text)
        name = out.name
        with self._lock:
            if (busy := self.running()) is not None:
                raise ConfigError(f"'{busy}' is training; stop it first, two at once would slow each other down")
            OutputFolder(out).check(resume=resume)
            self._spawn(name, text, out, resume)
        return name

    def check(self, text: str) -> str:
        """A sentence when a YAML text could be started. Raises what `start` raises, and starts nothing."""
        out = self._checked(text)
        OutputFolder(out).check(resume=False)
        return f"the settings are sound; the run would go to {out}"

    def _checked(self, text: str) -> Path:
        """The output folder of settings that are sound and reach for nothing outside."""
        config = checked_config(text)
        out = inside(self._places.runs, config.out, "out")
        named = {key: value for key, value in config.settings().items() if key in _NAME_FILES}
        check_reach(named, self._places.readable, start=self._start)
        return out

    def folder(self, name: str) -> Path:
        """Where a run lies. Raises ConfigError for a name that leads elsewhere."""
        return inside(self._places.runs, name, "run")

    def _spawn(self, name: str, text: str, out: Path, resume: bool) -> None:
        notes = self._places.runs / _NOTES
        with writing(notes):
            notes.mkdir(parents=True, exist_ok=True)
        replace_bytes(notes / f"{name}.yaml", text.encode())
        words = [*self._program, "train", str((notes / f"{name}.yaml").resolve())]
        words += ["--out", str(out.resolve()), *(["--resume"] if resume else [])]
        with writing(notes), (notes / f"{name}.txt").open("wb") as printed:
            child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                cwd=self._start,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"},
                start_new_session=True,
            )
        self._children[child.pid] = child
        replace_json(notes / f"{name}.json", {"pid": child.pid, "born": psutil.Process(child.pid).create_time()})

    def stop(self, name: str) -> None:
        """Ask a run to end: it keeps its checkpoints. What does not listen is ended more firmly after a while."""
        process = self._process(name)
        if process is None:
            raise ConfigError(f"'{name}' is not running")
        _signal(process, signal.SIGINT)
        threading.Thread(target=_insist, args=(process,), daemon=True).start()

    def status(self, name: str) -> RunStatus:
        """Where a run stands. Raises ConfigError for a name that is none of a run."""
        out = inside(self._places.runs, name, "run")
        notes = self._places.runs / _NOTES
        tail = _tail(notes / f"{name}.txt")
        entries = read_log(out / LOG_NAME)
        planned = _PLANNED.findall(tail)
        left = _LEFT.findall(tail)
        return RunStatus(
            name=name,
            state=self._state(name, out),
            step=max((entry["step"] for entry in entries), default=0),
            steps=int(planned[-1]) if planned else None,
            seconds_left=left[-1] if left else "",
            entries=entries,
            tail=tail,
        )

    def settings(self, name: str) -> str:
        """The YAML text that a run was started with here. Raises ConfigError where it was started elsewhere."""
        path = inside(self._places.runs, name, "run").parent / _NOTES / f"{name}.yaml"
        if not path.is_file():
            raise ConfigError(f"'{name}' was not started here; take it up with: loraloom train --resume --out {name}")
        return path.read_text("utf-8")

    def _state(self, name: str, out: Path) -> State:
        if self._process(name) is not None:
            return "running"
        folder = OutputFolder(out)
        return "finished" if folder.complete else "stopped" if folder.resumable else "failed"

    def _process(self, name: str) -> psutil.Process | None:
        """The living process of a run; one that took over its number later is another's."""
        note = _read_note(self._places.runs / _NOTES / f"{name}.json")
        if (child := self._children.get(note.get("pid", -1))) is not None:
            child.poll()  # so that an ended child does not stay a zombie
        try:
            process = psutil.Process(note["pid"])
            alive = process.create_time() == note["born"] and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, KeyError, TypeError, ValueError):
            return None
        return process if alive else None


def last_sentence(tail: str) -> str:
    """The last line that a run printed, without the program's name."""
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return lines[-1].removeprefix("loraloom: ") if lines else "it printed nothing"


def _is_run(path: Path) -> bool:
    folder = OutputFolder(path)
    return folder.complete or folder.resumable


def _read_note(path: Path) -> Mapping[str, Any]:
    try:
        note = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _tail(path: Path) -> str:
    """The end of a text file in whole lines, "" where there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        cut = file.tell() > 0
        text = file.read().decode("utf-8", "replace")
    return text.partition("\n")[2] if cut else text


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    """To the whole session of a run: its data loaders end with it."""
    with suppress(psutil.Error, ProcessLookupError, PermissionError):
        if process.is_running():  # checks the time of birth too: never another's process
            os.killpg(process.pid, number)


def _insist(process: psutil.Process) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(psutil.TimeoutExpired):
            process.wait(_GRACE)
            return
        _signal(process, number)
