"""What of a difference no low-rank update can carry, and which modules carry it whole instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from loraloom.compose.extract.pairing import Pair, Pairing, shortened
from loraloom.compose.extract.report import NewTensor
from loraloom.errors import ConfigError

Shape = tuple[int, ...]
UNTARGETED = "not among the targets"


@dataclass(frozen=True)
class Kept:
    """What the adapter carries whole."""

    heads: tuple[str, ...] = ()
    """Modules that are carried whole (PEFT's `modules_to_save`)."""
    biases: tuple[str, ...] = ()
    """Changed biases of layers that carry updates; the file then has those of all of them."""

    def __bool__(self) -> bool:
        return bool(self.heads or self.biases)

    def covers(self, path: str) -> bool:
        """Whether a module or parameter lies in one that is carried whole."""
        return any(path == head or path.startswith(f"{head}.") for head in self.heads)

    def holds(self, parameter: str) -> bool:
        """Whether a parameter is in the adapter whole."""
        return parameter in self.biases or self.covers(parameter)


class Keeper:
    """Collects what changed and takes no factors. Raises ConfigError where a pipeline is to carry such things."""

    def __init__(self, pairing: Pairing, keep: bool, chosen: Mapping[str, Pair], keep_heads: bool = False) -> None:
        if keep and not pairing.single:
            raise ConfigError("--keep-others needs one model: adapters of a pipeline have no word for it")
        self.pairing, self.keep, self.chosen = pairing, keep, chosen
        self.keep_heads = (keep or keep_heads) and pairing.single
        self.modules = dict(pairing.modules())
        self.layers = {pair.module for pair in pairing.pairs if pair.kind is not None}
        self.notes: list[str] = []
        self._heads: list[str] = []
        self._biases: list[str] = []
        self.new: dict[str, tuple[Shape, Shape | None]] = {
            **{entry.path: (entry.shape, entry.base_shape) for entry in pairing.reshaped},
            **{path: (pairing.tuned.tensors.shape(key), None) for path, key in pairing.added.items()},
        }
        """Path → its shape, and the base's, of what the base does not have or has in another shape."""
        self._take_new()

    # -- what changed -------------------------------------------------------------------------------

    def changed(self, pair: Pair) -> str:
        """Note a changed tensor that gets no factors, and say why it gets none."""
        if not pair.in_class:
            return "no parameter of the model by itself"
        if pair.kind is not None and pair.module not in self.chosen:
            return f"{_a(pair.kind)} {UNTARGETED}" if pair.kind == "embedding" else UNTARGETED
        if pair.name == "bias" and pair.module in self.layers:
            return self._bias(pair)
        reason = self._reason(pair)
        if self.keep and not self._is_buffer(pair):
            self._carry(pair.module, pair.path)
        return reason

    def _bias(self, pair: Pair) -> str:
        if pair.module not in self.chosen:
            return f"a bias of a layer that is {UNTARGETED}"
        if self.keep:
            self._biases.append(pair.path)
        return "a bias"

    def _reason(self, pair: Pair) -> str:
        if pair.kind is not None:
            return f"a convolution of {pair.groups} groups, which takes no lower rank"
        if self._is_buffer(pair):
            return "a buffer"
        name = type(self.modules.get(pair.module)).__name__
        if "norm" in name.lower() or "norm" in pair.module.rpartition(".")[2].lower():
            return "a norm"
        return "a bias" if pair.name.endswith("bias") else "a parameter that is no layer's weight"

    def _is_buffer(self, pair: Pair) -> bool:
        module = self.modules.get(pair.module)
        return module is not None and pair.name in module._buffers

    def _carry(self, module: str, parameter: str) -> None:
        """Carry a module whole, unless that is the model itself or holds its blocks."""
        found = self.modules.get(module)
        if found is None or any(isinstance(child, nn.ModuleList) for child in found.modules()):
            self.notes.append(f"{parameter!r} cannot be carried: its module holds much of the model besides")
        elif module not in self._heads:
            self._heads.append(module)

    # -- what is new --------------------------------------------------------------------------------

    def _take_new(self) -> None:
        if not self.new:
            return
        if not self.keep_heads:
            told = "; --keep-others carries it whole" if self.pairing.single and not self.keep else ""
            self.notes.append(f"the base does not have {shortened(self.new)}, or not in this shape{told}")
            return
        for path in self.new:
            head = self._topmost(path.rpartition(".")[0])
            if head is None:
                self.notes.append(f"{path!r} is new and in no module of the tuned model's class: it is not carried")
            elif head not in self._heads:
                self._heads.append(head)
        self._heads += [user for user in self._users_of_new() if user not in self._heads]

    def _topmost(self, module: str) -> str | None:
        """The largest module around this one of which the base has nothing in this shape."""
        if module not in self.modules:
            return None
        parent = module.rpartition(".")[0]
        known = (pair.path for pair in self.pairing.pairs)
        if not parent or any(path.startswith(f"{parent}.") for path in known):
            return module
        return self._topmost(parent)

    def _users_of_new(self) -> Iterable[str]:
        """Modules that use a new tensor under another name: an output head tied to resized embeddings."""
        owners: dict[int, str] = {}
        for path, module in self.modules.items():
            for name, parameter in module._parameters.items():
                if parameter is not None and f"{path}.{name}" in self.new:
                    owners[id(parameter)] = path
        for path, module in self.modules.items():
            if any(owners.get(id(one), path) != path for one in module._parameters.values() if one is not None):
                yield path

    # -- result -------------------------------------------------------------------------------------

    def kept(self) -> Kept:
        """What is to be carried whole; a module inside another that is goes with it."""
        heads = [head for head in self._heads if not any(head.startswith(f"{other}.") for other in self._heads)]
        whole = Kept(tuple(heads))
        return Kept(tuple(heads), tuple(path for path in self._biases if not whole.covers(path)))

    def new_tensors(self, kept: Kept) -> tuple[NewTensor, ...]:
        """What is new, for the report."""
        return tuple(
            NewTensor(path, shape, base_shape, kept.holds(path)) for path, (shape, base_shape) in self.new.items()
        )


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
