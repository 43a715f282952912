"""`adapter_config.json`: which fields are understood, and which modules of a model they mean.

The matching rules are PEFT's own (tuners/tuners_utils.py `check_target_module_exists`, utils/other.py
`get_pattern_key`, 0.21): a name matches a path or its end after a dot, a single string is a regular expression
over the whole path, and rank and alpha patterns are regular expressions over the end of a path.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from loraloom.errors import suggest
from loraloom.formats.careful import brief, first_faults
from loraloom.formats.expressions import Table, beginnings, endings, expression, is_expression

Names = tuple[str, ...] | str | None
"""Names of modules, or one regular expression, or nothing said."""

NO_TARGETS = "dummy-target-modules"
"""PEFT's word for an adapter that targets no module (one that only has a head)."""
ALL_LINEAR = "all-linear"
TASKS = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
TASK_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""Modules that PEFT expects in the file for a task, where the model has them."""
BIASES = {"none": "none", "lora_only": "adapted", "all": "all"}
"""PEFT's word for which biases train → ours."""

_VARIANTS = {
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "velora_config": "VeLoRA",
    "alora_invocation_tokens": "activated LoRA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "layer_replication": "layer replication",
    "trainable_token_indices": "trainable tokens",
    "megatron_config": "Megatron's parallel layers",
}
"""Fields that change what the tensors mean; off unless they are null, false or empty."""

_WITHOUT_EFFECT = (
    *("auto_mapping", "base_model_name_or_path", "ephemeral_gpu_offload", "fan_in_fan_out", "inference_mode"),
    *("megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type"),
    *("corda_config", "eva_config", "loftq_config", "lora_ga_config"),
)
"""Fields that say where an adapter comes from or how it was begun, not what it computes."""

_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Initialisations that leave the base model's weights alone."""


@dataclass(frozen=True)
class PeftConfig:
    """The fields of an adapter's config that decide what it computes."""

    r: int = 8
    lora_alpha: float = 8
    rank_pattern: Mapping[str, int] | None = None
    alpha_pattern: Mapping[str, float] | None = None
    use_rslora: bool = False
    lora_dropout: float = 0.0
    bias: str = "none"
    lora_bias: bool = False
    target_modules: Names = None
    exclude_modules: Names = None
    layers_to_transform: tuple[int, ...] | int | None = None
    layers_pattern: Names = None
    target_parameters: tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] | None = None
    ensure_weight_tying: bool = False
    use_dora: bool = False

    @classmethod
    def of(cls, data: Mapping[str, Any], place: str) -> PeftConfig:
        """Check a config as it stands in a file. Raises FormatError that names every fault; `place` is the file."""
        faults = [*_type_faults(data), *_variant_faults(data)]
        if faults:
            raise first_faults(place, faults)
        given = {name: _frozen(data[name]) for name in _FIELDS if data.get(name) is not None}
        return cls(**given)

    @property
    def knows_targets(self) -> bool:
        """Whether the config tells which modules are adapted, rather than leaving it to the tensors."""
        return self.target_modules not in (None, ALL_LINEAR) or bool(self.target_parameters)

    def targets(self, path: str) -> bool:
        """Whether a module is one of the targets."""
        if _listed(self.exclude_modules, path) or any(_around(head, path) for head in self.modules_to_save or ()):
            return False
        if isinstance(self.target_modules, str) or self.target_modules is None:
            return self.target_modules != NO_TARGETS and _listed(self.target_modules, path)
        return path in self._named or (_ends_in(self._named, path) and self._in_layers(path))

    @cached_property
    def _named(self) -> frozenset[str]:
        """The targets, where they are a list: a long one is asked of every module of the model."""
        return frozenset(self.target_modules or ())

    @cached_property
    def _ranks(self) -> Table:
        return Table(self.rank_pattern or {})

    @cached_property
    def _alphas(self) -> Table:
        return Table(self.alpha_pattern or {})

    def _in_layers(self, path: str) -> bool:
        wanted = self.layers_to_transform
        if wanted is None or wanted == ():
            return True
        patterns = (self.layers_pattern,) if isinstance(self.layers_pattern, str) else self.layers_pattern
        expressions = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns or ()] or [r".*?\.[^.]*\.(\d+)\."]
        found = next((match for expression in expressions if (match := re.match(expression, path))), None)
        return found is not None and int(found[1]) in ((wanted,) if isinstance(wanted, int) else wanted)

    def targets_parameter(self, path: str) -> bool:
        """Whether a raw parameter, by its full path, is one of the targets."""
        return _listed(self.target_parameters, path)

    def saves(self, path: str) -> bool:
        """Whether a module is trained whole and kept in the file. PEFT compares ends of paths, dot or not."""
        return any(path.endswith(head) for head in self.modules_to_save or ())

    def rank(self, path: str) -> int:
        """Rank of a target, by its path (of the parameter, for a raw one)."""
        return int(self._ranks.first(path, self.r))

    def alpha(self, path: str) -> float:
        """Alpha of a target, by its path."""
        return float(self._alphas.first(path, self.lora_alpha))

    def scale(self, path: str) -> float:
        """s of ΔW = s·B·A."""
        rank = self.rank(path)
        return self.alpha(path) / (math.sqrt(rank) if self.use_rslora else rank)

    def canonical(self) -> str:
        """The same text for configs that mean the same."""
        fields = asdict(self)
        if not self.use_dora:
            del fields["use_dora"]  # which the seals of files know nothing of that were written before it
        return json.dumps(fields, sort_keys=True)


