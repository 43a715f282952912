"""What a mix will be, before anything is computed: who takes part with what weight, and everything that is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from loraloom.compose.mix.combine import METHODS, Method
from loraloom.compose.mix.kept import BaseBiases, Kept, MixedBias, check_biases, head_owners, kept_by
from loraloom.compose.mix.sparsify import MIXTURES
from loraloom.compose.sources import Source, one_dtype, open_adapters, short_names
from loraloom.compose.weights import Weighted
from loraloom.errors import ConfigError, FormatError, one_error, suggest
from loraloom.formats.peft_names import without_wrappers
from loraloom.formats.writing import Target

DENSITIES = {"ties": 0.2, "dare": 0.5, "magnitude-prune": 0.5}
"""Share of the entries that is kept where nothing is said: of TIES its paper's; the others' papers name none."""


@dataclass(frozen=True)
class MixJob:
    """What is to be mixed, how, and where it goes. Raises ConfigError for settings that cannot be."""

    adapters: Sequence[Weighted]
    target: Path
    how: str = "exact"
    """One of `METHODS`."""
    rank: int | None = None
    """Largest rank of the result; None takes the largest of the adapters'. Not for exact, which keeps all."""
    density: float | None = None
    """Share of the entries, above 0 and up to 1, that ties, dare and magnitude-prune keep; None takes `DENSITIES`."""
    seed: int | None = None
    """Of dare; None is 0."""
    to: str | None = None
    """Format to write; None takes PEFT for a folder, and for a file the one that all adapters have."""
    dtype: str | None = None
    """"fp16", "bf16" or "fp32"; None keeps what all adapters have in common, else takes float32."""
    kind: str | None = None
    """Family of the base model; None takes the one that the files speak of."""
    head: str | None = None
    """Name or path of the adapter whose head is kept, where several have different ones."""
    base: str | Path | None = None
    """The base model, where biases that are kept whole need its own."""
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.adapters:
            raise ConfigError("name at least one adapter to mix, e.g. ink:0.7 glass:0.4")
        if self.how not in METHODS:
            raise ConfigError(f"--how {self.how!r} is not one of {', '.join(METHODS)}{suggest(self.how, METHODS)}")
        if self.rank is not None and (self.how == "exact" or self.rank < 1):
            raise ConfigError(
                "--how exact keeps the sum of all ranks; to cut it to --rank R say --how svd"
                if self.how == "exact"
                else f"--rank is {self.rank}, expected a whole number of at least 1"
            )
        if self.density is not None and self.how not in MIXTURES:
            raise ConfigError(f"--density has no meaning for --how {self.how}, but for {', '.join(MIXTURES)}")
        if self.density is not None and not 0 < self.density <= 1:
            raise ConfigError(f"--density is {self.density}, expected a share above 0 and up to 1")
        if self.seed is not None and (self.how != "dare" or self.seed < 0):
            raise ConfigError(
                f"--seed has no meaning for --how {self.how}: only dare draws at random"
                if self.how != "dare"
                else f"--seed is {self.seed}, expected a whole number of at least 0"
            )


@dataclass(frozen=True)
class Ingredient:
    """One adapter of a mix, with all that was asked of it."""

    source: Source
    doses: tuple[Weighted, ...]
    """The same file named twice adds up."""
    kept: Kept

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def weight(self) -> float:
        """Its weight where no block or pattern says otherwise."""
        return sum(dose.weight for dose in self.doses)

    def at(self, site: str) -> float:
        """Its weight at a layer."""
        return sum(dose.at(site) for dose in self.doses)

    @property
    def acts(self) -> bool:
        """Whether anything of it comes into the mix."""
        keeps = bool(self.kept.heads or self.kept.biases) and self.weight != 0
        return keeps or any(self.at(path) for path in self.source.updates)

    @cached_property
    def whole(self) -> bool:
        """Whether it goes in just as it is."""
        return self.weight == 1 and all(self.at(path) == 1 for path in self.source.updates)


