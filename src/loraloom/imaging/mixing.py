"""Several adapters over one base, each turned by weight: loaded once, and folded into the weights while they rest.

Adapters that act as layers of their own cost a little at every call of the denoiser; folded in, they cost nothing. So
a mixture that holds for a whole picture is folded before the first step and stays folded until a weight is turned;
one that changes from step to step acts as layers. Either way the base's every bit comes back.
"""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loraloom.adapters import AdapterSet, adapters_of
from loraloom.errors import ConfigError
from loraloom.formats import load_any
from loraloom.imaging.prompt import LoraTag
from loraloom.imaging.shelf import Stamp, stamp_of
from loraloom.tasks.diffusion import Diffusion

KEPT = 16
"""Adapters that stay loaded; beyond that, those go that were not used for longest."""
MOST_FOLDS = 4
"""A mixture with more weights than this over the steps of a picture is not folded."""


@dataclass(frozen=True)
class Dose:
    """One adapter file, and one request for it."""

    path: Path
    tag: LoraTag


@dataclass
class _Loaded:
    stamp: Stamp
    name: str
    """In the AdapterSet."""
    encodes: bool
    """Whether it changes a text encoder."""
    notes: list[str]


class Mixer:
    """The adapters of one base.

    Requests for the same file add up: twice 0.4 is 0.8, whether in the prompt, among the options, or in both.
    """

    def __init__(self, diffusion: Diffusion) -> None:
        self.diffusion = diffusion
        self.fold = True
        """False lets every mixture act as layers."""
        self.loads = 0
        """Files read so far."""
        self.folds = 0
        """Mixtures folded so far."""
        self._loaded: OrderedDict[Path, _Loaded] = OrderedDict()
        self._doses: dict[str, list[LoraTag]] = {}
        self._folding = False
        self._state: Hashable = ()

    def take(self, doses: Sequence[Dose], steps: int) -> list[str]:
        """Load what is not loaded, or has changed on the disk; returns what is to be told of the files.

        Nothing acts until `turn`. Raises FormatError for a file that is damaged or does not fit the base.
        """
        wanted = dict.fromkeys(dose.path for dose in doses)
        loaded = {path: self._load(path) for path in wanted}
        self._forget_others(wanted)
        self._doses = {one.name: [] for one in loaded.values()}
        for dose in doses:
            self._doses[loaded[dose.path].name].append(dose.tag)
        changes = sum(self._factors(step) != self._factors(step + 1) for step in range(1, steps))
        self._folding = self.fold and changes < MOST_FOLDS
        return [f"adapter {path.name!r}: {note}" for path, one in loaded.items() for note in one.notes]

    def turn(self, step: int) -> None:
        """Let the adapters act with the weights that hold at a step, counted from 1; quick where nothing changed."""
        state = (self._folding, self._weights(step))
        if state == self._state or not (self._doses or self._state):
            return
        adapters = adapters_of(self.diffusion.parts)
        if adapters is None:  # the first file could not be loaded
            return
        self._state = (None,)
        adapters.unmerge()
        for name, tags in self._doses.items():
            adapters.set_site_weights(name, _site_weights(adapters, name, tags, step))
        adapters.activate(dict.fromkeys(self._doses, 1.0))
        if self._folding and self._doses:
            self._fold(adapters)
        self._state = state if self._doses else ()

    def _fold(self, adapters: AdapterSet) -> None:
        try:
            adapters.merge()
            self.folds += 1
        except ConfigError:  # a weight that cannot hold an update: they act as layers, which they can anywhere
            self._folding = False

    @property
    def text_version(self) -> Hashable:
        """Changes when the text encoders do: encoded prompts hold as long as it stays."""
        by_name = {one.name: one for one in self._loaded.values()}
        return tuple(
            (by_name[name].stamp, tuple((tag.te, _text_blocks(tag)) for tag in tags))
            for name, tags in self._doses.items()
            if by_name[name].encodes and any(tag.te for tag in tags)
        )

    @property
    def _adapters(self) -> AdapterSet:
        found = adapters_of(self.diffusion.parts)
        assert found is not None
        return found

    def _weights(self, step: int) -> Hashable:
        return tuple(
            (name, tuple((tag.te, tag.unet, tuple(tag.blocks.items()), tag.weight_at(step)) for tag in tags))
            for name, tags in self._doses.items()
        )

    def _factors(self, step: int) -> list[float]:
        return [tag.weight_at(step) for tags in self._doses.values() for tag in tags]

    def _load(self, path: Path) -> _Loaded:
        path, stamp = path.resolve(), stamp_of(path)
        known = self._loaded.get(path)
        if known is not None and known.stamp == stamp:
            self._loaded.move_to_end(path)
            return known
        if known is not None:
            self._remove(path)
        if self._loaded:
            self._adapters.unmerge()
        self._state = (None,)
        name = self._new_name(path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapters = load_any(self.diffusion.parts, path, name=name)
        self.loads += 1
        adapters.set_trainable()
        adapters.activate({})
        encodes = any(site.path.startswith("text_encoder") for site in adapters.plan(name).sites)
        told = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
        self._loaded[path] = _Loaded(stamp, name, encodes, told)
        return self._loaded[path]

    def _new_name(self, path: Path) -> str:
        stem = re.sub(r"\W", "_", path.name.removesuffix(".safetensors"), flags=re.ASCII)
        return f"{stem}_{self.loads}" if stem[:1].isalpha() else f"lora_{stem}_{self.loads}"

    def _forget_others(self, wanted: dict[Path, None]) -> None:
        keep = {path.resolve() for path in wanted}
        for path in [path for path in self._loaded if path not in keep]:
            if len(self._loaded) > KEPT:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        adapters = self._adapters
        adapters.unmerge()
        adapters.delete(self._loaded.pop(path).name)
        self._doses, self._state = {}, (None,)


def _site_weights(adapters: AdapterSet, name: str, tags: Sequence[LoraTag], step: int) -> dict[str, float]:
    """The weight of an adapter at each of its sites, over all requests for it."""
    plan = adapters.plan(name)
    paths = [site.path for site in plan.sites if site.shares is None] + [copied.module for copied in plan.copies]
    return {path: sum(_weight(tag, path, step) for tag in tags) for path in paths}


def _weight(tag: LoraTag, path: str, step: int) -> float:
    """What a request comes to at a site: steps turn the denoiser alone, as texts are encoded before the first."""
    if path.startswith("text_encoder"):
        return tag.te * tag.block_factor(path)
    return tag.unet * tag.block_factor(path) * tag.weight_at(step)


def _text_blocks(tag: LoraTag) -> tuple[tuple[str, float], ...]:
    return tuple((name, factor) for name, factor in tag.blocks.items() if name.startswith("te"))
