"""One table of cases, layer kind × option × dtype, that every invariant runs over."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loraloom.adapters import AdapterSet, attach

BATCH = 3
FLOAT64, FLOAT32, BF16 = torch.float64, torch.float32, torch.bfloat16


@dataclass(frozen=True)
class Case:
    """A base model, what to attach to it, and a batch to run it on."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    """Of one sample; the batch comes before it."""
    settings: dict[str, Any] = field(default_factory=dict)
    tokens: int = 0
    """Above 0: the samples are token ids below this number."""
    mixes: bool = True
    """Whether the output is linear in the weights of the adapters."""
    routes: bool = True
    dtype: torch.dtype = FLOAT64

    def __str__(self) -> str:
        return f"{self.name}-{str(self.dtype).removeprefix('torch.')}"

    def model(self, seed: int = 0) -> nn.Module:
        """The base model, the same at each call, in evaluation mode; its weights use all the bits of their dtype."""
        torch.manual_seed(seed)
        torch.set_default_dtype(FLOAT64)
        try:
            return self.build().to(self.dtype).eval()
        finally:
            torch.set_default_dtype(FLOAT32)

    def batch(self, seed: int = 1, rows: int = BATCH) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if self.tokens:
            return torch.randint(self.tokens, (rows, *self.shape), generator=generator)
        return torch.randn(rows, *self.shape, generator=generator, dtype=FLOAT64).to(self.dtype)

    @property
    def factor_dtype(self) -> torch.dtype:
        """Float64 over a float64 base, so that sums are exact to 1e-12; float32 over any other."""
        return FLOAT64 if self.dtype is FLOAT64 else FLOAT32

    def attach(self, model: nn.Module, *names: str, shaken: bool = False, **other: Any) -> AdapterSet:
        """Attach one adapter per name ("default" if none); `shaken` gives them random tensors."""
        settings = {"rank": 4, "dtype": self.factor_dtype, **self.settings, **other}
        for seed, name in enumerate(names or ("default",)):
            adapters = attach(model, name=name, **{"seed": seed, **settings})
            if shaken:
                shake(adapters, name, seed)
        return adapters


def shake(adapters: AdapterSet, name: str, seed: int = 0) -> None:
    """Random values in every tensor of an adapter, as if it were trained."""
    generator = torch.Generator().manual_seed(100 + seed)
    with torch.no_grad():
        for parameter in adapters.parameters(name):
            noise = torch.randn(parameter.shape, generator=generator, dtype=FLOAT64).to(parameter.dtype)
            parameter.add_(noise / 2)


# -- models --------------------------------------------------------------------------------------------


def net(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def two_linear(bias: bool = True) -> nn.Module:
    return net(first=nn.Linear(6, 5, bias=bias), act=nn.Tanh(), second=nn.Linear(5, 4, bias=bias))


def classifier(nested: bool = False) -> nn.Module:
    head = net(dense=nn.Linear(5, 5), act=nn.Tanh(), out=nn.Linear(5, 2)) if nested else nn.Linear(5, 2)
    return net(body=nn.Linear(6, 5), act=nn.Tanh(), classifier=head)


def conv(dims: int, channels: int = 4, out: int = 6, **options: Any) -> Callable[[], nn.Module]:
    layer = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    return lambda: net(conv=layer(channels, out, 3, **options))


class SelfAttention(nn.Module):
    """Batch first from outside, whatever the attention inside wants; with a causal mask."""

    def __init__(self, causal: bool = False, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **options)
        self.causal = causal
        self.sides = (self.attention.kdim, self.attention.vdim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = x, x[..., : self.sides[0]], x[..., : self.sides[1]]
        if not self.attention.batch_first:
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1) if self.causal else None
        padding = torch.zeros(x.shape[:2], dtype=torch.bool)
        padding[:, -1] = x[:, 0, 0] > 0
        y, weights = self.attention(query, key, value, key_padding_mask=padding, attn_mask=mask)
        y = y if self.attention.batch_first else y.transpose(0, 1)
        return torch.cat([y, weights], dim=-1)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


class Projection(nn.Module):
    """A raw matrix in a module's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w.t()


