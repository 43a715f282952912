"""Everything that the page shows and does, without a page: painting, adapters, gallery, recipes, runs."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loraloom.errors import ConfigError, suggest
from loraloom.imaging.prompt import parse_prompt
from loraloom.imaging.recipe import Recipe, read_parameters, read_picture
from loraloom.studio.easel import Easel, Event, Job, Painted, Told
from loraloom.studio.form import Form, form_of, left_out, recipe_of, uses_of_recipe
from loraloom.studio.gallery import Gallery
from loraloom.studio.places import Places
from loraloom.studio.rack import Thumbnails, entry_of, states_of, uses_of
from loraloom.studio.runs import Runs

_DRAFTS = 200
"""Drafts that are kept on the disk; older ones go."""
_QUICK = 256 * 256
"""Pixels up to which the page paints again at every turn of a slider, unless it is told otherwise."""


class Desk:
    """One painter and the folders around it, shared by every page that is open."""

    def __init__(self, painter: Any, places: Places) -> None:
        self.painter = painter
        self.places = places
        self.easel = Easel()
        self.gallery = Gallery(places.pictures)
        self.runs = Runs(places)
        self.version = 1
        """Grows whenever the adapters in the folders change."""
        self._thumbnails = Thumbnails()
        self._entries = self._listed()
        self._lock = threading.Lock()
        self._drafts = tempfile.TemporaryDirectory(prefix="loraloom-studio-")
        self._draft_files: deque[Path] = deque()
        self._drafted = 0
        self._last: dict[str, list[Any]] = {}

    def close(self) -> None:
        """Remove the drafts."""
        self._drafts.cleanup()

    # -- adapters

    def look_again(self) -> bool:
        """Read the adapter folders again if any of their files has changed; whether one had."""
        with self._lock:
            if not self.painter.shelf.changed():
                return False
            self._entries = self._listed()
            self.version += 1
            return True

    def _listed(self) -> list[Any]:
        """The shelf, without what is for no picture: a run's checkpoints, and adapters of language models."""
        runs = self.places.runs.resolve()
        return [
            entry
            for entry in self.painter.shelf.all()
            if not (entry.path.is_file() and entry.path.resolve().is_relative_to(runs))
            and (entry.facts is None or entry.facts.parts)
        ]

    def adapters(self) -> list[Any]:
        """The `ShelfEntry` of every adapter in the folders."""
        return list(self._entries)

    def names(self) -> list[str]:
        """The adapters' names."""
        return [entry.name for entry in self._entries]

    def adapter(self, name: str) -> Any:
        """The `ShelfEntry` of a name. Raises ConfigError."""
        for entry in self._entries:
            if entry.name == name:
                return entry
        raise ConfigError(f"there is no adapter {name[:80]!r} in the folders{suggest(name, self.names())}")

    def entries(self) -> list[dict[str, str]]:
        """The adapters as the page's rack shows them."""
        return [entry_of(entry, self._thumbnails) for entry in self._entries]

    # -- painting

    def samplers(self) -> list[str]:
        """The samplers' names."""
        return list(self.painter.samplers())

    def first_form(self) -> Form:
        """The fields as the page opens with them: the base's own defaults."""
        recipe = self.painter.recipe(prompt=self.painter.example, seed=1)
        return form_of(recipe)

    @property
    def quick(self) -> bool:
        """Whether pictures of this base are small enough to be painted at every turn."""
        form = self.first_form()
        return form.width * form.height <= _QUICK

    def recipe(self, values: Sequence[Any], said: Any) -> Recipe:
        """What the fields and the rack ask for. Raises ConfigError for what cannot be, or names a file elsewhere."""
        form = Form.of(values)
        self._check_tags(form.prompt)
        self._check_tags(form.negative)
        return recipe_of(form, uses_of(said, self.names()), self.painter.base)

    def _check_tags(self, text: str) -> None:
        """A tag in a prompt could name any file: the page is held to the adapters in the folders."""
        known = {name.casefold() for name in self.names()}
        for tag in parse_prompt(text, steps=1).loras:
            if tag.name.removesuffix(".safetensors").casefold() not in known:
                near = suggest(tag.name, self.names()) or "; put its file into an adapter folder"
                raise ConfigError(f"<lora:{tag.name[:80]}>: there is no such adapter in the folders{near}")

    def paint(self, values: Sequence[Any], said: Any, *, page: str, live: bool = False) -> Iterator[Event]:
        """Paint what the fields and the rack say; see `Easel.do`. Raises ConfigError before anything is done."""
        recipe = self.recipe(values, said)
        batch = 1 if live else Form.of(values).batch
        return self._painted(recipe, batch, page, live)

    def _painted(self, recipe: Recipe, batch: int, page: str, live: bool) -> Iterator[Event]:
        def job(tell: Told, stop: Callable[[], bool]) -> list[Any]:
            def progress(step: int, steps: int, *_: Any) -> None:
                tell(step, steps)

            return list(self.painter.paint(recipe, batch=batch, progress=progress, stop=stop))

        for event in self.easel.do(job, page=page, live=live):
            if isinstance(event, Painted) and event.pictures:
                self._last[page] = event.pictures
            yield event

    def do(self, job: Job, *, page: str) -> Iterator[Event]:
        """Another job for the painter, such as a sheet, in its turn."""
        return self.easel.do(job, page=page)

    def stop(self, page: str) -> bool:
        """Stop what is painted for a page; whether there was anything."""
        return self.easel.stop(page)

    def forget(self, page: str) -> None:
        """A page was closed."""
        self.easel.stop(page)
        self._last.pop(page, None)

    def draft(self, picture: Any) -> Path:
        """A file of a picture for the page to show, with its recipe, that does not last."""
        with self._lock:
            self._drafted += 1
            path = Path(self._drafts.name) / f"picture-{self._drafted}-{picture.seed}.png"
            self._draft_files.append(path)
            old = self._draft_files.popleft() if len(self._draft_files) > _DRAFTS else None
        picture.save(path)
        if old is not None:
            old.unlink(missing_ok=True)
        return path

    def draft_file(self, path: Path) -> Path:
        """A copy of a drawn file for the page to show, that does not last."""
        with self._lock:
            self._drafted += 1
        return Path(shutil.copy(path, Path(self._drafts.name) / f"{self._drafted}-{path.name}"))

    @property
    def cells(self) -> Path:
        """Where the pictures of sheets lie while the studio is open: a sheet that was stopped goes on."""
        return Path(self._drafts.name) / "cells"

    def keep(self, page: str) -> list[Path]:
        """Put the pictures that a page painted last into the gallery. Raises ConfigError when there are none."""
        pictures = self._last.pop(page, None)
        if not pictures:
            raise ConfigError("there is no new picture to keep")
        return [self.gallery.keep(picture) for picture in pictures]

    # -- recipes

    def read(self, path: str | Path) -> tuple[Form, dict[str, Any], list[str]]:
        """The fields, the rack and what could not be brought back, from a picture. Raises DataError."""
        return self.unfold(read_picture(Path(path)))

    def read_text(self, text: str) -> tuple[Form, dict[str, Any], list[str]]:
        """The same from the text that other programs write below a picture. Raises DataError."""
        return self.unfold(read_parameters(text))

    def unfold(self, recipe: Recipe) -> tuple[Form, dict[str, Any], list[str]]:
        """A recipe as fields and rack, with a sentence for everything in it that is not here."""
        notes = []
        uses, missing = uses_of_recipe(recipe, self.names())
        notes += [f"the adapter '{name}' is not in the folders" for name in missing]
        notes += [f"'{name}' has no knob on this page and is left out" for name in left_out(recipe)]
        if recipe.sampler not in self.samplers():
            own = self.first_form().sampler
            notes.append(f"the sampler '{recipe.sampler}' is not known here; {own} takes its place")
            recipe = replace(recipe, sampler=own)
        if recipe.base and recipe.base != self.painter.base:
            notes.append(f"it was painted with the base '{recipe.base}', this page paints with '{self.painter.base}'")
        return form_of(recipe), states_of(uses), notes

    # -- words

    def count(self, text: str) -> tuple[int, int]:
        """Tokens and chunks of a prompt."""
        tokens, chunks = self.painter.token_count(text)
        return tokens, chunks
