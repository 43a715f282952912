"""Valid adapter files of the four formats, and what can be done to them; the choices come from whoever fuzzes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from tests.formats.files import ATTENTION, CLIP, pair, random
from torch import Tensor, nn

from loraloom.errors import LoraloomError
from loraloom.formats import describe_adapter, load_any, read_any
from loraloom.formats.tensorfile import tensor_pieces
from loraloom.formats.updates import updates_of

T = TypeVar("T")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PATH = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


class Choices(Protocol):
    """Where the decisions of a mutation come from."""

    def integer(self, low: int, high: int) -> int: ...

    def text(self) -> str: ...

    def pick(self, options: Sequence[T]) -> T: ...


@dataclass
class Adapter:
    """An adapter on its way to the disk: one file, or PEFT's two."""

    header: dict[str, Any]
    data: bytes
    config: dict[str, Any] | None = None
    raw: dict[str, bytes] = field(default_factory=dict)
    """File → bytes that are written as they are."""

    @classmethod
    def of(cls, tensors: dict[str, Tensor], config: dict[str, Any] | None = None, **metadata: str) -> Adapter:
        whole = b"".join(bytes(piece) for piece in tensor_pieces(tensors, {"format": "pt", **metadata}))
        end = 8 + int.from_bytes(whole[:8], "little")
        return cls(json.loads(whole[8:end]), whole[end:], config)

    @property
    def files(self) -> dict[str, bytes]:
        """Name → bytes."""
        text = json.dumps(self.header).encode("utf-8", "surrogatepass")
        files = {WEIGHTS: len(text).to_bytes(8, "little") + text + self.data}
        if self.config is not None:
            files[CONFIG] = json.dumps(self.config).encode("utf-8", "surrogatepass")
        return files | self.raw


def _linear(rank: int = 2, out: int = 3, inside: int = 4) -> dict[str, Tensor]:
    return {"lora_A.weight": random(rank, inside), "lora_B.weight": random(out, rank)}


def _peft() -> Adapter:
    tensors = {f"base_model.model.{p}.{k}": t for p in ("x.y", "x.z") for k, t in _linear().items()}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["y", "z"], "rank_pattern": {"z": 2}}
    return Adapter.of(tensors, config)


def _dora() -> Adapter:
    tensors = {f"base_model.model.x.y.{k}": t for k, t in _linear().items()}
    tensors["base_model.model.x.y.lora_magnitude_vector"] = random(3).abs()
    return Adapter.of(tensors, {"peft_type": "LORA", "r": 2, "target_modules": "x.y", "use_dora": True})


def _kohya() -> Adapter:
    conv = pair("lora_unet_up_blocks_1_resnets_2_conv1", rank=2, inside=(5, 3, 3))
    return Adapter.of({**pair(f"lora_unet_{ATTENTION}"), **pair(f"lora_te_{CLIP}"), **conv})


def _lycoris() -> Adapter:
    stem, conv = f"lora_unet_{ATTENTION}", "lora_unet_up_blocks_0_resnets_0_conv1"
    hada = {f"{stem}.hada_w{i}_{e}": random(*((3, 2) if e == "a" else (2, 4))) for i in "12" for e in "ab"}
    lokr = {f"{conv}.lokr_w1": random(2, 5), f"{conv}.lokr_w2": random(3, 2, 3, 3), f"{conv}.alpha": torch.tensor(1.0)}
    return Adapter.of({**hada, **lokr, **pair(f"lora_te_{CLIP}"), f"lora_te_{CLIP}.dora_scale": random(6, 1).abs()})


def _flux() -> Adapter:
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    return Adapter.of({f"{stem}.lora_down.weight": random(2, 4), f"{stem}.lora_up.weight": random(12, 2)})


def _diffusers() -> Adapter:
    settings = json.dumps({"unet.r": 2, "unet.lora_alpha": 3, "unet.rank_pattern": {"to_q": 2}})
    return Adapter.of({f"{PATH}.{k}": t for k, t in _linear().items()}, lora_adapter_metadata=settings)


