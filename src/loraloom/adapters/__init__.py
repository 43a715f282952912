"""Low-rank adapters for any `nn.Module`: a library of its own, on torch and safetensors alone.

    adapters = attach(model, rank=8)              # freeze the base, add an adapter
    ... train adapters.parameters() ...
    adapters.activate({"default": 0.7})           # turn its weight
    adapters.merge(); adapters.unmerge()          # fold it in, and have every bit back

`spec` settings → `targets` and `plan` what they mean on a model → `adapterset` the adapters of a model →
`layers` the layers that carry them → `functional` the mathematics of a linear layer.
"""

from loraloom.adapters.adapterset import AdapterSet, tensor_faults
from loraloom.adapters.functional import fused_linear, plain_linear
from loraloom.adapters.module import LoRA, adapters_of, attach
from loraloom.adapters.plan import AttachPlan, plan_attach
from loraloom.adapters.site import Copied, Site
from loraloom.adapters.spec import AdapterSpec

__all__ = [
    "AdapterSet",
    "AdapterSpec",
    "AttachPlan",
    "Copied",
    "LoRA",
    "Site",
    "adapters_of",
    "attach",
    "fused_linear",
    "plain_linear",
    "plan_attach",
    "tensor_faults",
]
