"""The set of adapters on one model: who is there, who acts and with what weight, and who trains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loraloom.adapters.functional import Gate
from loraloom.adapters.layers.base import Choice, Signature
from loraloom.adapters.merging import Merge
from loraloom.adapters.placement import Placed, Placement
from loraloom.adapters.plan import AttachPlan, plan_attach
from loraloom.adapters.spec import AdapterSpec
from loraloom.errors import ConfigError, FormatError, one_error, suggest

Route = str | Mapping[str, float] | None


class Restore:
    """What a switch returns: ignore it, or use it in `with` to have the former state back at the end."""

    def __init__(self, undo: Callable[[], None]) -> None:
        self._undo = undo

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._undo()


class AdapterSet:
    """Every adapter of one model. `attach` makes it; `adapters_of(model)` finds it again.

    Switching, weighting and routing write a few numbers here, however many layers there are: layers read
    them at their next call. `activate`, `disable` and `route` hold from the call on, or within `with`:

    >>> adapters.activate({"poet": 0.7, "lawyer": 0.3})      # doctest: +SKIP
    >>> with adapters.disable(): base_output = model(x)       # doctest: +SKIP
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.version = 0
        self.active: dict[str, float] = {}
        """Adapter → weight of those that act; change it through `activate` and `set_weight`."""
        self.routes: tuple[Mapping[str, float], ...] | None = None
        self.head: str | None = None
        self.site_weights: dict[str, Mapping[str, float]] = {}
        """Adapter → factors per site on top of its weight; change it through `set_site_weights`."""
        self.fused = True
        """False computes every linear layer in the plain way (for per-sample gradients, or to compare)."""
        self._placement = Placement(model, self)
        self._gates: dict[Any, Gate] = {}
        self._choices: dict[Any, Choice | None] = {}
        self._training: bool | None = None
        self._merge: Merge | None = None
        self._before_merge: tuple[Any, Any, Any] = ({}, None, None)
        self._required_grad = {name for name, p in model.named_parameters() if _frozen(p)}

    # -- adding and removing ------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """The adapters, in the order they were added."""
        return list(self._placement.adapters)

    def spec(self, name: str) -> AdapterSpec:
        """The settings an adapter was made with."""
        return self._placement.adapters[self._known(name)].spec

    def plan(self, name: str) -> AttachPlan:
        """The sites and copies of an adapter."""
        return self._placement.adapters[self._known(name)].plan

    def add(
        self,
        name: str,
        spec: AdapterSpec | None = None,
        *,
        plan: AttachPlan | None = None,
        tensors: Mapping[str, Tensor] | None = None,
        **settings: Any,
    ) -> AttachPlan:
        """Add an adapter beside the others and make it the one that acts and trains.

        `plan` is applied as it is, where the sites are known already (from a file), instead of planning anew; `tensors`
        (as `tensors()` gives them) then fill it, and are its own from then on where they are of its dtype and device.
        Raises ConfigError for a name that is taken or cannot be one, TargetError where it does not fit, FormatError
        that names every tensor which does not.
        """
        if not name or not name.replace("-", "_").isidentifier():
            raise ConfigError(f"{name!r} cannot be the name of an adapter: use letters, digits, '_' and '-'")
        if name in self.names:
            raise ConfigError(f"an adapter named {name!r} is already attached; delete it first")
        self._refuse_if_merged("add an adapter")
        spec = spec or AdapterSpec.of(**settings)
        plan = plan or plan_attach(self.model, spec)
        if tensors is not None and (faults := tensor_faults(plan.shapes, tensors)):
            raise one_error(FormatError, f"the tensors do not fit adapter {name!r}", faults)
        for sentence in plan.warnings if tensors is None else ():  # what a file holds is no longer to be chosen
            warnings.warn(sentence, stacklevel=3)
        self._placement.place(name, Placed(spec, plan), tensors)
        self.activate(name)
        self.set_trainable(name)
        return plan

    def delete(self, name: str) -> None:
        """Remove an adapter and free its tensors."""
        self._refuse_if_merged("delete an adapter")
        self._placement.remove(self._known(name))
        self.routes = None
        self.active = {other: weight for other, weight in self.active.items() if other != name}
        self.head = None if self.head == name else self.head
        self.site_weights.pop(name, None)
        self._changed()

    def detach(self) -> nn.Module:
        """Take every adapter off: the model is what it was before `attach`, and is returned."""
        if self._merge is not None:
            self.unmerge()
        for name in self.names:
            self.delete(name)
        self._placement.open_shortcuts()
        self.unfreeze()
        return self.model

    def unfreeze(self) -> None:
        """Let the parameters of the base receive gradients that did so before."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self._required_grad)

    # -- who acts -----------------------------------------------------------------------------------

    def activate(self, which: str | Mapping[str, float], *, head: str | None = None) -> Restore:
        """Let one adapter act, or a weighted mix of several; the others rest.

        `head` names the adapter whose head is used where several have one. Raises ConfigError for an unknown
        adapter, a weight that is not finite, or heads to choose from and none chosen.
        """
        weights = {which: 1.0} if isinstance(which, str) else {name: float(w) for name, w in which.items()}
        self._check_mix(weights, head)
        self._refuse_if_merged("switch adapters")
        undo = self._undo()
        self.active, self.routes, self.head = weights, None, head
        self._changed()
        return undo

    def disable(self) -> Restore:
        """Let no adapter act: the model computes what its base computes."""
        return self.activate({})

    def set_weight(self, name: str, weight: float) -> None:
        """Turn the weight of one adapter, which joins the mix if it was not in it."""
        self.activate({**self.active, self._known(name): weight}, head=self.head)

    def set_site_weights(self, name: str, factors: Mapping[str, float] | None) -> None:
        """Factors on top of an adapter's weight, by site path or by the module of a copied bias; None takes them away.

        What is not named keeps 1; 0 leaves the adapter out there. They hold whenever the adapter acts, also merged or
        routed, and cost next to nothing to change: at every sampling step, say. Raises ConfigError for a path that is
        no site of the adapter's own, and for a factor that is not finite.
        """
        plan = self.plan(name)
        known = {site.path for site in plan.sites if site.shares is None} | {copied.module for copied in plan.copies}
        given = {path: float(factor) for path, factor in (factors or {}).items()}
        for path, factor in given.items():
            if path not in known:
                raise ConfigError(f"adapter {name!r} has no site {path!r} of its own{suggest(path, known)}")
            if not math.isfinite(factor):
                raise ConfigError(f"the factor of adapter {name!r} at {path!r} is {factor}: it must be finite")
        self._refuse_if_merged("change weights of sites")
        self.site_weights = {other: table for other, table in self.site_weights.items() if other != name}
        if given:
            self.site_weights[name] = given
        self._changed()

    def site_factor(self, name: str, path: str) -> float:
        """The factor that `set_site_weights` gave a site, 1 where it gave none."""
        return self.site_weights.get(name, {}).get(path, 1.0)

    def route(self, routes: Sequence[Route]) -> Restore:
        """Give every sample of the batch its own adapter, mix, or None for the base; one entry per row.

        Layers expect the batch along their first dimension and raise ValueError for another number of rows.
        """
        mixes: list[Mapping[str, float]] = []
        for route in routes:
            mix = {} if route is None else {route: 1.0} if isinstance(route, str) else dict(route)
            self._check_mix(mix, None)
            mixes.append(mix)
        self._refuse_if_merged("route samples")
        undo = self._undo()
        self.routes = tuple(mixes)
        self._changed()
        return undo

    def gate(self, signature: Signature, device: torch.device, dtype: torch.dtype) -> Gate:
        """weight × scale along the stacked rank axis (ΣR), one row per sample when routed; one for all layers alike."""
        key = (signature, device, dtype)
        gate = self._gates.get(key)
        if gate is None:
            with torch.inference_mode(False):  # one made while evaluating must serve in training too
                gate = self._gates[key] = self._make_gate(signature, device, dtype)
        return gate

    def _make_gate(self, signature: Signature, device: torch.device, dtype: torch.dtype) -> Gate:
        if self.routes is None:
            if len(signature) == 1:
                name, _, scale = signature[0]
                return float(self.active[name] * scale)
            row = [self.active[name] * scale for name, rank, scale in signature for _ in range(rank)]
            return torch.tensor(row, device=device, dtype=dtype)
        rows = [
            [route.get(name, 0.0) * scale for name, rank, scale in signature for _ in range(rank)]
            for route in self.routes
        ]
        return torch.tensor(rows, device=device, dtype=dtype)

    def choice(self, signature: Signature, device: torch.device) -> Choice | None:
        """Each sample's one adapter among those stacked, and its weight × scale; None where samples mix several."""
        key = (signature, device)
        if key not in self._choices:
            with torch.inference_mode(False):
                self._choices[key] = self._make_choice(signature, device)
        return self._choices[key]

    def _make_choice(self, signature: Signature, device: torch.device) -> Choice | None:
        routes = self.routes or ()
        columns = [[route.get(name, 0.0) * scale for name, _, scale in signature] for route in routes]
        if len({rank for _, rank, _ in signature}) != 1 or any(len(row) - row.count(0.0) > 1 for row in columns):
            return None
        scales = torch.tensor(columns, device=device, dtype=torch.float64)
        return scales.abs().argmax(1), scales

    def _undo(self) -> Restore:
        former = (self.active, self.routes, self.head)

        def back() -> None:
            if self._merge is None:
                self.active, self.routes, self.head = former
            else:  # what is folded in must not act twice
                self._before_merge = former
            self._changed()

        return Restore(back)

    def _changed(self) -> None:
        self.version += 1
        self._gates, self._choices = {}, {}

    def _check_mix(self, weights: Mapping[str, float], head: str | None) -> None:
        for name, weight in weights.items():
            self._known(name)
            if not math.isfinite(weight):
                raise ConfigError(f"the weight of adapter {name!r} is {weight}: it must be finite")
        self._check_heads(list(weights), head)

    def _check_heads(self, names: list[str], head: str | None) -> None:
        """Heads are not mixed: where several acting adapters have one of the same module, one must be chosen."""
        if head is not None and head not in names:
            raise ConfigError(f"head={head!r} is not one of the acting adapters ({', '.join(names)})")
        owners: dict[str, str] = {}
        for name in names if head is None else []:
            for copied in self.plan(name).copies:
                if copied.role == "head" and owners.setdefault(copied.module, name) != name:
                    raise ConfigError(
                        f"adapters {owners[copied.module]!r} and {name!r} each have a head {copied.module!r}, and "
                        f"heads are not mixed: choose with activate(…, head={name!r})"
                    )

    # -- training -----------------------------------------------------------------------------------

    def set_trainable(self, *names: str) -> None:
        """Let these adapters' parameters, and no others of the model, receive gradients."""
        wanted = {id(parameter) for name in names for parameter in self.parameters(name)}
        for parameter in self.model.parameters():
            parameter.requires_grad_(id(parameter) in wanted)

    def training_mode(self, on: bool | None) -> None:
        """Switch adapter dropout on or off by itself; None lets each layer's own `training` decide."""
        self._training = on
        self._changed()

    def drops(self, module: nn.Module) -> bool:
        return module.training if self._training is None else self._training

    def dropout(self, name: str) -> float:
        return self._placement.adapters[name].spec.dropout

    def parameters(self, *names: str) -> Iterator[nn.Parameter]:
        """The parameters of these adapters, or of all."""
        for name in names or self.names:
            for _, parameter in self.named_parameters(name):
                yield parameter

    def named_parameters(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """(path|role, parameter) of one adapter; role is "A", "B", "bias" or "head"."""
        for key, _, parameter in self._placement.entries(self._known(name)):
            yield key, parameter

    def parameters_by_role(self, name: str) -> dict[str, list[nn.Parameter]]:
        """The parameters of one adapter as {"A": …, "B": …, "bias": …, "head": …}, for separate learning rates."""
        roles: dict[str, list[nn.Parameter]] = {"A": [], "B": [], "bias": [], "head": []}
        for _, role, parameter in self._placement.entries(self._known(name)):
            roles[role].append(parameter)
        return roles

    def num_parameters(self, name: str) -> int:
        """How many numbers of an adapter train."""
        return self.plan(name).size

    # -- tensors ------------------------------------------------------------------------------------

    def tensors(self, name: str) -> dict[str, Tensor]:
        """All tensors of one adapter by "<path>|<role>", detached but not copied."""
        return {key: parameter.detach() for key, parameter in self.named_parameters(name)}

    def load_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Fill an adapter with tensors as `tensors` gives them; nothing changes unless all of them fit.

        Raises FormatError that names every tensor that is missing, left over, misshapen or not finite.
        """
        own = dict(self.named_parameters(name))
        faults = tensor_faults({key: tuple(parameter.shape) for key, parameter in own.items()}, tensors)
        if faults:
            raise one_error(FormatError, f"the tensors do not fit adapter {name!r}", faults)
        with torch.no_grad():
            for key, parameter in own.items():
                parameter.copy_(tensors[key])

    def delta(self, name: str, path: str) -> Tensor:
        """ΔW of an adapter at a site, in the base weight's shape; float32, or float64 over a float64 base."""
        site = next((site for site in self.plan(name).sites if site.path == path), None)
        if site is None:
            known = [site.path for site in self.plan(name).sites]
            raise ConfigError(f"adapter {name!r} has no site {path!r}{suggest(path, known)}")
        return self._placement.delta(name, site)

    # -- merging ------------------------------------------------------------------------------------

    @property
    def merged(self) -> Mapping[str, float]:
        """Adapter → weight of what is folded into the base now."""
        return {} if self._merge is None else self._merge.weights

    def merge(self, which: str | Mapping[str, float] | None = None) -> None:
        """Fold adapters into the base weights (None: those that act, as weighted); layers then run as the base.

        A second call with the same adapters does nothing. Raises ConfigError where a site cannot be merged, or
        where samples are routed and no adapter is named, and then nothing is changed.
        """
        if which is None and self.routes is not None:
            raise ConfigError("samples are routed to adapters of their own: name the adapters to merge")
        weights = self.active if which is None else {which: 1.0} if isinstance(which, str) else dict(which)
        if self._merge is not None:
            if which is None or self._merge.weights == weights:
                return
            self._refuse_if_merged("merge other adapters")
        self._check_mix(weights, self.head if self.head in weights else None)
        merge = Merge.of(self._placement, dict(weights), self.head, self.site_factor)
        former = (self.active, self.routes, self.head)
        merge.apply()
        self._merge, self._before_merge = merge, former
        self.active, self.routes, self.head = {}, None, None
        self._changed()

    def unmerge(self) -> None:
        """Take merged adapters out again: every bit of the base is back, and the adapters act as before."""
        if self._merge is None:
            return
        self._merge.undo()
        self._merge = None
        self.active, self.routes, self.head = self._before_merge
        self._changed()

    def _refuse_if_merged(self, what: str) -> None:
        if self._merge is not None:
            raise ConfigError(f"cannot {what} while {', '.join(self._merge.weights)} is merged: call unmerge() first")

    def _known(self, name: str) -> str:
        if name not in self._placement.adapters:
            have = f"there are {', '.join(self.names)}" if self.names else "there is none"
            raise ConfigError(f"no adapter named {name!r} is attached ({have}){suggest(name, self.names)}")
        return name


def _frozen(parameter: nn.Parameter) -> bool:
    """Whether a parameter, which no longer asks for a gradient, did so."""
    required = parameter.requires_grad
    parameter.requires_grad_(False)
    return required


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has no NaN and no infinity.

    A sum is finite only where all numbers are, and takes a tenth of the time; large numbers can overflow it.
    """
    if not tensor.is_floating_point():
        return True
    return math.isfinite(tensor.sum()) or bool(torch.isfinite(tensor).all())


def tensor_faults(expected: Mapping[str, Sequence[int]], found: Mapping[str, Tensor]) -> list[str]:
    """One sentence per tensor that is missing, left over, misshapen or not finite."""
    faults = [f"missing tensor {key!r} of shape {tuple(shape)}" for key, shape in expected.items() if key not in found]
    for key, tensor in found.items():
        if key not in expected:
            faults.append(f"tensor {key!r} of shape {tuple(tensor.shape)} belongs to nothing{suggest(key, expected)}")
        elif tuple(tensor.shape) != tuple(expected[key]):
            faults.append(f"tensor {key!r} has shape {tuple(tensor.shape)}, expected {tuple(expected[key])}")
        elif not is_finite(tensor):
            faults.append(f"tensor {key!r} holds values that are not finite")
    return faults