def _loralib() -> Adapter:
    return Adapter.of({"x.y.lora_A": random(2, 4), "x.y.lora_B": random(3, 2)}, loralib="lora_alpha=r")


SEEDS: tuple[Callable[[], Adapter], ...] = (_peft, _dora, _kohya, _lycoris, _flux, _diffusers, _loralib)

NUMBERS = (0, 1, 2, -1, 3, 8, 2**31, 2**63, 2**64, 10**40, 1.5, math.nan, math.inf, -0.0, True, False, None, "2")
VALUES = (*NUMBERS, "", "F32", "BF16", "F8_E4M3", "I64", [], {}, [[]], ["y"], [1, 2], "(a+)+b", ".*", "LORA", {"y": 2})
FIELDS = (
    *("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "bias"),
    *("lora_bias", "exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters", "modules_to_save"),
    *("peft_type", "init_lora_weights", "trainable_token_indices", "fan_in_fan_out", "ensure_weight_tying"),
)
ENDS = (
    *("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale", "diff", "lora_A.weight"),
    *("lora_B.bias", "lora_magnitude_vector", "hada_w1_a", "hada_t1", "lokr_w1", "lokr_t2", "weight", "on_input"),
)


# -- mutations ----------------------------------------------------------------------------------------


def _names(adapter: Adapter) -> list[str]:
    return [name for name in adapter.header if name != "__metadata__"] or ["x"]


def rename(adapter: Adapter, choices: Choices) -> None:
    """Give a tensor another name, or another end."""
    name = choices.pick(_names(adapter))
    stem = name.partition(".")[0] if name.startswith("lora_") else name.rpartition(".")[0]
    new = choices.pick((choices.text(), f"{stem}.{choices.pick(ENDS)}", f"../{name}", name + "\0\n", f"/{name}"))
    if name in adapter.header:
        adapter.header[new] = adapter.header.pop(name)


def drop(adapter: Adapter, choices: Choices) -> None:
    """Take a tensor out; the others close the gap."""
    _edit(adapter, lambda tensors: tensors.pop(choices.pick(list(tensors)), None))


def add(adapter: Adapter, choices: Choices) -> None:
    """One more tensor of any shape and values."""
    shape = [choices.integer(0, 4) for _ in range(choices.integer(0, 4))]
    dtype = choices.pick((torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.bool))
    value = choices.pick((0.0, 1.0, -2.0, math.nan, math.inf, 1e30, 1e-30))
    whole = torch.full(shape, value)
    made = (whole if dtype.is_floating_point else whole.nan_to_num(0, 0)).to(dtype)
    stem = choices.pick(_names(adapter)).rpartition(".")[0]
    end = choices.pick(ENDS)

    def put(tensors: dict[str, Tensor]) -> None:
        tensors[f"{stem.removesuffix('.lora_A').removesuffix('.lora_B')}.{end}"] = made

    _edit(adapter, put)


def fill(adapter: Adapter, choices: Choices) -> None:
    """Another shape or other values in the place of a tensor."""
    shape = [choices.integer(0, 5) for _ in range(choices.integer(0, 4))]
    value = choices.pick((0.0, 1.0, -2.0, math.nan, math.inf, 3e38))

    def put(tensors: dict[str, Tensor]) -> None:
        tensors[choices.pick(list(tensors) or ["x.lora_A"])] = torch.full(shape, value)

    _edit(adapter, put)


def lie(adapter: Adapter, choices: Choices) -> None:
    """Another claim in the header than what is there."""
    claim = adapter.header.get(choices.pick(_names(adapter)))
    if isinstance(claim, dict):
        what = choices.pick(("dtype", "shape", "data_offsets", "more"))
        old = claim.get(what)
        if isinstance(old, list) and old and choices.integer(0, 1):
            old[choices.integer(0, len(old) - 1)] = choices.pick(NUMBERS)
        else:
            claim[what] = choices.pick(VALUES)


def say(adapter: Adapter, choices: Choices) -> None:
    """Another entry in the header's metadata."""
    key = choices.pick(("format", "lora_adapter_metadata", "loraloom", "loralib", "ss_base_model_version", "x"))
    value = choices.pick((choices.text(), "flux", "sdxl", '{"unet.r": NaN}', "[[[[", "{}", *VALUES))
    adapter.header.setdefault("__metadata__", {})[key] = value


def settle(adapter: Adapter, choices: Choices) -> None:
    """Another value in PEFT's config."""
    if adapter.config is not None:
        adapter.config[choices.pick((*FIELDS, choices.text()))] = choices.pick((*VALUES, choices.text()))


def flip(adapter: Adapter, choices: Choices) -> None:
    """Other bytes in a file."""
    name = choices.pick(sorted(adapter.files))
    data = bytearray(adapter.files[name])
    for _ in range(choices.integer(1, 4)):
        if data:
            data[choices.integer(0, min(len(data), 4000) - 1)] = choices.integer(0, 255)
    adapter.raw[name] = bytes(data)


def cut(adapter: Adapter, choices: Choices) -> None:
    """A file that ends too soon, or too late."""
    name = choices.pick(sorted(adapter.files))
    data = adapter.files[name]
    adapter.raw[name] = data[: choices.integer(0, len(data))] + bytes(choices.integer(0, 2))


MUTATIONS: tuple[Callable[[Adapter, Choices], None], ...] = (rename, drop, add, fill, lie, say, settle, flip, cut)


def _edit(adapter: Adapter, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors themselves and lay them out anew, where the header is still sound."""
    try:
        tensors = {name: _tensor(adapter, claim) for name, claim in adapter.header.items() if name != "__metadata__"}
        metadata = {key: value for key, value in adapter.header.get("__metadata__", {}).items() if type(value) is str}
        if tensors:
            change(tensors)
            made = Adapter.of(tensors, **metadata)
            adapter.header, adapter.data = made.header, made.data
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return


def _tensor(adapter: Adapter, claim: dict[str, Any]) -> Tensor:
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I8": torch.int8, "BOOL": torch.bool}
    begin, end = claim["data_offsets"]
    data = torch.tensor(list(adapter.data[begin:end]), dtype=torch.uint8)
    return data.view(dtypes[claim["dtype"]]).reshape(claim["shape"])


def mutated(choices: Choices) -> Adapter:
    """A valid adapter of some format, and up to four things done to it."""
    adapter = choices.pick(SEEDS)()
    for _ in range(choices.integer(0, 4)):
        choices.pick(MUTATIONS)(adapter, choices)
    return adapter


# -- what must hold -----------------------------------------------------------------------------------


def model() -> nn.Module:
    """A base that some of the seeds fit."""
    return nn.ModuleDict({"x": nn.ModuleDict({"y": nn.Linear(4, 3), "z": nn.Linear(4, 3)})})


def look(adapter: Adapter, folder: Path) -> str:
    """Write it, and read it in every way; what it came to. Anything but one of our errors goes through."""
    for name in (CONFIG, WEIGHTS):
        (folder / name).unlink(missing_ok=True)
    for name, data in adapter.files.items():
        (folder / name).write_bytes(data)
    path = folder if adapter.config is not None else folder / WEIGHTS
    told = [_told(lambda: describe_adapter(path)), _told(lambda: _read(path)), _told(lambda: load_any(model(), path))]
    return " / ".join(told)


def _read(path: Path) -> None:
    """What is read makes sense: every update has factors of one rank, and a size."""
    updates, _ = updates_of(read_any(path, alpha=2.0), magnitudes=True)
    for update in updates.values():
        assert update.rank >= 1 and math.isfinite(update.scale)
        assert not math.isnan(update.norm())


def _told(reads: Callable[[], object]) -> str:
    try:
        reads()
    except LoraloomError as error:
        message = str(error)
        assert all(line.isprintable() for line in message.split("\n")), f"not printable: {message!r}"
        assert max(map(len, message.split("\n"))) < 1500, f"too long: {message!r}"
        return "refused"
    return "read"
