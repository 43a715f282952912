"""LyCORIS' decompositions as LoRA, against ΔW worked out in full by their own formulas."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.formats.files import ATTENTION, random, write
from torch import Tensor, nn

from loraloom.errors import FormatError
from loraloom.formats import describe_adapter, load_any, read_any
from loraloom.formats.peft import attach_file
from loraloom.formats.updates import updates_of

LINEAR, CONV = f"lora_unet_{ATTENTION}", "lora_unet_up_blocks_0_resnets_0_conv1"
OUT, IN, R, K = 6, 10, 2, 3


def _tucker(core: Tensor, out: Tensor, inside: Tensor) -> Tensor:
    return torch.einsum("ij...,ip,jr->pr...", core, out, inside)


def _loha(tensors: dict[str, Tensor]) -> Tensor:
    products = []
    for index in "12":
        a, b = tensors[f"hada_w{index}_a"], tensors[f"hada_w{index}_b"]
        core = tensors.get(f"hada_t{index}")
        products.append(a @ b if core is None else _tucker(core, a, b))
    return products[0] * products[1]


def _lokr(tensors: dict[str, Tensor]) -> Tensor:
    sides = []
    for index in "12":
        whole = tensors.get(f"lokr_w{index}")
        if whole is None:
            a, b, core = (tensors.get(f"lokr_{n}") for n in (f"w{index}_a", f"w{index}_b", f"t{index}"))
            assert a is not None and b is not None
            whole = a @ b if core is None else _tucker(core, a, b)
        sides.append(whole)
    one, two = sides
    return torch.kron(one.reshape(*one.shape, *(1,) * (two.dim() - 2)), two.contiguous())


W1, W2 = random(2, 5), random(3, 2)
CASES: dict[str, tuple[str, dict[str, Tensor], float, int]] = {
    "LoHa": (
        LINEAR,
        {
            "hada_w1_a": random(OUT, R),
            "hada_w1_b": random(R, IN),
            "hada_w2_a": random(OUT, R, seed=1),
            "hada_w2_b": random(R, IN, seed=1),
        },
        R,
        R * R,
    ),
    "LoHa of a convolution": (
        CONV,
        {
            "hada_w1_a": random(OUT, R),
            "hada_w1_b": random(R, IN * 9),
            "hada_w2_a": random(OUT, R, seed=1),
            "hada_w2_b": random(R, IN * 9, seed=1),
        },
        R,
        R * R,
    ),
    "LoHa with Tucker cores": (
        CONV,
        {
            **{"hada_w1_a": random(R, OUT), "hada_w1_b": random(R, IN), "hada_t1": random(R, R, K, K)},
            **{
                "hada_w2_a": random(R, OUT, seed=1),
                "hada_w2_b": random(R, IN, seed=1),
                "hada_t2": random(R, R, K, K, seed=1),
            },
        },
        R,
        R * R,
    ),
    "LoKr, both whole": (LINEAR, {"lokr_w1": W1, "lokr_w2": W2}, 0, 4),
    "LoKr, one in factors": (LINEAR, {"lokr_w1": W1, "lokr_w2_a": random(3, 1), "lokr_w2_b": random(1, 2)}, 1, 2),
    "LoKr, both in factors": (
        LINEAR,
        {"lokr_w1_a": random(2, 1), "lokr_w1_b": random(1, 5), "lokr_w2_a": random(3, 1), "lokr_w2_b": random(1, 2)},
        1,
        1,
    ),
    "LoKr of a convolution, whole": (CONV, {"lokr_w1": W1, "lokr_w2": random(3, 2, K, K)}, 0, 6),
    "LoKr of a convolution, flat": (
        CONV,
        {"lokr_w1": W1, "lokr_w2_a": random(3, 1), "lokr_w2_b": random(1, 2 * 9)},
        1,
        2,
    ),
    "LoKr with a Tucker core": (
        CONV,
        {"lokr_w1": W1, "lokr_w2_a": random(R, 3), "lokr_w2_b": random(R, 2), "lokr_t2": random(R, R, K, K)},
        R,
        2 * R,
    ),
    "a full difference": (LINEAR, {"diff": random(OUT, IN)}, 0, OUT),
    "a full difference of a convolution": (CONV, {"diff": random(OUT, IN, K, K)}, 0, OUT),
    "LoCon with a Tucker core": (
        CONV,
        {
            "lora_down.weight": random(R, IN, 1, 1),
            "lora_mid.weight": random(R, R, K, K),
            "lora_up.weight": random(OUT, R, 1, 1),
        },
        R,
        R,
    ),
}


def dense(tensors: dict[str, Tensor]) -> Tensor:
    if "diff" in tensors:
        return tensors["diff"]
    if "lora_mid.weight" in tensors:
        down, up = tensors["lora_down.weight"].flatten(1), tensors["lora_up.weight"].flatten(1)
        return _tucker(tensors["lora_mid.weight"], up.t(), down)
    return _loha(tensors) if "hada_w1_a" in tensors else _lokr(tensors)


@pytest.mark.filterwarnings("ignore:.*became factors")
@pytest.mark.parametrize("case", CASES)
def test_it_becomes_lora_exactly(case: str, tmp_path: Path) -> None:
    stem, tensors, dim, rank = CASES[case]
    file = write(
        tmp_path / "a.safetensors",
        {f"{stem}.{k}": t for k, t in tensors.items()} | {f"{stem}.alpha": torch.tensor(1.5)},
    )
    ((_, update),) = updates_of(read_any(file))[0].items()
    wanted = dense({key: tensor.double() for key, tensor in tensors.items()}) * (1.5 / dim if dim else 1.0)
    wanted = wanted.reshape(OUT, IN, *((K, K) if stem == CONV else ()))
    assert update.rank == rank
    torch.testing.assert_close(update.delta(), wanted, rtol=1e-6, atol=1e-6)
    assert describe_adapter(file).format == "lycoris"


def test_the_cut_is_the_best_and_its_error_is_told(tmp_path: Path) -> None:
    whole = random(OUT, IN)
    file = write(tmp_path / "a.safetensors", {f"{LINEAR}.diff": whole})
    with pytest.warns(UserWarning, match=r"1 × a full difference became factors of rank up to 2, of which an SVD"):
        found = read_any(file, rank=2)
    ((path, update),) = updates_of(found)[0].items()
    spectrum = torch.linalg.svdvals(whole.double())
    expected = float(spectrum[2:].norm() / spectrum.norm())
    assert update.rank == 2
    assert abs(float((update.delta() - whole).norm() / whole.norm()) - expected) < 1e-6
    assert abs(found.errors[path] - expected) < 1e-6


@pytest.mark.filterwarnings("ignore:.*became factors")
@pytest.mark.parametrize("on_input", [True, False])
def test_ia3_needs_its_base(on_input: bool, tmp_path: Path) -> None:
    scale = random(IN if on_input else OUT)
    file = write(
        tmp_path / "a.safetensors", {"lora_unet_x.weight": scale, "lora_unet_x.on_input": torch.tensor([on_input])}
    )
    base = nn.ModuleDict({"unet": nn.ModuleDict({"x": nn.Linear(IN, OUT)})})
    adapters = load_any(base, file, name="a")
    weight = base["unet"]["x"].weight.detach()
    torch.testing.assert_close(adapters.delta("a", "unet.x"), weight * (scale if on_input else scale[:, None]))
    renamed = write(
        tmp_path / "b.safetensors", {f"{LINEAR}.weight": scale, f"{LINEAR}.on_input": torch.tensor([on_input])}
    )
    with pytest.raises(FormatError, match="it is IA3, which scales the base's own weights"):
        read_any(renamed)


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"hada_w1_a": random(OUT, R), "hada_w1_b": random(R, IN)}, "hada_w1_a, hada_w1_b alone make no update"),
        ({"lokr_w1": W1}, "neither a whole w2 nor both of its factors"),
        ({"lokr_w1": W1, "lokr_w2_a": random(3, 2), "lokr_w2_b": random(1, 2)}, "w2 factors do not fit"),
        ({"diff": random(OUT)}, "a norm's or a bias"),
        ({"w_norm": random(OUT)}, "a normalisation layer"),
        ({"a1.weight": random(OUT, R)}, "GLoRA"),
    ],
)
def test_what_makes_no_update_is_refused(tensors: dict[str, Tensor], told: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=told):
        read_any(write(tmp_path / "a.safetensors", {f"{LINEAR}.{key}": tensor for key, tensor in tensors.items()}))


# -- loralib ------------------------------------------------------------------------------------------


def loralib(folder: Path, path: str, a: Tensor, b: Tensor) -> Path:
    return write(folder / "a.safetensors", {f"{path}.lora_A": a, f"{path}.lora_B": b})


@pytest.mark.parametrize("kind", ["linear", "embedding", "convolution", "merged"])
def test_loralib_on_its_base(kind: str, tmp_path: Path) -> None:
    """ΔW as loralib's own layers work it out."""
    layer: nn.Module = {
        "linear": nn.Linear(IN, OUT),
        "embedding": nn.Embedding(IN, OUT),
        "convolution": nn.Conv2d(IN, OUT, K),
        "merged": nn.Linear(IN, 3 * OUT),
    }[kind]
    a, b = {
        "convolution": (random(R * K, IN * K), random(OUT * K, R * K)),
        "merged": (random(3 * R, IN), random(3 * OUT, R)),
    }.get(kind, (random(R, IN), random(OUT, R)))
    file, base = loralib(tmp_path, "block.layer", a, b), nn.ModuleDict({"block": nn.ModuleDict({"layer": layer})})
    wanted = {
        "linear": lambda: b @ a,
        "embedding": lambda: (b @ a).t(),
        "convolution": lambda: (b @ a).view(OUT, IN, K, K),
        "merged": lambda: torch.cat([y @ x for y, x in zip(b.chunk(3), a.chunk(3), strict=True)]),
    }[kind]()
    file_read = read_any(file, model=base, alpha=4)
    ((_, update),) = updates_of(file_read)[0].items()
    torch.testing.assert_close(update.delta(), 4 / R * wanted.double(), rtol=1e-5, atol=1e-5)
    adapters = attach_file(base, file_read, "x")
    torch.testing.assert_close(adapters.delta("x", "block.layer"), 4 / R * wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "told"),
    [
        (random(2 * R, IN), random(2 * OUT, R), "MergedLinear with 2 of its 3 parts adapted"),
        (random(3, IN), random(OUT, 2), "do not fit each other"),
        (random(3), random(OUT, 3), "expected matrices"),
    ],
)
def test_loralib_that_cannot_be_told(a: Tensor, b: Tensor, told: str, tmp_path: Path) -> None:
    base = nn.ModuleDict({"layer": nn.Linear(IN, 3 * OUT)})
    with pytest.raises(FormatError, match=told):
        read_any(loralib(tmp_path, "layer", a, b), model=base, alpha=1)
    with pytest.raises(FormatError, match="do not hold their alpha"):
        read_any(loralib(tmp_path, "layer", random(R, IN), random(OUT, R)))
