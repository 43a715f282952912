"""Two full checkpoints brought together, tensor by tensor, from their headers alone: what of one is what of the other.

The names are those of the tuned checkpoint's model, made of its class without weights; the base may spell them
otherwise (without a head around it, in an older version's words).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from loraloom.adapters.layers import KINDS, layer_kind
from loraloom.compose.checkpoint import Checkpoint, Part
from loraloom.compose.checkpoint.layout import Hints, Skeleton, class_skeleton, key_skeleton
from loraloom.errors import FormatError

_EMBEDDING_WORDS = ("embed", "wte", "wpe", "lookup")
_CLASS_PARTS = {"UNet2DConditionModel": "unet", "CLIPTextModel": "text_encoder"}
_MOST = 3


@dataclass(frozen=True)
class Pair:
    """One tensor that is in both checkpoints, in one shape."""

    path: str
    """The parameter's path in the tuned model ("unet.conv_in.weight"), or a key where its class has no such one."""
    tuned: str
    """Its key in the tuned checkpoint."""
    base: str
    shape: tuple[int, ...]
    kind: str | None
    """The kind of update that the layer takes whose weight this is, None where it takes none."""
    groups: int = 1
    """Of a convolution."""
    users: tuple[str, ...] = ()
    """Paths of further parameters that are this very tensor."""
    in_class: bool = True
    """Whether the model's class has this parameter as one tensor."""

    @property
    def module(self) -> str:
        """The path of the module that owns it."""
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        """Its name in the module: "weight", "bias" …"""
        return self.path.rpartition(".")[2]

    @property
    def full_rank(self) -> int:
        """The largest rank that an update of it can use."""
        out, rest = self.shape[0], 1
        for size in self.shape[1:]:
            rest *= size
        return self.groups * min(out // self.groups, rest)

    def factor_size(self, rank: int) -> int:
        """Numbers in both factors of an update of this rank."""
        rank = min(rank, self.full_rank)
        inner = 1
        for size in self.shape[1:]:
            inner *= size
        return rank * inner + self.shape[0] * max(rank // self.groups, 1)


@dataclass(frozen=True)
class Reshaped:
    """A parameter that has another shape in the tuned checkpoint: resized embeddings, a head of other classes."""

    path: str
    key: str
    shape: tuple[int, ...]
    base_shape: tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """One model of the two checkpoints."""

    prefix: str
    """"unet." in the paths of a pipeline, else nothing."""
    skeleton: Skeleton
    part: Part
    """In the tuned checkpoint."""
    base_part: Part


@dataclass(frozen=True)
class Pairing:
    """What two checkpoints have in common, and what not."""

    tuned: Checkpoint
    base: Checkpoint
    models: tuple[Model, ...]
    pairs: tuple[Pair, ...]
    """In the order in which the tuned checkpoint's files hold them."""
    reshaped: tuple[Reshaped, ...] = ()
    added: Mapping[str, str] = field(default_factory=dict)
    """Parameter's path → key, of what the tuned checkpoint alone has."""
    missing: tuple[str, ...] = ()
    """Keys of what the base alone has."""
    notes: tuple[str, ...] = ()

    @property
    def single(self) -> bool:
        """Whether it is one model rather than parts of a pipeline."""
        return len(self.models) == 1 and not self.models[0].prefix

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """All modules of all parts by path."""
        for model in self.models:
            for path, module in model.skeleton.model.named_modules():
                if path:
                    yield model.prefix + path, module

    @property
    def part_word(self) -> str:
        """What files of pipelines call this one model ("unet"), "" where they know none such."""
        name = self.models[0].skeleton.class_name or ""
        guessed = "transformer" if self.models[0].part.library == "diffusers" and "Transformer" in name else ""
        return _CLASS_PARTS.get(name, guessed)


def pair_checkpoints(tuned: Checkpoint, base: Checkpoint) -> Pairing:
    """Match the tensors of two checkpoints; none is read.

    Raises FormatError where they are models of different kinds or sizes, or hold quantised weights.
    """
    parts, notes = _parts(tuned, base)
    matchers = [_Matcher(name, one, other) for name, one, other in parts]
    order = {name: at for at, name in enumerate(name for names in tuned.shards.values() for name in names)}
    pairs = sorted((pair for matcher in matchers for pair in matcher.pairs), key=lambda pair: order[pair.tuned])
    reshaped = [entry for matcher in matchers for entry in matcher.reshaped]
    _check_alike(tuned, base, pairs, reshaped)
    return Pairing(
        tuned,
        base,
        tuple(matcher.model for matcher in matchers),
        tuple(pairs),
        tuple(reshaped),
        {path: key for matcher in matchers for path, key in matcher.added.items()},
        tuple(key for matcher in matchers for key in matcher.missing),
        tuple([*notes, *(note for matcher in matchers for note in matcher.notes)]),
    )


# -- parts --------------------------------------------------------------------------------------------


def _parts(tuned: Checkpoint, base: Checkpoint) -> tuple[list[tuple[str, Part, Part]], list[str]]:
    """(prefix, part, base's part) of every model that both have, and what is to be said of the others."""
    if (tuned.form == "pipeline") != (base.form == "pipeline"):
        raise FormatError(
            f"{tuned.path} is {_form(tuned)} and {base.path} {_form(base)}: give two pipelines, or two models "
            "(of a pipeline its part's own folder)"
        )
    if tuned.form != "pipeline":
        return [("", _checked(tuned.parts[0], base.parts[0]), base.parts[0])], []
    known = {part.name: part for part in base.parts}
    shared = [
        (f"{part.name}.", _checked(part, known[part.name]), known[part.name])
        for part in tuned.parts
        if part.name in known
    ]
    if not shared:
        raise FormatError(f"{tuned.path} and {base.path} have no part of the same name")
    names = {part.name for part in tuned.parts}
    alone = [f"the {name} is in {tuned.path} alone" for name in sorted(names - set(known))]
    return shared, alone + [f"the {name} is in {base.path} alone" for name in sorted(set(known) - names)]


def _form(checkpoint: Checkpoint) -> str:
    return "a pipeline" if checkpoint.form == "pipeline" else "one model"


def _checked(tuned: Part, base: Part) -> Part:
    """The tuned part. Raises FormatError where its weights, or the base's, are no plain numbers or another model's."""
    for part in (tuned, base):
        method = part.config.get("quantization_config")
        if method:
            kind = method.get("quant_method", "quantised") if isinstance(method, dict) else "quantised"
            raise FormatError(
                f"{part.folder} holds {kind} weights, whose differences mean nothing: load it dequantised, "
                "save_pretrained(new_folder), and give the new folder"
            )
    kinds = [part.config.get("model_type") or part.config.get("_class_name") for part in (tuned, base)]
    if all(kinds) and kinds[0] != kinds[1]:
        raise FormatError(f"{tuned.folder} is a {kinds[0]} and {base.folder} a {kinds[1]}: different architectures")
    return tuned


def _check_alike(tuned: Checkpoint, base: Checkpoint, pairs: list[Pair], reshaped: list[Reshaped]) -> None:
    if not pairs and not reshaped:
        one, other = (", ".join(map(repr, list(checkpoint.tensors)[:2])) for checkpoint in (tuned, base))
        raise FormatError(
            f"{tuned.path} ({one} …) and {base.path} ({other} …) share no tensor's name: different architectures"
        )
    if len(reshaped) > len(pairs):
        first = reshaped[0]
        raise FormatError(
            f"{tuned.path} and {base.path} are models of different sizes: {len(reshaped)} of "
            f"{len(reshaped) + len(pairs)} tensors differ in shape, e.g. {first.path!r}, {first.shape} against "
            f"{first.base_shape}"
        )


# -- one part -----------------------------------------------------------------------------------------


class _Matcher:
    """The tensors of one model in two files."""

    def __init__(self, prefix: str, tuned: Part, base: Part) -> None:
        self.prefix, self.tuned, self.base = prefix, tuned, base
        self.notes: list[str] = []
        self.pairs: list[Pair] = []
        self.reshaped: list[Reshaped] = []
        self.added: dict[str, str] = {}
        skeleton, other = self._skeletons()
        self.model = Model(prefix, skeleton, tuned, base)
        self._kinds = dict(_kinds(skeleton.model))
        self._users = _users(skeleton.model)
        self._used: set[str] = set()
        self._match(skeleton, other)
        self.missing = [base.prefix + key for key in base.tensors if key not in self._used]

    def _skeletons(self) -> tuple[Skeleton, Skeleton]:
        """The tuned model with its own keys, and with the base's."""
        told = self.tuned if self.tuned.library else self.base
        if told.library:
            one, other = (
                class_skeleton(told.config, told.class_name, told.library, part.tensors)
                for part in (self.tuned, self.base)
            )
            if one is not None and other is not None and _known(one, self.tuned):
                return one, other
        self.notes.append(
            f"the class of {self.tuned.folder or self.tuned.files[0]} is not known: what its tensors are is told "
            "by their names and shapes"
        )
        lookups = frozenset(key.removesuffix(".weight") for key in self.tuned.tensors if _like_embedding(key))
        model = key_skeleton(self.tuned.tensors, Hints(lookups=lookups)).model
        return Skeleton(model, {key: key for key in self.tuned.tensors}), Skeleton(model, self._by_name())

    def _by_name(self) -> dict[str, str]:
        """Tuned key → the base's: the same, or one of them with a word more in front."""
        words = {key.partition(".")[0] for key in self.base.tensors}
        found: dict[str, str] = {}
        for key in self.tuned.tensors:
            spellings = (key, key.partition(".")[2], *(f"{word}.{key}" for word in words))
            match = next((name for name in spellings if name in self.base.tensors), None)
            if match is not None:
                found[key] = match
        return found

    def _match(self, skeleton: Skeleton, other: Skeleton) -> None:
        paths = {key: path for path, key in reversed(list(skeleton.keys.items()))}  # the first path of a shared tensor
        fused = {key for keys in skeleton.fused.values() for key in keys}
        for key in self.tuned.tensors:
            path = paths.get(key)
            match = key if path is None or key in fused else other.keys.get(path)
            if match is None or match not in self.base.tensors:
                self.added[self.prefix + (path or key)] = self.tuned.prefix + key
                continue
            self._used.add(match)
            self._add(key, match, path)

    def _add(self, key: str, match: str, path: str | None) -> None:
        shape, base_shape = self.tuned.tensors.shape(key), self.base.tensors.shape(match)
        full = self.prefix + (path or key)
        if shape != base_shape:
            self.reshaped.append(Reshaped(full, self.tuned.prefix + key, shape, base_shape))
            return
        kind, groups = self._kinds.get(path or "", (None, 1))
        users = tuple(self.prefix + user for user in self._users.get(path or "", ()))
        keys = (self.tuned.prefix + key, self.base.prefix + match)
        self.pairs.append(Pair(full, *keys, shape, kind, groups, users, path is not None))


def _known(skeleton: Skeleton, part: Part) -> bool:
    """Whether the class is the file's: most of its tensors have a place in it."""
    placed = set(skeleton.keys.values()) | {key for keys in skeleton.fused.values() for key in keys}
    return sum(key in placed for key in part.tensors) * 2 > len(part.tensors)


def _like_embedding(key: str) -> bool:
    module = key.removesuffix(".weight").rpartition(".")[2].lower()
    return key.endswith(".weight") and any(word in module for word in _EMBEDDING_WORDS)


def _kinds(model: nn.Module) -> Iterator[tuple[str, tuple[str, int]]]:
    """Path of every weight whose layer takes an update on its output → its kind, and its groups."""
    inside = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        for name, _ in module.named_modules()
        if name
    }
    for path, module in model.named_modules(remove_duplicate=False):
        kind = layer_kind(module)
        plain = kind in KINDS and module._parameters.get("weight") is not None
        if kind is not None and plain and path not in inside and getattr(module, "max_norm", None) is None:
            yield f"{path}.weight".lstrip("."), (kind, int(getattr(module, "groups", 1)))


def _users(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Parameter's path → all other paths of the same parameter."""
    same: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        same.setdefault(id(parameter), []).append(path)
    return {path: tuple(p for p in paths if p != path) for paths in same.values() if len(paths) > 1 for path in paths}


def shortened(names: Iterable[str]) -> str:
    """Some names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _MOST} more" if len(listed) > _MOST else ""
    return ", ".join(map(repr, listed[:_MOST])) + more
