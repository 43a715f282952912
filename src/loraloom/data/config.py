"""Which data a run reads, and how: the `data` part of a configuration."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

_NAMED_DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}


class DataConfig(BaseModel):
    """Where the examples come from. Files are read as UTF-8, with or without a byte order mark."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: str = Field(
        description="Training examples: a .csv, .tsv, .jsonl, .json, .parquet or .txt file, a folder (of pictures, "
        "recordings or texts, or a dataset), the name of a dataset on the Hugging Face Hub (owner/name, "
        "owner/name/config), or 'sentiment', the set that comes with Loraloom. ':split' may follow a dataset's name."
    )
    eval: str | None = Field(
        default=None,
        description="Held-out examples, given like 'train'. Without it, a part of the training examples is set aside.",
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Which column holds what, by role, e.g. {text: review, label: stars}. Roles that are not "
        "named are detected.",
    )
    delimiter: str | None = Field(
        default=None,
        description="One character that separates the fields of a .csv or .tsv file, or 'tab'. Without it, detected.",
    )
    split: str | None = Field(default=None, description="Which split of a dataset to train on. Without it, 'train'.")
    eval_split: str | None = Field(
        default=None,
        description="Which split of a dataset to evaluate on: of 'eval', or of 'train' where 'eval' is not "
        "given. Without it, 'test' or 'validation' of 'eval'.",
    )
    eval_fraction: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Share of the training examples to set aside for evaluation when 'eval' is not given.",
    )
    limit: int | None = Field(
        default=None, ge=2, description="Use at most this many training examples, drawn by the seed."
    )
    eval_limit: int | None = Field(
        default=None, ge=1, description="Score on at most this many held-out examples, drawn by the seed."
    )
    where: dict[str, list[str]] = Field(
        default_factory=dict,
        description="Keep the rows whose column holds one of these values, e.g. {speaker: [george, lucas]}. Of a "
        "folder per class, the column is 'label'.",
    )
    words: str | None = Field(
        default=None, description="Keep the examples whose text has so many words: '1-6', '7-' or '5'."
    )
    drop_duplicates: bool = Field(
        default=False, description="Keep one training example of those whose text is the same."
    )
    skip_bad: bool = Field(
        default=False,
        description="Leave out rows and files that cannot be used, counted and named; otherwise the first few are "
        "named and the run ends.",
    )

    @property
    def word_range(self) -> tuple[int, int | None] | None:
        """The least and the most words of an example's text; None as the most means any number."""
        if self.words is None:
            return None
        least, dash, most = self.words.partition("-")
        return int(least), (int(most) if most else None) if dash else int(least)

    @field_validator("where", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """One value may stand without its list; numbers mean their text."""
        if not isinstance(value, dict):
            return value
        wanted = {column: entry if isinstance(entry, list) else [entry] for column, entry in value.items()}
        return {column: [str(entry) for entry in entries] for column, entries in wanted.items()}

    @field_validator("words", mode="before")
    @classmethod
    def _a_range(cls, value: object) -> object:
        """A range of whole numbers, smaller one first."""
        text = str(value) if isinstance(value, int) else value
        if isinstance(text, str):
            found = re.fullmatch(r"(\d+)(-(\d*))?", text)
            if not found or (found[3] and int(found[3]) < int(found[1])):
                raise ValueError(f"expected a number of words, or a range such as '1-6' or '7-', found {text!r}")
        return text

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        """Take names such as 'tab' for the character, and refuse what the csv format cannot have."""
        if value is None:
            return None
        character = _NAMED_DELIMITERS.get(value.lower(), value)
        if len(character) != 1 or character in '"\r\n':
            raise ValueError(f"expected one character such as ',', ';' or 'tab', found {value!r}")
        return character
