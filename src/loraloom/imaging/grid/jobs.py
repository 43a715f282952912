"""The pictures of a sheet as jobs: one per distinct recipe, those that differ in the seed alone painted together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from loraloom.imaging.grid.plan import Place
from loraloom.imaging.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """One call of the painter."""

    recipe: Recipe
    """Of the first picture; picture i has the seed i higher."""
    places: tuple[tuple[Place, ...], ...]
    """For each picture, every place of the sheet that shows it."""

    @property
    def recipes(self) -> list[Recipe]:
        """The recipe of each picture."""
        return [replace(self.recipe, seed=self.recipe.seed + number) for number in range(len(self.places))]


def jobs_of(cells: Mapping[Place, Recipe], batch: int) -> list[Job]:
    """The jobs that paint these cells, ordered so that adapters are turned and prompts encoded as seldom as can be.

    Seeds in a row with everything else alike become one job of at most `batch` pictures.
    """
    places: dict[Recipe, list[Place]] = {}
    for place, recipe in cells.items():
        places.setdefault(recipe, []).append(place)
    families: dict[Recipe, list[Recipe]] = {}
    for recipe in places:
        families.setdefault(replace(recipe, seed=0), []).append(recipe)
    return [
        Job(run[0], tuple(tuple(places[recipe]) for recipe in run))
        for family in _side_by_side(families)
        for run in _runs(sorted(families[family], key=lambda recipe: recipe.seed), batch)
    ]


def _side_by_side(recipes: Iterable[Recipe]) -> list[Recipe]:
    """Recipes with the same adapters next to each other, of those the ones with the same prompts; else in order."""
    given = list(recipes)
    adapters = list(dict.fromkeys(recipe.adapters for recipe in given))
    prompts = list(dict.fromkeys((recipe.prompt, recipe.negative, recipe.clip_skip) for recipe in given))
    first = (
        {use: number for number, use in enumerate(adapters)},
        {words: number for number, words in enumerate(prompts)},
    )
    return sorted(given, key=lambda one: (first[0][one.adapters], first[1][one.prompt, one.negative, one.clip_skip]))


def _runs(family: Iterable[Recipe], batch: int) -> Iterator[list[Recipe]]:
    """Stretches of consecutive seeds, none longer than `batch`."""
    run: list[Recipe] = []
    for recipe in family:
        if run and (recipe.seed != run[-1].seed + 1 or len(run) == batch):
            yield run
            run = []
        run.append(recipe)
    if run:
        yield run