def _listed(names: Names, path: str) -> bool:
    if not names:
        return False
    if isinstance(names, str):
        return expression(names).fits(path)
    return _ends_in(names, path)


def _ends_in(names: Collection[str], path: str) -> bool:
    """Whether the path, or its end after a dot, is one of the names."""
    end, more = path, "."
    while more and end not in names:
        _, more, end = end.partition(".")
    return bool(more)


def _around(head: str, path: str) -> bool:
    """Whether some parts of the path in a row are a head, as PEFT's `(^|.*\\.)HEAD($|\\..*)` finds."""
    return expression(head).fits(path, beginnings(path), endings(path))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# -- checks -------------------------------------------------------------------------------------------


def _count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _MOST


_LONGEST_FIELD, _MOST_SUGGESTIONS = 100, 3  # comparing names takes time
_MOST = 2**31  # of a rank, or of a block's number
_MOST_PATTERNS = 5_000
_LARGEST = 1e30  # beyond it float32 has no room for the products


def _scale(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= _LARGEST  # which NaN is not


def _flag(value: Any) -> bool:
    return type(value) is bool


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _expressions(value: Any) -> bool:
    return is_expression(value) or (_names(value) and all(map(is_expression, value)))


def _fixed(value: Any) -> bool:
    """Expressions that stand inside a larger one, and so must not repeat anything themselves."""
    entries = [value] if isinstance(value, str) else value
    return _expressions(value) and all(expression(v).is_fixed and not re.compile(v).groups for v in entries)


def _layers(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return all(type(number) is int and 0 <= number <= _MOST for number in numbers)


def _table(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict)
        and len(value) <= _MOST_PATTERNS
        and all(is_expression(key) and check(entry) for key, entry in value.items())
    )


_NUMBER, _NAMES = "a number above 0", "a list of names"
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_count, "a whole number of at least 1"),
    "lora_alpha": (_scale, _NUMBER),
    "rank_pattern": (_table(_count), "ranks of at least 1 by pattern"),
    "alpha_pattern": (_table(_scale), "numbers above 0 by pattern"),
    "use_rslora": (_flag, "true or false"),
    "lora_dropout": (
        lambda value: type(value) in (int, float) and 0 <= value < 1,
        "a number from 0 to below 1",
    ),
    "bias": (lambda value: isinstance(value, str) and value in BIASES, "one of " + ", ".join(BIASES)),
    "lora_bias": (_flag, "true or false"),
    "target_modules": (
        lambda value: _names(value) or is_expression(value),
        _NAMES + " or a regular expression",
    ),
    "exclude_modules": (
        lambda value: _names(value) or is_expression(value),
        _NAMES + " or a regular expression",
    ),
    "layers_to_transform": (_layers, "a block number or a list of them"),
    "layers_pattern": (_fixed, "a name or a list of names"),
    "target_parameters": (_names, _NAMES),
    "modules_to_save": (_expressions, _NAMES),
    "ensure_weight_tying": (_flag, "true or false"),
    "use_dora": (_flag, "true or false"),
}


def _type_faults(data: Mapping[str, Any]) -> list[str]:
    kind = data.get("peft_type")
    if kind != "LORA":
        found = "peft_type is missing" if kind is None else f"peft_type is {brief(kind)}"
        return [f"{found}: only adapters of peft_type 'LORA' can be read"]
    faults = [
        f"{name} is {brief(data[name])}, expected {expected}"
        for name, (check, expected) in _FIELDS.items()
        if data.get(name) is not None and not check(data[name])
    ]
    if isinstance(data.get("modules_to_save"), str):
        faults.append(f"modules_to_save is {brief(data['modules_to_save'])}, expected {_NAMES}")
    return faults


def _near(name: str, known: list[str], faults: int) -> str:
    return suggest(name, known) if len(name) <= _LONGEST_FIELD and faults < _MOST_SUGGESTIONS else ""


def _variant_faults(data: Mapping[str, Any]) -> list[str]:
    """Fields that would make the adapter compute something else than LoRA does."""
    faults: list[str] = []
    for name, value in data.items():
        off = value is None or value is False or value in ({}, [])
        if name in _FIELDS or name in _WITHOUT_EFFECT or off:
            continue
        if name in _VARIANTS:
            faults.append(f"{name} is {brief(value)}: adapters with {_VARIANTS[name]} cannot be read")
        elif name != "init_lora_weights":
            known = [*_FIELDS, *_VARIANTS, *_WITHOUT_EFFECT]
            faults.append(
                f"unknown field {brief(name)}, which may change what the adapter does{_near(name, known, len(faults))}"
            )
        elif not any(value is start or value == start for start in _PLAIN_STARTS):
            faults.append(
                f"init_lora_weights is {brief(value)}, which changes the base model's weights as well: save the "
                "adapter with PEFT's path_initial_model_for_weight_conversion, which makes a plain one of it"
            )
    return faults
