"""A checkpoint's model without its weights, and where each of its parameters lies in the files.

An adapter speaks of the layers of a model that is loaded; files may call them otherwise: without the base model's
prefix, by an older spelling, a mixture's experts one by one. So the model is made of its class on the meta device,
where it takes no memory, and its parameters are joined to the files' tensors as transformers itself joins them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from loraloom.tasks.models.loading import silent

_CONVOLUTIONS: dict[int, Any] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


class Outlined(Protocol):
    """Tensors of which names, shapes and dtypes are known."""

    def __iter__(self) -> Iterator[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, which is not read."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """Of a tensor, which is not read."""
        ...


@dataclass(frozen=True)
class Skeleton:
    """A model on the meta device, and the names that its parameters have in the files."""

    model: nn.Module
    keys: Mapping[str, str]
    """Parameter's path → the key of the one tensor that it is loaded from."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parameter's path → the keys of the tensors that it is put together from."""
    ties: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parameter's path → the paths of all that are this very tensor, the one that the file has first."""
    class_name: str | None = None
    """None where the model was guessed from the names of tensors."""

    def key(self, path: str) -> str | None:
        """The key of a layer's weight, or of a raw parameter; None where there is none."""
        return self.keys.get(f"{path}.weight") or self.keys.get(path)

    def spread(self, parameter: str, update: Tensor) -> dict[str, Tensor]:
        """An update of a parameter that is put together of several tensors, as updates of these, by key.

        Raises ValueError where the model's class does not say how to take it apart.
        """
        from transformers.core_model_loading import revert_weight_conversion

        try:
            parts = revert_weight_conversion(self.model, {parameter: update})  # type: ignore[arg-type]
        except Exception as error:  # whatever an operation that cannot be turned round says
            raise ValueError(f"it cannot be taken apart ({' '.join(str(error).split())[:120]})") from None
        found = {key: _of_name(key, parts) for key in self.fused[parameter]}
        if any(part is None for part in found.values()):
            raise ValueError(f"it is put together of {len(found)} tensors, and cannot be taken apart again")
        return {key: part for key, part in found.items() if part is not None}


def _of_name(key: str, parts: Mapping[str, Tensor]) -> Tensor | None:
    """The part that a key means: of that name, but for a prefix of the model."""
    if key in parts:
        return parts[key]
    return next((part for name, part in parts.items() if _ends(key, name) or _ends(name, key)), None)


def _ends(longer: str, shorter: str) -> bool:
    return longer.endswith(f".{shorter}")


# -- of the model's class -----------------------------------------------------------------------------


def class_skeleton(
    config: Mapping[str, Any], class_name: str | None, library: str, tensors: Outlined
) -> Skeleton | None:
    """The skeleton of a model of a library's class; None where the class is unknown or cannot be made without weights.

    `class_name` is one of the library's, "AutoModelFor…" included.
    """
    with silent(), torch.random.fork_rng(devices=[]):
        model = _of_diffusers(config, class_name) if library == "diffusers" else _of_transformers(config, class_name)
    if model is None:
        return None
    keys, fused = _joined(model, tensors)
    ties = _ties(model, keys)
    known = {name: keys[tied[0]] for name, tied in ties.items() if tied[0] in keys}
    return Skeleton(model.eval(), known | keys, fused, ties, type(model).__name__)


def _of_diffusers(config: Mapping[str, Any], class_name: str | None) -> nn.Module | None:
    import diffusers

    made: Any = getattr(diffusers, class_name or "", None)
    if made is None:
        return None
    try:
        with init_empty_weights():
            model: nn.Module = made.from_config(dict(config))
    except Exception:  # a config for another version, or a class that computes with its weights at once
        return None
    return model


def _of_transformers(config: Mapping[str, Any], class_name: str | None) -> nn.Module | None:
    import transformers

    made: Any = getattr(transformers, class_name or "AutoModel", None)
    if made is None:
        return None
    try:
        settings = dict(config)
        settings.pop("quantization_config", None)
        own = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
        with torch.device("meta"):
            model: nn.Module = made.from_config(own) if class_name in _AUTO else made(own)
    except Exception:  # a model type of another version, custom code, a class for other models
        return None
    return model


AUTO_BY_TASK = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""PEFT's word for a task → transformers' class."""
AUTO_CLASSES = (
    *("AutoModelForImageClassification", "AutoModelForObjectDetection", "AutoModelForSpeechSeq2Seq"),
    *("AutoModelForCTC", "AutoModelForAudioClassification", "AutoModelForTextToSpectrogram", "AutoModelForMaskedLM"),
    *("AutoModelForSemanticSegmentation", "AutoModelForImageTextToText", *dict.fromkeys(AUTO_BY_TASK.values())),
)
"""Classes that an adapter's model may be of, where neither it nor the checkpoint says which."""
_AUTO = frozenset((None, *AUTO_CLASSES))