@dataclass(frozen=True)
class MixPlan:
    """A mix that can be made."""

    job: MixJob
    method: Method
    ingredients: tuple[Ingredient, ...]
    """Those that act."""
    idle: tuple[Ingredient, ...]
    """Those of weight 0."""
    dtype: torch.dtype
    target: Target
    sites: tuple[str, ...]
    """Layers of the result."""
    heads: Mapping[str, Source]
    """Module → whose head is kept."""
    biases: tuple[MixedBias, ...]
    base: BaseBiases
    notes: tuple[str, ...] = field(default=())

    @property
    def sources(self) -> list[Source]:
        """Of the adapters that act."""
        return [one.source for one in self.ingredients]

    @property
    def untouched(self) -> Source | None:
        """The one adapter that comes out just as it is, where that is what was asked for."""
        if len(self.ingredients) != 1 or not self.ingredients[0].whole:
            return None
        source = self.ingredients[0].source
        kept = self.method.how == "exact" or (self.method.how == "svd" and (self.method.rank or 0) >= source.rank)
        foreign = any(owner is not source for owner in self.heads.values())
        return source if kept and not foreign else None

    def holders(self, site: str) -> list[tuple[int, float]]:
        """(number of the ingredient, its weight) of those that change a layer."""
        found = [(at, one.at(site)) for at, one in enumerate(self.ingredients) if site in one.source.updates]
        return [(at, weight) for at, weight in found if weight]

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "how": self.method.how,
            "rank": self.method.rank,
            "density": self.method.density if self.method.how in MIXTURES else None,
            "seed": self.method.seed if self.method.how == "dare" else None,
            "to": self.target.to,
            "out": str(self.target.path),
            "dtype": dtype_name(self.dtype),
            "layers": len(self.sites),
            "sources": [ingredient_json(one) for one in (*self.ingredients, *self.idle)],
            "heads": {module: source.name for module, source in self.heads.items()},
            "biases": len(self.biases),
            "unchanged": self.untouched is not None,
            "notes": list(self.notes),
        }


def ingredient_json(one: Ingredient) -> dict[str, Any]:
    """An adapter of a mix as JSON data."""
    blocks = [dict(dose.blocks) for dose in one.doses if dose.blocks]
    data = {
        "name": one.name,
        "path": str(one.source.path),
        "format": one.source.facts.format,
        "weight": one.weight,
        "layers": len(one.source.updates),
        "rank": one.source.rank,
        "dtype": dtype_name(one.source.dtype),
    }
    return data | {"blocks": blocks} if blocks else data


def dtype_name(dtype: torch.dtype | None) -> str:
    """ "float32" for torch.float32; "mixed" for None."""
    return "mixed" if dtype is None else str(dtype).removeprefix("torch.")


def plan_mix(job: MixJob) -> MixPlan:
    """Open the adapters and settle everything that can be settled without reading their factors.

    Raises ConfigError or FormatError that names what cannot be mixed, and OutputError for a target in the way.
    """
    doses = _by_file(job.adapters)
    paths = list(doses)
    chosen_path = _head_path(job, paths)
    sources = open_adapters(paths, magnitudes=True)
    every = [
        Ingredient(source, tuple(doses[path]), kept_by(source)) for path, source in zip(paths, sources, strict=True)
    ]
    for one in every:
        for dose in one.doses:
            dose.check(one.source.updates)
    acting = tuple(one for one in every if one.acts)
    idle = tuple(one for one in every if not one.acts)
    if not acting:
        raise ConfigError("every adapter has weight 0: the mix would change nothing")
    chosen = None if chosen_path is None else sources[paths.index(chosen_path)]
    method = Method(
        job.how,
        None if job.how == "exact" else job.rank or max(one.source.rank for one in acting),
        1.0 if job.how not in MIXTURES else job.density or DENSITIES[job.how],
        job.seed or 0,
    )
    target = _target(job, [one.source for one in acting])
    target.check(*paths)
    base = BaseBiases(job.base, filter(None, (one.source.fingerprint for one in acting)))
    sites = tuple(_sites(acting))
    plan = MixPlan(
        job,
        method,
        acting,
        idle,
        _dtype(target, acting),
        target,
        sites,
        _heads(acting, idle, chosen),
        tuple(_biases(acting, sites, base)),
        base,
        tuple(_notes(job, method, acting, idle)),
    )
    if plan.untouched is None:
        _refuse(acting)
        check_biases(plan.biases, base)
    return plan


def _by_file(adapters: Sequence[Weighted]) -> dict[Path, list[Weighted]]:
    """Each file once, by the path under which it was named first."""
    found: dict[Path, list[Weighted]] = {}
    known: dict[Path, Path] = {}
    for one in adapters:
        path = known.setdefault(one.path.resolve(), one.path)
        found.setdefault(path, []).append(one)
    return found


def _head_path(job: MixJob, paths: Sequence[Path]) -> Path | None:
    """The adapter that --head means. Raises ConfigError with the nearest name."""
    if job.head is None:
        return None
    names = short_names(paths)
    for path, name in zip(paths, names, strict=True):
        if job.head in (name, str(path), path.name, path.stem) or Path(job.head).resolve() == path.resolve():
            return path
    raise ConfigError(f"--head {job.head!r} is none of the adapters ({', '.join(names)}){suggest(job.head, names)}")


def _target(job: MixJob, sources: Sequence[Source]) -> Target:
    kinds = [source.facts.kind for source in sources if source.facts.kind is not None]
    kind = job.kind or next(iter(kinds), None)
    to = job.to
    if to is None and job.target.suffix != ".safetensors":
        to = "peft"
    if to is None:
        formats = {"kohya" if source.facts.format == "lycoris" else source.facts.format for source in sources}
        to = formats.pop() if len(formats) == 1 else ""
        if to not in ("kohya", "diffusers", "loralib"):
            raise ConfigError(f"'{job.target}' is a file: say with --to which program's (kohya, diffusers, loralib)")
    return Target(job.target, to, job.dtype, kind, job.overwrite)


