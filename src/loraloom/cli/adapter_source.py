"""Adapters as the command line names them: a path, or the name of a style that comes with Loraloom."""

from __future__ import annotations

from pathlib import Path


def adapter_path(given: str) -> Path:
    """Where an adapter lies; a bare word that is no path here is the name of a style. Raises ConfigError."""
    if Path(given).exists() or not given.replace("-", "_").isidentifier():
        return Path(given)
    from loraloom.imaging.shelf import AdapterShelf  # which takes seconds to import

    return AdapterShelf().find(given)
