"""The settings of one adapter, as frozen data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, cast

import torch

from loraloom.errors import ConfigError, suggest

ALL_LINEAR = "all-linear"
SCALINGS = ("alpha/r", "rslora")
BIASES = ("none", "adapted", "all")
TIED = ("refuse", "share", "separate")
INITS = ("kaiming",)
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

Pattern = str | re.Pattern[str]


@dataclass(frozen=True)
class AdapterSpec:
    """How one adapter is made: which layers, which rank, which scale.

    A pattern is a name (`"query"` matches every module whose path ends in `.query`), a glob
    (`"encoder.layer.*.dense"`) or a regular expression (`"re:.*\\.(q|k)_proj"`, matched on the whole path).
    May be written loosely: one pattern or several, compiled ones too; layers as 3, [0, -1], range(4) or "4-7"; a
    dtype by its name. Raises ConfigError for a value out of range.
    """

    rank: int = 8
    """R, columns of B and rows of A."""
    alpha: float | None = None
    """Numerator of the scale; None takes twice the rank of each layer."""
    targets: tuple[str, ...] = (ALL_LINEAR,)
    """Patterns of the modules to adapt, or "all-linear": every linear layer but the output head."""
    exclude: tuple[str, ...] = ()
    """Patterns of modules that stay as they are."""
    layers: tuple[int, ...] | None = None
    """Block numbers to adapt (the first number in a module's path); negative ones count from the end."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Rank by pattern; the first that matches wins."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    """Alpha by pattern; the first that matches wins."""
    scaling: str = "alpha/r"
    """"alpha/r" (Hu et al. 2021) or "rslora", alpha/√r (Kalajdzievski 2023, arXiv 2312.03732)."""
    dropout: float = 0.0
    """Share of the adapter's inputs that is zeroed in training."""
    init: str = "kaiming"
    """How the factors start; a table in `initialise.py` knows the names."""
    seed: int = 0
    """Seed of the initialisation; every site draws from its own stream, so that sites do not shift each other."""
    bias: str = "none"
    """Which biases train: "none", those of "adapted" layers, or "all" of the model."""
    parameters: tuple[str, ...] = ()
    """Patterns of raw parameters (2-D, or 3-D expert weights) to adapt inside whatever module owns them."""
    heads: tuple[str, ...] = ()
    """Patterns of modules that are trained whole, as a copy that belongs to the adapter."""
    tied: str = "refuse"
    """What to do where a target's weight is also used elsewhere: "refuse", "share" the update with every
    user of the weight, or adapt the target alone ("separate"; such an adapter cannot be merged)."""
    dtype: torch.dtype = torch.float32
    """Of the factors, whatever the base is in."""

    def __post_init__(self) -> None:
        written = {name: getattr(self, name) for name in ("targets", "exclude", "parameters", "heads")}
        tidy = {name: _patterns(value) for name, value in written.items()}
        for name, value in (tidy | {"layers": _layer_numbers(self.layers), "dtype": _dtype(self.dtype)}).items():
            object.__setattr__(self, name, value)
        faults = [fault for fault in _faults(self) if fault]
        if faults:
            raise ConfigError("; ".join(faults))

    def scale(self, alpha: float, rank: int) -> float:
        """s of ΔW = s·B·A: alpha / rank, or alpha / √rank with rsLoRA."""
        return alpha / (math.sqrt(rank) if self.scaling == "rslora" else rank)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON data."""
        data = asdict(self)
        data["dtype"] = str(self.dtype).removeprefix("torch.")
        return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AdapterSpec:
        """The inverse of `to_dict`. Raises ConfigError for an unknown setting."""
        return cls.of(**data)

    @classmethod
    def of(cls, **settings: Any) -> AdapterSpec:
        """A spec from settings by name. Raises ConfigError, with the nearest name, for one that there is not."""
        known = {entry.name for entry in fields(cls)}
        for key in settings:
            if key not in known:
                raise ConfigError(f"unknown adapter setting {key!r}{suggest(key, known)}")
        return cls(**settings)


def _patterns(value: Pattern | Sequence[Pattern]) -> tuple[str, ...]:
    """Patterns as strings: a compiled expression becomes its "re:" form."""
    entries = [value] if isinstance(value, str | re.Pattern) else list(value)
    return tuple(f"re:{entry.pattern}" if isinstance(entry, re.Pattern) else entry for entry in entries)


def _layer_numbers(value: int | str | range | Sequence[int] | None) -> tuple[int, ...] | None:
    """Block numbers from 3, [0, 1], range(4) or "4-7"; None stays None."""
    bounds = re.fullmatch(r"(\d+)-(\d+)", value) if isinstance(value, str) else None
    if bounds is not None:
        return tuple(range(int(bounds[1]), int(bounds[2]) + 1))
    numbers = tuple(value) if isinstance(value, range | list | tuple) else (value,)
    if value is not None and not all(isinstance(number, int) for number in numbers):
        raise ConfigError(f"layers {value!r} is not a range such as '4-7', a number or a list of numbers")
    return None if value is None else cast("tuple[int, ...]", numbers)


def _dtype(name: str | torch.dtype) -> torch.dtype:
    if isinstance(name, torch.dtype):
        return name
    if name not in _DTYPES:
        raise ConfigError(f"dtype {name!r} is not one of {', '.join(_DTYPES)}{suggest(name, _DTYPES)}")
    return _DTYPES[name]


def _faults(spec: AdapterSpec) -> list[str]:
    return [
        *(_rank_fault(name, rank) for name, rank in [("rank", spec.rank), *spec.rank_pattern.items()]),
        *(_alpha_fault(name, alpha) for name, alpha in [("alpha", spec.alpha), *spec.alpha_pattern.items()]),
        _choice_fault("scaling", spec.scaling, SCALINGS),
        _choice_fault("bias", spec.bias, BIASES),
        _choice_fault("tied", spec.tied, TIED),
        _choice_fault("init", spec.init, INITS),
        "" if _is_number(spec.dropout) and 0 <= spec.dropout < 1 else _dropout_fault(spec.dropout),
        "" if spec.targets or spec.parameters or spec.heads else "targets is empty: name at least one module",
        "" if spec.dtype.is_floating_point else f"dtype is {spec.dtype}: factors must be floating point",
    ]


def _rank_fault(name: str, rank: object) -> str:
    if isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1:
        return ""
    return f"rank is {rank!r}{'' if name == 'rank' else f' for {name!r}'}: it must be a whole number of at least 1"


def _alpha_fault(name: str, alpha: float | None) -> str:
    if alpha is None or (_is_number(alpha) and math.isfinite(alpha) and alpha > 0):
        return ""
    return f"alpha is {alpha!r}{'' if name == 'alpha' else f' for {name!r}'}: it must be finite and above 0"


def _dropout_fault(share: object) -> str:
    return f"dropout is {share!r}: it must be at least 0 and below 1"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _choice_fault(name: str, value: str, options: Sequence[str]) -> str:
    if value in options:
        return ""
    return f"{name} is {value!r}: it must be one of {', '.join(options)}{suggest(str(value), options)}"
