"""Recordings with what is said in them, and by whom: the examples that a voice is learnt from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from loraloom.data.config import DataConfig
from loraloom.data.files import read_files
from loraloom.data.recordings import CLIPPED_FROM, RECORDINGS
from loraloom.data.records import cannot_be_used
from loraloom.data.table import Example, Role, Table
from loraloom.errors import DataError
from loraloom.tasks.speech.speakers import NOBODY

TEXT = Role("text", ("text", "transcript", "transcription", "sentence", "normalized_text", "words"))
SPEAKER = Role("speaker", ("speaker", "speaker_id", "speaker_name", "voice", "reader", "client_id"))
IDENTITY = ("file", TEXT.name, SPEAKER.name)
"""Roles that make no two examples the same: many may say one sentence, and one may say it twice."""


@dataclass(frozen=True)
class SpeechReader:
    """Reads tables and folders of recordings."""

    columns: Mapping[str, str]
    """Columns by role that training read, looked for first."""
    max_seconds: float

    def roles(self) -> list[Role]:
        """What is read of each row beside the file."""
        return [
            Role(role.name, (self.columns[role.name], *role.candidates), role.kind)
            if role.name in self.columns
            else role
            for role in (TEXT, SPEAKER)
        ]

    def read(self, source: str, data: DataConfig, *, split: str | None, prefer: Sequence[str]) -> Table:
        """The usable examples of a source, each with a speaker. Raises DataError.

        Silent and too long recordings are refused by name, or with `data.skip_bad` left out with a note.
        """
        table = read_files(
            source,
            RECORDINGS,
            self.roles(),
            data=data,
            split=split,
            prefer_splits=prefer,
            required_roles=(TEXT.name,),
        )
        faults = {id(example): fault for example in table.examples if (fault := self._fault(example))}
        kept = [example for example in table.examples if id(example) not in faults]
        if faults and not (data.skip_bad and kept):
            raise DataError(cannot_be_used(source, "recordings", list(faults.values())))
        left_out = [cannot_be_used(source, "recordings", list(faults.values())) + ": left out"] if faults else []
        spoken = [_with_speaker(example) for example in kept]
        return replace(table, examples=spoken, notes=[*table.notes, *left_out, *_remarks(source, kept)])

    def _fault(self, example: Example) -> str | None:
        values = example.values
        if values["silent"]:
            return f"{values['file']} is silent"
        if values["seconds"] > self.max_seconds:
            return f"{values['file']} lasts {values['seconds']:.1f} s, options.max_seconds is {self.max_seconds:g}"
        return None


def _with_speaker(example: Example) -> Example:
    return replace(example, values={**example.values, SPEAKER.name: str(example.values.get(SPEAKER.name, NOBODY))})


def _remarks(source: str, examples: Sequence[Example]) -> list[str]:
    """What a voice would learn amiss: clipping, and figures that are not said as they are written."""
    notes = []
    seconds = sum(example.values["seconds"] for example in examples)
    notes.append(f"{source}: {len(examples)} recordings, {seconds:.0f} s")
    clipped = [example for example in examples if example.values["clipped"] >= CLIPPED_FROM]
    if clipped:
        first = clipped[0].values
        notes.append(
            f"{source}: {len(clipped)} recordings are clipped, e.g. {first['file']} in {first['clipped']:.1%} of its "
            "samples: the voice will learn that too"
        )
    figures = [example for example in examples if any(c.isdigit() for c in example.values[TEXT.name])]
    if figures:
        notes.append(
            f"{source}: {len(figures)} texts hold digits, e.g. {figures[0].place}: write them as they are said, since "
            "letters are read and numbers are not"
        )
    return notes