def _dtype(target: Target, ingredients: Sequence[Ingredient]) -> torch.dtype:
    """What was asked for; else what all factors have; else float32."""
    return target.torch_dtype or one_dtype([one.source for one in ingredients]) or torch.float32


def _sites(ingredients: Sequence[Ingredient]) -> list[str]:
    """Layers that anything is left of, in the order of the files."""
    every = dict.fromkeys(path for one in ingredients for path in one.source.updates)
    return [path for path in every if any(path in one.source.updates and one.at(path) for one in ingredients)]


# -- what is kept whole -------------------------------------------------------------------------------


def _heads(acting: Sequence[Ingredient], idle: Sequence[Ingredient], chosen: Source | None) -> dict[str, Source]:
    """Whose head is kept. One that rests has no say, but may be chosen."""
    holders: dict[str, list[tuple[Source, Mapping[str, str]]]] = {}
    for one in (*acting, *(other for other in idle if other.source is chosen)):
        for module, keys in one.kept.heads.items():
            holders.setdefault(module, []).append((one.source, keys))
    return head_owners(holders, chosen)


def _biases(acting: Sequence[Ingredient], sites: Sequence[str], base: BaseBiases) -> list[MixedBias]:
    """Every bias that an adapter keeps, and those that the result must have beside them."""
    found: dict[str, list[tuple[float, Source, str]]] = {}
    for one in acting:
        for path, key in one.kept.biases.items():
            weight = one.at(path.rpartition(".")[0])
            if weight:
                found.setdefault(path, []).append((weight, one.source, key))
    mixed = [MixedBias(path, tuple(own)) for path, own in found.items()]
    if found and not any(one.source.file.peft.bias == "all" for one in acting):
        mixed += _missing(acting, sites, set(found), base)
    return mixed


def _missing(acting: Sequence[Ingredient], sites: Sequence[str], have: set[str], base: BaseBiases) -> list[MixedBias]:
    """Biases of layers that only adapters without biases change: a file that has biases has those of all its layers."""
    holders = [one for one in acting if one.kept.biases]
    told = {without_wrappers(path) for one in holders for path in one.source.updates}
    wanting = [f"{without_wrappers(path)}.bias" for path in sites if without_wrappers(path) not in told]
    wanting = [path for path in wanting if path not in have]
    if base.given is None:
        return [MixedBias(path, ()) for path in wanting]
    return [MixedBias(path, ()) for path in wanting if base.find(path) is not None]


# -- what is refused, and what is told ----------------------------------------------------------------


def _refuse(acting: Sequence[Ingredient]) -> None:
    faults: list[str] = []
    for one in acting:
        if one.kept.magnitudes:
            faults.append(
                f"{one.name!r} is a DoRA adapter: its updates hang on the weights of the base, and no sum of such is "
                "exact; merge it into a base first, and extract a LoRA from that"
            )
        elif one.source.file.peft.target_parameters:
            faults.append(f"{one.name!r} changes raw parameters (target_parameters), which cannot be mixed yet")
        elif one.kept.unknown:
            faults.append(f"{one.name!r} holds {one.kept.unknown[0]!r}, for which no mixture has a rule")
    if faults:
        raise one_error(FormatError, "what cannot be mixed", faults)


def _notes(job: MixJob, method: Method, acting: Sequence[Ingredient], idle: Sequence[Ingredient]) -> list[str]:
    notes = [f"{one.name!r} has weight 0 and does nothing" for one in idle]
    notes += [
        f"{one.name!r} was named {len(one.doses)} times: its weights add up to {one.weight:g}"
        for one in acting
        if len(one.doses) > 1
    ]
    if job.how != "exact" and job.rank is None:
        notes.append(f"rank {method.rank}, the largest of the adapters': --rank R takes another")
    if job.how in MIXTURES and job.density is None:
        notes.append(f"density {method.density:g}: --density D takes another")
    bases = Counter(str(name) for one in acting if (name := one.source.file.config.get("base_model_name_or_path")))
    if len(bases) > 1 and not all(one.source.fingerprint for one in acting):
        notes.append(f"the files name different bases ({', '.join(sorted(bases))}): the mix holds only if they are one")
    lonely = [one.name for one in acting if not _meets(one, acting)]
    if lonely and len(acting) > 1:
        share = (
            "share no layer with the others: are they" if len(lonely) > 1 else "shares no layer with the others: is it"
        )
        notes.append(f"{', '.join(map(repr, lonely))} {share} for the same base?")
    return notes


def _meets(one: Ingredient, acting: Sequence[Ingredient]) -> bool:
    return not len(one.source.updates) or any(
        path in other.source.updates for other in acting if other is not one for path in one.source.updates
    )
