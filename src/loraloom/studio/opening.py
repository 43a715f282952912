"""The desk of a studio over the folders that were chosen."""

from __future__ import annotations

from loraloom.imaging.painter import Painter
from loraloom.imaging.shelf import AdapterShelf
from loraloom.studio.desk import Desk
from loraloom.studio.places import Places
from loraloom.training.files import writing


def open_desk(base: str, places: Places) -> Desk:
    """A desk with the base loaded; what is trained appears among its adapters. Raises BaseModelError, OutputError."""
    with writing(places.runs):
        places.runs.mkdir(parents=True, exist_ok=True)
    shelf = AdapterShelf(*places.adapters, places.runs, base=base)
    return Desk(Painter(base, adapters=shelf, embeddings=places.embeddings), places)
