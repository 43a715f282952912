"""Which number format the base model is held in, and which one is computed with."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from loraloom.errors import ConfigError


@dataclass(frozen=True)
class Precision:
    """The number formats of one run; adapters and heads are always trained in float32."""

    name: str
    """"fp32" or "bf16", as run.json and the command line say it."""
    base: torch.dtype
    """Of the base model's weights."""
    autocast: torch.dtype | None
    """What full fine-tuning computes in over its float32 weights; None leaves it at float32."""

    def computing(self, device: torch.device) -> AbstractContextManager[object]:
        """The context in which the model is called."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.autocast)


def has_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 matrices itself; emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    # Having AVX-512 alone lets oneDNN take bfloat16 and emulate it: only these two compute in it.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(native and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def resolve_precision(setting: str, method: str, device: torch.device) -> Precision:
    """The formats that `setting` ("auto", "fp32", "bf16") means for `method` on `device`.

    Full fine-tuning keeps float32 weights in any case, since steps of AdamW are lost in bfloat16's eight
    bits; "auto" leaves it at float32 altogether. Raises ConfigError for bf16 where it is not to be had.
    """
    if setting == "bf16" and device.type == "mps":
        raise ConfigError(f"precision: 'bf16' is not supported on {device.type}; take 'fp32' or 'auto'")
    wanted = setting == "bf16" or (setting == "auto" and method == "lora" and has_bf16(device))
    if not wanted:
        return Precision("fp32", torch.float32, None)
    if method == "full":
        return Precision("bf16", torch.float32, torch.bfloat16)
    return Precision("bf16", torch.bfloat16, None)
