"""Microsoft's loralib: `<path>.lora_A` and `.lora_B` as bare parameters, with no alpha in the file.

Its scale is `lora_alpha / r`, both set in the program that made the file, so that alpha has to be told. Files written
here have the scale folded into B and say so in their header; load them into layers with `lora_alpha = r`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from loraloom.errors import FormatError, one_error
from loraloom.formats.diffusers_write import folded
from loraloom.formats.updates import Update, in_dtype

HEADER = "loralib"
FOLDED = "lora_alpha=r"
"""What the header says under `HEADER` where the scale is folded in."""
_MOST_PARTS = 64
_EMBEDDING = re.compile(r"(?:.*\.)?(?:\w*embed(?!der)\w*|wte|wpe|shared)")


def loralib_update(path: str, tensors: Mapping[str, Tensor], module: nn.Module | None, alpha: float | None) -> Update:
    """The update of one layer; without its module a pair of matrices is taken for a linear layer's.

    An alpha of None means a scale of 1. Raises ValueError for what cannot be told from the file.
    """
    missing = [f"lora_{role}" for role in "AB" if role not in tensors]
    if missing:
        raise ValueError(f"it has no {missing[0]}")
    a, b = tensors["A"], tensors["B"]
    if a.dim() != 2 or b.dim() != 2 or not a.numel() or not b.numel():
        raise ValueError(f"its factors have shapes {tuple(a.shape)} and {tuple(b.shape)}, expected matrices")
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        a, b, rank = _convolution(a, b, module)
    elif b.shape[1] != a.shape[0]:
        a, b, rank = _merged(a, b, module)
    else:
        rank = int(a.shape[0])
    lookup = isinstance(module, nn.Embedding) or (module is None and _EMBEDDING.fullmatch(path) is not None)
    scale = 1.0 if alpha is None else alpha / rank
    return Update(path, a, b if scale > 0 else -b, abs(scale) * a.shape[0], lookup)


def _convolution(a: Tensor, b: Tensor, module: nn.Module) -> tuple[Tensor, Tensor, int]:
    """ΔW is B (out·k, r·k) · A (r·k, in·k) read row by row as the weight (out, in, k, k).

    So the k rows of B of one output channel, side by side, multiply k copies of A on a diagonal: rank r·k², exactly.
    """
    weight = module.get_parameter("weight")
    size = int(weight.shape[-1])
    rows, columns = int(weight.shape[0]) * size, int(weight.shape[1]) * size
    if weight.dim() != 4 or weight.shape[2] != size or b.shape != (rows, a.shape[0]) or a.shape[1] != columns:
        raise ValueError(
            f"its factors have shapes {tuple(a.shape)} and {tuple(b.shape)}, not for {tuple(weight.shape)}"
        )
    wide_b = b.reshape(weight.shape[0], size * a.shape[0], 1, 1)
    wide_a = _diagonal([a] * size)
    return wide_a.reshape(-1, *weight.shape[1:]), wide_b, int(a.shape[0]) // size


def _merged(a: Tensor, b: Tensor, module: nn.Module | None) -> tuple[Tensor, Tensor, int]:
    """A fused query-key-value layer: A (r·n, in), B (out, r), one block of each per part."""
    rank, rest = int(b.shape[1]), int(a.shape[0]) % int(b.shape[1])
    count = int(a.shape[0]) // rank
    weight = None if module is None else module._parameters.get("weight")
    if rest or count < 2 or b.shape[0] % count:
        raise ValueError(f"its factors have shapes {tuple(a.shape)} and {tuple(b.shape)}, which do not fit each other")
    if weight is None:
        raise ValueError("it is loralib's MergedLinear: which of its parts are adapted can be told on its base alone")
    if count > _MOST_PARTS:
        raise ValueError(f"it would be loralib's MergedLinear of {count} parts, and at most {_MOST_PARTS} are read")
    if b.shape[0] not in weight.shape:
        parts = next((size * count // b.shape[0] for size in weight.shape if size * count % b.shape[0] == 0), None)
        told = f"{count} of its {parts} parts" if parts else "some of its parts"
        raise ValueError(f"it is loralib's MergedLinear with {told} adapted, and the file does not say which ones")
    return a, _diagonal(b.chunk(count)), rank


def _diagonal(blocks: Sequence[Tensor]) -> Tensor:
    joined: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return joined


def loralib_tensors(updates: Iterable[Update], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Every tensor by its key, the scale folded into B. Raises FormatError naming what loralib has no layer for."""
    listed = [folded(update) for update in updates]
    faults = [f"{u.path!r} is a convolution, whose factors loralib packs otherwise" for u in listed if u.a.dim() > 2]
    faults += [f"{u.path!r} has a bias behind its factors, which loralib has not" for u in listed if u.bias is not None]
    faults += [f"{u.path!r} is DoRA, for which loralib has no layer" for u in listed if u.magnitude is not None]
    if faults:
        raise one_error(FormatError, "this cannot be held by a loralib file", faults)
    written = [update if dtype is None else in_dtype(update, dtype) for update in listed]
    return {f"{u.path}.lora_{role}": t.contiguous() for u in written for role, t in (("A", u.a), ("B", u.b))}
