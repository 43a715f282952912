"""What can go wrong, as one small tree.

    LoraloomError
    ├── ConfigError        (ValueError)    a setting is unknown, missing or out of range
    ├── TargetError        (LookupError)   a target pattern matches nothing, or nothing that can be adapted
    ├── DataError          (ValueError)    a data file or an example in it cannot be used
    ├── FormatError        (ValueError)    an adapter file is damaged, incomplete or not for this model
    ├── BaseModelError     (LookupError)   a base model cannot be found or loaded
    ├── OutputError        (OSError)       a folder cannot be written: not empty, no space, no permission
    ├── TrainingError      (RuntimeError)  a run cannot go on: the loss is not finite, nothing moved
    └── MissingExtraError  (ImportError)   an optional library is not installed

Every one of them is the user's to mend, so the command line prints it as one sentence and exits with
status 2; anything else is a failure of ours and exits with status 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LoraloomError(Exception):
    """Base of every error that Loraloom raises on purpose."""


class ConfigError(LoraloomError, ValueError):
    """A setting is unknown, missing or out of range."""


class TargetError(LoraloomError, LookupError):
    """A target pattern matches nothing, or nothing that can be adapted."""


class DataError(LoraloomError, ValueError):
    """A data file, or an example in it, cannot be used."""


class FormatError(LoraloomError, ValueError):
    """An adapter file is damaged, incomplete, or not for this model."""


class BaseModelError(LoraloomError, LookupError):
    """A base model cannot be found or loaded."""


class OutputError(LoraloomError, OSError):
    """A folder or file cannot be written."""


class TrainingError(LoraloomError, RuntimeError):
    """A training run cannot go on, or came to nothing."""


class MissingExtraError(LoraloomError, ImportError):
    """An optional library is needed and not installed."""


def suggest(word: str, options: Iterable[str], *, most: int = 3) -> str:
    """``"; did you mean 'a' or 'b'?"`` for the options nearest to `word`, or ``""`` when none is near.

    >>> suggest("rnak", ["rank", "alpha"])
    "; did you mean 'rank'?"
    """
    near = difflib.get_close_matches(word, list(options), n=most, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(option) for option in near)}?" if near else ""


def one_error(kind: type[LoraloomError], title: str, faults: list[str]) -> LoraloomError:
    """One error of `kind` that tells every fault: a sentence for one, a list under `title` for more."""
    if len(faults) == 1:
        return kind(f"{title}: {faults[0]}")
    return kind("\n  - ".join([f"{title}, {len(faults)} faults:", *faults]))
