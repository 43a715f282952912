"""Finished pictures of a sheet on the disk, each under the hash of all that it was made from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from loraloom import __version__
from loraloom.errors import LoraloomError
from loraloom.imaging.painter import Painter, Picture
from loraloom.imaging.pngfile import CHUNK as RECIPE_CHUNK
from loraloom.imaging.prompt import parse_prompt
from loraloom.imaging.recipe import Recipe
from loraloom.imaging.shelf import AdapterShelf
from loraloom.training.files import writing

KEY_LENGTH = 16
_KEYED = re.compile(rf"(?:.*-)?([0-9a-f]{{{KEY_LENGTH}}})\.png")
_READ_AT_ONCE = 1 << 20
_SLUG_LENGTH = 80
_EMBEDDINGS = (".safetensors", ".pt", ".bin")


class Ingredients:
    """What a picture depends on beside its recipe's words: the painter, and the files that the recipe names.

    Adapters, embeddings and pictures count by their content; a base by its files' names, sizes and times, since it
    may have gigabytes. Raises ConfigError for an adapter that is not there.
    """

    def __init__(self, painter: Painter, recipes: Iterable[Recipe]) -> None:
        given, base = list(recipes), painter.diffusion
        states = ((path.name, path.stat()) for path in base.weights)
        files = [f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states]
        self._painter = [__version__, base.name, str(base.dtype), str(base.device), files]
        self._files = adapter_files(given, painter.shelf)
        self._embeddings = {folder: _embeddings(folder) for folder in {recipe.embeddings for recipe in given}}
        self._digests: dict[Path, str] = {}

    def key(self, recipe: Recipe) -> str:
        """Hexadecimal digits that two recipes share only where they give the same picture."""
        names = [*(use.name for use in recipe.adapters), *_tagged(recipe)]
        files = [*(self._files[name] for name in names if name in self._files), *self._embeddings[recipe.embeddings]]
        if recipe.image is not None:
            files.append(Path(recipe.image))
        contents = [self._digest(file) for file in files]
        made_of = [recipe.to_json(), contents, self._painter]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()[:KEY_LENGTH]

    def _digest(self, path: Path) -> str:
        if path not in self._digests:
            self._digests[path] = f"{path.stem} {_digest(path)}"
        return self._digests[path]


def adapter_files(recipes: Iterable[Recipe], shelf: AdapterShelf) -> dict[str, Path]:
    """The files of every adapter by the names that recipes use. Raises ConfigError for one that is not there.

    Those in prompts' tags may be unknown: the painter has the last word on them.
    """
    files = {name: shelf.find(name) for recipe in recipes for name in (use.name for use in recipe.adapters)}
    for name in {name for recipe in recipes for name in _tagged(recipe)} - set(files):
        try:
            files[name] = shelf.find(name)
        except LoraloomError:
            continue
    return files


def _tagged(recipe: Recipe) -> list[str]:
    if "<" not in recipe.prompt:
        return []
    return [tag.name for tag in parse_prompt(recipe.prompt, steps=recipe.steps).loras]


def _embeddings(folder: str | None) -> list[Path]:
    if folder is None or not Path(folder).is_dir():
        return []
    return sorted(path for path in Path(folder).rglob("*") if path.suffix in _EMBEDDINGS and path.is_file())


def _digest(path: Path) -> str:
    """sha256 of a file, or of the files of an adapter's folder."""
    inside = path.iterdir() if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in sorted(file for file in inside if file.suffix in (".json", ".safetensors") or file == path):
        with writing(file), file.open("rb") as stream:
            while piece := stream.read(_READ_AT_ONCE):
                digest.update(piece)
    return digest.hexdigest()


class CellFolder:
    """A folder of pictures named ``<what varies>-<key>.png``; each is there whole or not at all."""

    def __init__(self, path: str | Path, ingredients: Ingredients) -> None:
        self.path, self._ingredients = Path(path), ingredients
        self._found = self._scan()

    def _scan(self) -> dict[str, Path]:
        if not self.path.is_dir():
            return {}
        named = ((_KEYED.fullmatch(file.name), file) for file in sorted(self.path.iterdir()))
        return {match[1]: file for match, file in named if match}

    def __contains__(self, recipe: Recipe) -> bool:
        return self._ingredients.key(recipe) in self._found

    def take(self, recipe: Recipe) -> tuple[Image.Image, str] | None:
        """A finished picture and its recipe as text; None where there is none, or where its file is damaged."""
        file = self._found.get(self._ingredients.key(recipe))
        if file is None:
            return None
        try:
            with Image.open(file) as image:
                image.load()
                return image.convert("RGB"), str(image.info.get(RECIPE_CHUNK, ""))
        except (OSError, SyntaxError, ValueError):  # what pillow raises for a damaged PNG
            return None

    def put(self, recipe: Recipe, picture: Picture, labels: Mapping[str, str]) -> None:
        """Keep a picture; `labels` make a file name that people can read. Raises OutputError."""
        key = self._ingredients.key(recipe)
        old, new = self._found.get(key), self.path / f"{_slug(labels)}{key}.png"
        picture.save(new)
        if old is not None and old != new:
            old.unlink(missing_ok=True)
        self._found[key] = new


def _slug(labels: Mapping[str, str]) -> str:
    words = "_".join(f"{name} {label}" for name, label in labels.items())
    slug = re.sub(r"[^\w.,+-]+", "-", words)[:_SLUG_LENGTH].strip("-._")
    return f"{slug}-" if slug else ""