class Experts(nn.Module):
    """Expert weights (E, O, D), or (E, D, O) where `is_transposed`; every expert is used, by a fixed share."""

    def __init__(self, is_transposed: bool) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        self.w = nn.Parameter(torch.randn(3, 6, 5) if is_transposed else torch.randn(3, 5, 6))

    def forward(self, x: Tensor) -> Tensor:
        shares = torch.softmax(x[..., :3], dim=-1)
        return torch.einsum("btd,edo,bte->bto" if self.is_transposed else "btd,eod,bte->bto", x, self.w, shares)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lstm(x)[0]
        return y


class TiedLanguageModel(nn.Module):
    """The output layer uses the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.lm_head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.lm_head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.lm_head(torch.tanh(self.tokens(ids)))
        return y


class TiedLinear(nn.Module):
    """Two linear layers, or a linear one and a transposed one, with one weight between them."""

    def __init__(self, turned: bool = False) -> None:
        super().__init__()
        self.up = nn.Linear(6, 6)
        self.down = Conv1D(6, 6) if turned else nn.Linear(6, 6)
        self.down.weight = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(torch.tanh(self.up(x)))
        return y


def shared_module() -> nn.Module:
    layer = nn.Linear(6, 6)
    return net(one=layer, act=nn.Tanh(), two=layer)


# -- the table -----------------------------------------------------------------------------------------

_ATTENTION = {"shape": (5, 8), "mixes": False}
_CASES = (
    Case("linear", two_linear, (6,), mixes=False),
    Case("linear-no-bias", lambda: two_linear(bias=False), (3, 6), mixes=False),
    Case("linear-alone", lambda: net(only=nn.Linear(6, 5)), (2, 3, 6)),
    Case("linear-rslora", lambda: net(only=nn.Linear(6, 5)), (6,), {"scaling": "rslora", "alpha": 3.0}),
    Case(
        "linear-patterns",
        two_linear,
        (6,),
        {"rank_pattern": {"second": 2}, "alpha_pattern": {"first": 1.5}},
        mixes=False,
    ),
    Case("linear-bias-adapted", lambda: net(only=nn.Linear(6, 5)), (3, 6), {"bias": "adapted"}),
    Case(
        "linear-bias-all",
        lambda: net(first=nn.Linear(6, 5), norm=nn.LayerNorm(5), second=nn.Linear(5, 4)),
        (3, 6),
        {"targets": "first", "bias": "all"},
        mixes=False,
    ),
    Case("linear-dropout", two_linear, (6,), {"dropout": 0.3}, mixes=False),
    Case("shared-module", shared_module, (6,), {"targets": "two"}, mixes=False),
    Case("conv1d", conv(1), (4, 8), {"targets": "conv"}),
    Case("conv1d-same", conv(1, padding="same", dilation=2, bias=False), (4, 8), {"targets": "conv"}),
    Case("conv1d-bias", conv(1, groups=2), (4, 8), {"targets": "conv", "bias": "adapted", "dropout": 0.1}),
    Case("conv2d", conv(2, stride=2, padding=1), (4, 6, 6), {"targets": "conv"}),
    Case("conv2d-groups", conv(2, groups=2), (4, 6, 6), {"targets": "conv"}),
    Case("conv2d-depthwise", conv(2, out=4, groups=4), (4, 6, 6), {"targets": "conv"}),
    Case("conv2d-reflect", conv(2, padding=2, padding_mode="reflect"), (4, 5, 6), {"targets": "conv"}),
    Case("conv2d-circular", conv(2, padding=1, padding_mode="circular"), (4, 5, 6), {"targets": "conv"}),
    Case(
        "conv2d-replicate-same",
        conv(2, padding="same", dilation=2, padding_mode="replicate"),
        (4, 6, 6),
        {"targets": "conv"},
    ),
    Case("conv3d", conv(3, groups=2, dilation=(1, 2, 1)), (4, 4, 6, 4), {"targets": "conv"}),
    Case("embedding", lambda: net(tokens=nn.Embedding(9, 6)), (5,), {"targets": "tokens"}, tokens=9),
    Case(
        "embedding-padding",
        lambda: net(tokens=nn.Embedding(9, 6, padding_idx=2)),
        (5,),
        {"targets": "tokens", "dropout": 0.2},
        tokens=9,
    ),
    Case("transposed", lambda: net(only=Conv1D(5, 6)), (3, 6)),
    Case("transposed-bias", lambda: net(only=Conv1D(5, 6)), (3, 6), {"bias": "adapted"}),
    Case("attention", SelfAttention, **_ATTENTION),
    Case("attention-causal", lambda: SelfAttention(causal=True, batch_first=True), **_ATTENTION),
    Case("attention-square", lambda: SelfAttention(causal=True), (BATCH, 8), mixes=False),
    Case("attention-sides", lambda: SelfAttention(kdim=6, vdim=5, batch_first=True), **_ATTENTION),
    Case("attention-bias", SelfAttention, settings={"bias": "all"}, **_ATTENTION),
    Case("attention-out", SelfAttention, settings={"targets": "out_proj", "bias": "adapted"}, **_ATTENTION),
    Case("encoder", encoder, **_ATTENTION),
    Case("matrix", lambda: net(own=Projection()), (3, 6), {"targets": (), "parameters": "own.w"}),
    Case("matrix-root", Projection, (3, 6), {"targets": (), "parameters": "w"}),
    Case("matrix-of-linear", lambda: net(only=nn.Linear(6, 5)), (6,), {"targets": (), "parameters": "*.weight"}),
    Case("matrix-lstm", Recurrent, (3, 6), {"targets": (), "parameters": "weight_*"}, mixes=False),
    Case("experts", lambda: Experts(False), (3, 6), {"targets": (), "parameters": "w"}, routes=True),
    Case("experts-turned", lambda: net(mlp=Experts(True)), (3, 6), {"targets": (), "parameters": "mlp.w"}),
    Case("head", classifier, (3, 6), {"heads": "classifier"}, mixes=False),
    Case("head-nested", lambda: classifier(nested=True), (6,), {"heads": "classifier"}, mixes=False),
    Case("head-alone", classifier, (6,), {"targets": (), "heads": "classifier", "bias": "all"}, mixes=False),
    Case("tied-embedding", TiedLanguageModel, (5,), {"targets": "tokens", "tied": "share"}, 9, mixes=False),
    Case("tied-head", TiedLanguageModel, (5,), {"targets": "lm_head", "tied": "share"}, 9, mixes=False),
    Case("tied-linear", TiedLinear, (6,), {"targets": "up", "tied": "share"}, mixes=False),
    Case("tied-turned", lambda: TiedLinear(turned=True), (6,), {"targets": "up", "tied": "share"}, mixes=False),
)

BY_NAME = {case.name: case for case in _CASES}
CASES = _CASES
"""Every case over a float64 base, where equalities can be held to 1e-12."""

_ONE_PER_KIND = ("linear", "linear-bias-all", "conv2d-groups", "embedding", "transposed", "attention", "encoder")
_ONE_PER_KIND += ("matrix", "experts", "head", "tied-embedding")


def _at(dtype: torch.dtype) -> Iterator[Case]:
    for name in _ONE_PER_KIND:
        yield replace(BY_NAME[name], dtype=dtype)


CASES_ALL_DTYPES = (*CASES, *_at(FLOAT32), *_at(BF16))
"""Also one case of each kind over a float32 and a bf16 base, with float32 factors."""


# -- comparing -----------------------------------------------------------------------------------------

EXACT = {"rtol": 1e-11, "atol": 1e-12}

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_case_and_dtype = pytest.mark.parametrize("case", CASES_ALL_DTYPES, ids=str)
linear_in_weights = pytest.mark.parametrize("case", [case for case in CASES if case.mixes], ids=str)
routable = pytest.mark.parametrize("case", [case for case in CASES if case.routes], ids=str)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def bits_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def differ(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-3)


@torch.no_grad()
def out(model: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = model(x)
    return y
