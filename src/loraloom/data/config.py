"""Which data a run reads, and how: the `data` part of a configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

_NAMED_DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}


class DataConfig(BaseModel):
    """Where the examples come from. Files are read as UTF-8, with or without a byte order mark."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: str = Field(
        description="Training examples: a .csv, .tsv, .jsonl, .json or .parquet file, a dataset folder, the "
        "name of a dataset on the Hugging Face Hub (owner/name, owner/name/config), or 'sentiment', the set "
        "that comes with Loraloom. ':split' may follow a dataset's name."
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
    drop_duplicates: bool = Field(
        default=False, description="Keep one training example of those whose text is the same."
    )

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