def _joined(model: nn.Module, tensors: Outlined) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Parameters and the keys they are loaded from, one to one; and those that several tensors make."""
    names = dict(model.state_dict())
    keys: dict[str, str] = {}
    fused: dict[str, list[str]] = {}
    renaming = _Renaming(model, names)
    for key in tensors:
        name, converted = renaming.of(key)
        if name not in names:
            continue
        if converted:
            fused.setdefault(name, []).append(key)
        else:
            keys.setdefault(name, key)
    return keys, {name: tuple(found) for name, found in fused.items()}


class _Renaming:
    """From a file's key to a parameter's name, as transformers loads it; for other models they are the same."""

    def __init__(self, model: nn.Module, names: Mapping[str, Tensor]) -> None:
        self._names = names
        self._prefix = getattr(model, "base_model_prefix", None) or None
        self._mapping: tuple[list[Any], list[Any]] | None = None
        if self._prefix is not None:
            from transformers.conversion_mapping import get_model_conversion_mapping
            from transformers.core_model_loading import WeightConverter, WeightRenaming

            mapping = get_model_conversion_mapping(model)  # type: ignore[arg-type]
            renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
            self._mapping = (renamings, [entry for entry in mapping if isinstance(entry, WeightConverter)])

    def of(self, key: str) -> tuple[str, bool]:
        """The parameter's name, and whether the tensor is a piece of it."""
        if self._mapping is None:
            return key, False
        from transformers.core_model_loading import rename_source_key

        names: Any = self._names
        name, pattern = rename_source_key(key, *self._mapping, self._prefix, names)
        if name not in self._names and key in self._names:
            name, pattern = rename_source_key(key, [], [], self._prefix, names)
        return name, pattern is not None


def _ties(model: nn.Module, keys: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Every parameter that several modules use → all names of it, one that is in the file first."""
    users: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(name)
    groups = [sorted(names, key=lambda name: name not in keys) for names in users.values() if len(names) > 1]
    return {name: tuple(group) for group in groups for name in group}


def of_parts(skeletons: Mapping[str, Skeleton]) -> Skeleton:
    """The skeletons of a pipeline's parts as one, their names with the part in front."""
    model = nn.ModuleDict({name: skeleton.model for name, skeleton in skeletons.items()})
    keys = {f"{part}.{name}": f"{part}.{key}" for part, own in skeletons.items() for name, key in own.keys.items()}
    ties = {
        f"{part}.{name}": tuple(f"{part}.{other}" for other in tied)
        for part, own in skeletons.items()
        for name, tied in own.ties.items()
    }
    return Skeleton(model, keys, {}, ties, None)


# -- of the names alone -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hints:
    """What an adapter tells of layers whose class nobody knows."""

    lookups: frozenset[str] = frozenset()
    """Paths of embeddings."""
    groups: Mapping[str, int] = field(default_factory=dict)
    """Path → into how many groups a convolution divides its channels."""
    transposed: bool = False
    """Whether linear weights are stored (in, out)."""


_NO_HINTS = Hints()


def key_skeleton(tensors: Outlined, hints: Hints = _NO_HINTS) -> Skeleton:
    """A model of the shapes that the tensors have: a matrix is a linear layer, more dimensions are a convolution."""
    model = nn.Module()
    by_module: dict[str, list[str]] = {}
    for key in tensors:
        by_module.setdefault(key.rpartition(".")[0], []).append(key.rpartition(".")[2])
    for path, names in sorted(by_module.items()):
        module = _layer(path, names, tensors, hints)
        for name in names:
            full = f"{path}.{name}".lstrip(".")
            if name not in module._parameters and tensors.dtype(full).is_floating_point:
                empty = torch.empty(tensors.shape(full), dtype=tensors.dtype(full), device="meta")
                module._parameters[name] = nn.Parameter(empty)
        _put(model, path, module)
    return Skeleton(model.eval(), {key: key for key in tensors})


def _layer(path: str, names: Iterable[str], tensors: Outlined, hints: Hints) -> nn.Module:
    weight = f"{path}.weight".lstrip(".")
    if "weight" not in names or not tensors.dtype(weight).is_floating_point:
        return nn.Module()
    shape, bias = tensors.shape(weight), "bias" in names
    where: dict[str, Any] = {"device": "meta", "dtype": tensors.dtype(weight)}
    if len(shape) == 2:
        return _matrix(path, shape, bias, hints, where)
    if len(shape) not in _CONVOLUTIONS:
        return nn.Module()
    groups, kind = hints.groups.get(path, 1), _CONVOLUTIONS[len(shape)]
    layer: nn.Module = kind(shape[1] * groups, shape[0], shape[2:], bias=bias, groups=groups, **where)
    return layer


def _matrix(path: str, shape: tuple[int, ...], bias: bool, hints: Hints, where: dict[str, Any]) -> nn.Module:
    if path in hints.lookups:
        return nn.Embedding(shape[0], shape[1], **where)
    return _transposed(*shape) if hints.transposed else nn.Linear(shape[1], shape[0], bias, **where)


def _transposed(features_in: int, features_out: int) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    made: Any = Conv1D
    with torch.device("meta"):
        layer: nn.Module = made(features_out, features_in)
    return layer


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    if not path:
        model._parameters.update(module._parameters)
        return
    *parents, leaf = path.split(".")
    owner = model
    for name in parents:
        if name not in owner._modules:
            owner._modules[name] = nn.Module()
        owner = owner._modules[name]  # type: ignore[assignment]
    module._modules.update(owner._modules[leaf]._modules if leaf in owner._modules else {})  # type: ignore[union-attr]
    owner._modules[leaf] = module
