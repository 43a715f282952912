"""Every malformed file in all four formats: one sentence, status 2, nothing written, and soon."""

from __future__ import annotations

import json
import os
import pickle
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.commands import Call, caller
from tests.formats.files import ATTENTION, CLIP, pair, random, write
from torch import Tensor

from loraloom.errors import FormatError
from loraloom.formats import describe_adapter, read_any
from loraloom.formats.peft_file import read_folder
from loraloom.formats.stored import StoredTensors
from loraloom.formats.tensorfile import read_header, read_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SITE = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
A, B = random(4, 5), random(6, 4)
FORMATS: dict[str, tuple[str, dict[str, Tensor]]] = {
    "peft": (f"{WEIGHTS}", {f"base_model.model.{SITE}.lora_{r}.weight": t for r, t in (("A", A), ("B", B))}),
    "kohya": ("x.safetensors", pair(f"lora_unet_{ATTENTION}")),
    "diffusers": ("x.safetensors", {f"{SITE}.lora_{r}.weight": t for r, t in (("A", A), ("B", B))}),
    "loralib": ("x.safetensors", {"layer.query.lora_A": A, "layer.query.lora_B": B}),
}
"""Format → name of the file, and its tensors."""


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    return caller(capsys)


def made(form: str, folder: Path, tensors: dict[str, Tensor] | None = None) -> Path:
    """The weights' file of a valid adapter."""
    folder.mkdir(exist_ok=True)
    name, own = FORMATS[form]
    if form == "peft":
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": [SITE]}
        (folder / CONFIG).write_text(json.dumps(config))
    return write(folder / name, own if tensors is None else tensors)


def source(file: Path) -> Path:
    """What a user names."""
    return file.parent if file.name == WEIGHTS else file


def refused(call: Call, file: Path, told: str = "") -> str:
    """`convert` says one thing, with status 2, and leaves nothing; so do the readers."""
    target = file.parent.parent / "out" / "new.safetensors"
    start = time.monotonic()
    done = call("convert", source(file), target, "--to", "kohya", "--base-kind", "sd1", "--alpha", 1)
    assert time.monotonic() - start < 5
    assert done.status == 2, (done.status, done.out, done.err)
    assert not target.parent.exists()
    assert done.out == ""
    lines = done.err.strip().split("\n")
    assert all(line.isprintable() and len(line) < 1200 for line in lines), done.err
    assert lines[0].startswith("loraloom: ") and (len(lines) == 1 or lines[0].endswith("faults:"))
    assert told in done.err, done.err
    return done.err


# -- the file itself ----------------------------------------------------------------------------------


def header(edit: Callable[[dict[str, Any]], Any], text: Callable[[str], str] = str) -> Callable[[Path], None]:
    """A change of the header, the tensors left as they are."""

    def change(file: Path) -> None:
        data = file.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        parsed = json.loads(data[8:end])
        edit(parsed)
        raw = text(json.dumps(parsed)).encode("utf-8", "surrogatepass")
        file.write_bytes(len(raw).to_bytes(8, "little") + raw + data[end:])

    return change


def entry(**fields: Any) -> Callable[[Path], None]:
    """A change of the first tensor's entry."""
    return header(lambda parsed: parsed[min(key for key in parsed if key[0] != "_")].update(fields))


def named(name: str) -> Callable[[Path], None]:
    """Another name for the first tensor."""

    def rename(parsed: dict[str, Any]) -> None:
        parsed[name] = parsed.pop(min(key for key in parsed if key[0] != "_"))

    return header(rename)


def start(length: int, raw: bytes = b"") -> Callable[[Path], None]:
    """Another length of the header, and perhaps a header."""
    return lambda file: _write(file, length.to_bytes(8, "little") + (raw or file.read_bytes()[8:]))


def _write(file: Path, data: bytes) -> None:
    file.write_bytes(data)


def raw_header(raw: bytes) -> Callable[[Path], None]:
    return start(len(raw), raw)


def huge(file: Path) -> None:
    """A header of 100 MB, sparse on the disk."""
    with file.open("wb") as out:
        out.write((100_000_000).to_bytes(8, "little") + b"{")
        out.truncate(100_000_008)


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (lambda file: _write(file, b""), "is cut short"),
    "cut in the header": (lambda file: _write(file, file.read_bytes()[:30]), "is cut short"),
    "cut in a tensor": (lambda file: _write(file, file.read_bytes()[:-5]), "is cut short"),
    "a byte too many": (lambda file: _write(file, file.read_bytes() + b"x"), "bytes follow the header"),
    "a length beyond the file": (start(10**6), "its header claims 1000000 bytes"),
    "a length beyond all": (start(2**64 - 1), "its header claims 18446744073709551615 bytes"),
    "a header of 100 MB": (huge, "its header has 100000000 bytes, and at most 16777216 are read"),
    "a header of nothing but brackets": (raw_header(b'{"a":[' + b"[]," * 100_000 + b"[]]}"), "brackets"),
    "no JSON": (raw_header(b"{oh no}"), "is not JSON"),
    "a number that is none": (raw_header(b'{"a": NaN}'), "NaN is no number"),
    "infinity": (raw_header(b'{"a": -Infinity}'), "-Infinity is no number"),
    "a number of 5000 digits": (raw_header(b'{"a": ' + b"9" * 5000 + b"}"), "is not JSON"),
    "a name twice": (raw_header(b'{"a": 1, "a": 2}'), "'a' is given twice"),
    "not UTF-8": (raw_header(b'{"\xff\xfe": 1}'), "is not JSON"),
    "a nest": (raw_header(b'{"a":' * 900 + b"1" + b"}" * 900), "needs exactly a dtype"),
    "a nest without end": (raw_header(b"[" * 900 + b"]" * 100), "is not JSON"),
    "a list": (raw_header(b"[]"), "is not a JSON object"),
    "metadata that is a list": (header(lambda h: h.update(__metadata__=[])), "must hold strings by name"),
    "an unknown dtype": (entry(dtype="F33"), "dtype 'F33', expected one of F64"),
    "a dtype of 8 bits": (entry(dtype="F8_E4M3"), "floats of 8 bits, which are not read: save it as F16 or BF16"),
    "another dtype": (entry(dtype="BF16"), "bytes, but has [0, "),
    "a dtype that is a nest": (entry(dtype=[[[[["x" * 999]]]]]), "expected one of"),
    "offsets that overlap": (entry(data_offsets=[8, 88]), "header is damaged"),
    "offsets backwards": (entry(data_offsets=[80, 0]), "lies at bytes 80 to 0"),
    "offsets beyond the file": (entry(data_offsets=[0, 10**9]), "lies at bytes 0 to 1000000000"),
    "offsets below zero": (entry(data_offsets=[-80, 0]), "expected whole numbers"),
    "offsets beyond all": (entry(data_offsets=[0, 10**300]), "lies at bytes 0 to 1000"),
    "offsets with a point": (entry(data_offsets=[0.0, 80.0]), "expected whole numbers"),
    "offsets that are true": (entry(data_offsets=[False, True]), "expected whole numbers"),
    "a shape beyond all": (entry(shape=[2**62, 2**62]), "needs"),
    "a shape of a thousand": (entry(shape=[1] * 1000), "needs"),
    "a shape below zero": (entry(shape=[-4, -5]), "expected whole numbers"),
    "a shape with a point": (entry(shape=[4.0, 5]), "expected whole numbers"),
    "a shape in words": (entry(shape="45"), "expected whole numbers"),
    "a name with a line break": (named("lora_unet_x\nloraloom: all is well.alpha"), "is no name of a tensor"),
    "a name with NUL": (named("unet.x\0.lora_A.weight"), "is no name of a tensor"),
    "a name that colours the terminal": (named("unet.\x1b[31mx.lora_A.weight"), "is no name of a tensor"),
    "a name without end": (named("x" * 10**6), "of 1000000 characters, is no name of a tensor"),
    "an empty name": (named(""), "is no name of a tensor"),
    "half a character": (named("unet.\ud800.lora_A.weight"), "is no name of a tensor"),
    "a pickle": (lambda file: torch.save({"x": A}, file), "is a pickle under another name"),
    "an older pickle": (lambda file: _write(file, pickle.dumps({"a": 1}, 2)), "is a pickle"),
    "a pipe": (pipe, ""),
    "a device": (device, ""),
    "a folder": (folder_instead, ""),
    "gone": (lambda file: file.unlink(), ""),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file(name: str, form: str, call: Call, tmp_path: Path) -> None:
    damage, told = DAMAGES[name]
    file = made(form, tmp_path / "in")
    damage(file)
    refused(call, file, told)
    with pytest.raises(FormatError):
        describe_adapter(source(file))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_may_not_be_read(form: str, call: Call, tmp_path: Path) -> None:
    file = made(form, tmp_path / "in")
    file.chmod(0)
    refused(call, file, "cannot be read: Permission denied")


def test_a_large_header_takes_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    huge(file)
    brackets = tmp_path / "y.safetensors"
    raw_header(b'{"a":[' + b"[]," * 5_000_000 + b"[]]}")(brackets)
    tracemalloc.start()
    try:
        for path in (file, brackets):
            with pytest.raises(FormatError):
                read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("read", [read_tensors, lambda path: StoredTensors(path)["layer.query.lora_B"]])
def test_a_file_that_shrinks_while_it_is_read(read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = made("loralib", tmp_path / "in")
    real = torch.empty

    def shrinking(*arguments: Any, **options: Any) -> Tensor:
        os.truncate(file, 200)
        return real(*arguments, **options)

    monkeypatch.setattr(torch, "empty", shrinking)
    with pytest.raises(FormatError, match="has become shorter while it was read"):
        read(file)


def test_tensors_at_odd_places_are_read(tmp_path: Path) -> None:
    """Other writers need not begin every tensor at a multiple of its size."""
    outline = {"a": ("U8", [1], [0, 1]), "b": ("F32", [2], [1, 9]), "c": ("F64", [1], [9, 17])}
    text = json.dumps({n: {"dtype": d, "shape": s, "data_offsets": o} for n, (d, s, o) in outline.items()}).encode()
    numbers = torch.tensor([1.5, -2.5]), torch.tensor([0.1], dtype=torch.float64)
    data = b"\x07" + b"".join(bytes(t.numpy().tobytes()) for t in numbers)
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + data)
    tensors, _ = read_tensors(tmp_path / "x")
    assert tensors["a"].item() == 7
    assert torch.equal(tensors["b"], numbers[0]) and torch.equal(tensors["c"], numbers[1])


def test_tensors_of_one_file_have_versions_of_their_own(tmp_path: Path) -> None:
    """They lie in one piece of memory; a step of one must not spoil the gradient of another."""
    tensors, _ = read_tensors(made("loralib", tmp_path / "in"))
    first, second = tensors.values()
    first.add_(1)
    assert (first._version, second._version) == (1, 0)


# -- what is in it ------------------------------------------------------------------------------------

CONTENTS: dict[str, tuple[str, Callable[[dict[str, Tensor]], Any], str]] = {}
for _form, (_, _tensors) in FORMATS.items():
    _a, _b = (key for key in _tensors if not key.endswith("alpha"))
    _end = "lora_down.weight" if _form == "kohya" else "lora_A"
    CONTENTS |= {
        f"{_form}: NaN": (_form, lambda t, k=_a: t.update({k: torch.full((4, 5), float("nan"))}), "not finite"),
        f"{_form}: infinity": (_form, lambda t, k=_b: t.update({k: torch.full((6, 4), -float("inf"))}), "not finite"),
        f"{_form}: whole numbers": (_form, lambda t, k=_a: t.update({k: torch.ones(4, 5, dtype=torch.int32)}), "float"),
        f"{_form}: other ranks": (_form, lambda t, k=_b: t.update({k: random(6, 3)}), ""),
        f"{_form}: rank 0": (_form, lambda t, a=_a, b=_b: t.update({a: torch.zeros(0, 5), b: torch.zeros(6, 0)}), ""),
        f"{_form}: a number": (_form, lambda t, k=_a: t.update({k: torch.tensor(1.0)}), ""),
        f"{_form}: one factor": (_form, lambda t, k=_b: t.pop(k), ""),
        f"{_form}: nothing": (_form, lambda t: t.clear(), "no tensor"),
        f"{_form}: an unknown key": (_form, lambda t: t.update({"nonsense.key": A}), "'nonsense.key'"),
    }
_ALPHA = f"lora_unet_{ATTENTION}.alpha"
for _value in (float("nan"), float("inf"), -float("inf"), 0.0, 1e35):
    CONTENTS[f"kohya: alpha {_value}"] = (
        "kohya",
        lambda t, v=_value: t.update({_ALPHA: torch.tensor(v)}),
        "its alpha is",
    )
CONTENTS |= {
    "kohya: two alphas": ("kohya", lambda t: t.update({_ALPHA: torch.ones(2)}), "its alpha has shape (2,)"),
    "kohya: no alpha": ("kohya", lambda t: t.update({_ALPHA: torch.ones(0)}), "its alpha has shape (0,)"),
    "kohya: a path": ("kohya", lambda t: t.update(pair("lora_unet_../../etc/passwd")), "belongs to nothing known"),
    "kohya: an absolute path": ("kohya", lambda t: t.update(pair("lora_unet_/etc/passwd")), "names no layer"),
    "kohya: a U-Net and a transformer": (
        "kohya",
        lambda t: t.update(pair("lora_unet_double_blocks_0_img_mlp_0")),
        "its layers belong to several bases",
    ),
    "kohya: SD 1.x and SDXL": (
        "kohya",
        lambda t: t.update(
            pair("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", inside=(768,))
            | pair("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", inside=(2048,))
        ),
        "to sdxl (text of width 2048)",
    ),
    "diffusers: SD 1.x and SD 2.x": (
        "diffusers",
        lambda t: t.update(
            {
                f"unet.mid_block.attentions.0.transformer_blocks.{i}.attn2.to_k.lora_{r}.weight": x
                for i, width in enumerate((768, 1024))
                for r, x in (("A", random(4, width)), ("B", B))
            }
        ),
        "to sd2 (text of width 1024)",
    ),
    "kohya: a bomb of LoKr": (
        "kohya",
        lambda t: t.update({f"lora_te_{CLIP}.lokr_w{i}": torch.ones(500, 500) for i in "12"}),
        "numbers, more than any layer's",
    ),
    "kohya: a bomb of LoHa": (
        "kohya",
        lambda t: t.update(
            {
                f"lora_te_{CLIP}.hada_w{i}_{e}": torch.ones(*((3, 20_000) if e == "a" else (20_000, 3)))
                for i in "12"
                for e in "ab"
            }
        ),
        "numbers, more than any layer's",
    ),
    "kohya and diffusers": ("kohya", lambda t: t.update({f"{SITE}.lora_A.weight": A}), "mixes the keys of several"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_sound_file_with_bad_contents(name: str, call: Call, tmp_path: Path) -> None:
    form, spoil, told = CONTENTS[name]
    tensors = dict(FORMATS[form][1])
    spoil(tensors)
    refused(call, made(form, tmp_path / "in", tensors), told)


def test_unknown_keys_are_listed_in_groups_with_the_nearest_known(call: Call, tmp_path: Path) -> None:
    tensors = {**FORMATS["kohya"][1], **{f"lora_te_{CLIP}.lora_dwon{i}.weight": A for i in range(5)}}
    tensors |= pair("lora_unet_down_blocks_0_attentoins_0_proj_in")
    told = refused(call, made("kohya", tmp_path / "in", tensors))
    assert "lora_dwon0.weight' and 4 like it belongs to nothing known" in told
    assert "'lora_unet_down_blocks_0_attentoins_0_proj_in' names no layer of a known model" in told


# -- PEFT's config ------------------------------------------------------------------------------------

CONFIGS: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"{", "is not JSON"),
    "not UTF-8": (b"\xff\xfe{}", "is not JSON"),
    "a list": (b"[]", "holds a list, expected a JSON object"),
    "a field twice": (b'{"peft_type": "LORA", "r": 4, "r": 8}', "'r' is given twice"),
    "NaN": (b'{"peft_type": "LORA", "lora_alpha": NaN}', "NaN is no number"),
    "infinity": (b'{"peft_type": "LORA", "lora_alpha": Infinity}', "Infinity is no number"),
    "a nest": (b"[" * 100_000, "brackets"),
    "a nest that is parsed": (b'{"r":' * 990 + b"1" + b"}" * 990, ""),
    "a megabyte of unknown fields": (
        b'{"peft_type": "LORA", ' + b", ".join(b'"f%d": 1' % i for i in range(60_000)) + b"}",
        "60000 faults",
    ),
    "a field with a line break": (b'{"peft_type": "LORA", "a\\nb": 1}', "unknown field 'a\\nb'"),
    "a hundred megabytes": (b" " * (17 * 2**20), "bytes, and at most 16777216 are read"),
}
for _field, _wrong in {
    "r": (0, -1, 1.5, "8", True, 10**40, [4], {}),
    "lora_alpha": (0, -1, "8", 1e31, 10**400, [1], False),
    "use_rslora": (1, "yes", [True]),
    "use_dora": (1, "yes"),
    "lora_bias": ("no",),
    "lora_dropout": (1, -0.1, "0"),
    "bias": ("some", 3, ["none"]),
    "target_modules": (3, [1], [""], {"a": 1}, "(a", "a" * 30_000 + "|(b", "((((a*)*)*)*)*b"),
    "exclude_modules": (3, [None], "(?P<x"),
    "rank_pattern": ([1], {"a": 0}, {"(": 4}, {"a": "4"}, {"(?:(?:(?:(?:a+)+)+)+)+b": 4}),
    "alpha_pattern": ({"a": 0}, {"a": None}, {"[": 4}),
    "layers_to_transform": ("1", [-1], [1.5], {"a": 1}),
    "layers_pattern": ([1], "(", ["h+"], "(h)"),
    "modules_to_save": ("head", [1], ["("]),
    "target_parameters": ("x", [1]),
    "peft_type": (None, "IA3", ["LORA"], 7),
    "trainable_token_indices": ([1],),
    "init_lora_weights": ("pissa", {"a": 1}, 7),
    "unheard_of": (1, "x" * 10**5, [[[[[[1]]]]]]),
}.items():
    for _one in _wrong:
        _data = {"peft_type": "LORA", "r": 4, "target_modules": [SITE], _field: _one}
        CONFIGS[f"{_field}: {str(_one)[:40]}"] = (json.dumps(_data).encode(), _field)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_makes_no_sense(name: str, call: Call, tmp_path: Path) -> None:
    raw, told = CONFIGS[name]
    file = made("peft", tmp_path / "in")
    (file.parent / CONFIG).write_bytes(raw)
    refused(call, file, told)


@pytest.mark.parametrize("spoil", [pipe, folder_instead, device])
def test_a_config_that_is_no_file(spoil: Callable[[Path], None], call: Call, tmp_path: Path) -> None:
    file = made("peft", tmp_path / "in")
    spoil(file.parent / CONFIG)
    refused(call, file)


HOSTILE = ("(a+)+b", "(a|a)*b", "(.*.*)*x", "(?:a?){60}a{60}", r"(.*\.)*x", ".*.*.*.*.*x", "(?=(a+)+b)a")


@pytest.mark.parametrize("expression", HOSTILE)
@pytest.mark.parametrize(
    "field", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "modules_to_save"]
)
def test_an_expression_that_could_run_for_ever(field: str, expression: str, tmp_path: Path) -> None:
    """It is refused, or matched without running away."""
    file = made("peft", tmp_path / "in")
    value = {"rank_pattern": {expression: 2}, "alpha_pattern": {expression: 2.0}, "modules_to_save": [expression]}
    config = {"peft_type": "LORA", "r": 4, "target_modules": [SITE], field: value.get(field, expression)}
    (file.parent / CONFIG).write_text(json.dumps(config))
    begun = time.monotonic()
    try:
        found = read_folder(file.parent).peft
    except FormatError as error:
        assert field in str(error)
    else:
        path = "a" * 200
        found.targets(path), found.rank(path), found.alpha(path)
    assert time.monotonic() - begun < 1


def test_a_thousand_patterns_are_no_hang(tmp_path: Path) -> None:
    file = made("peft", tmp_path / "in")
    patterns = {f"layers.{i}.q.*": 4 for i in range(1500)} | {f"layers\\.{i}\\.k": 4 for i in range(3000)}
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": [SITE], "rank_pattern": patterns}
    (file.parent / CONFIG).write_text(json.dumps(config))
    begun = time.monotonic()
    found = read_folder(file.parent).peft
    assert [found.rank(f"layers.{i}.{w}") for i in range(100) for w in "kz"] == [4] * 200
    assert time.monotonic() - begun < 5


def test_weights_alone(call: Call, tmp_path: Path) -> None:
    file = made("peft", tmp_path / "in")
    (file.parent / CONFIG).unlink()
    refused(call, file, "holds PEFT's tensors, which need their adapter_config.json beside them")
    with pytest.raises(FormatError, match="name the folder"):
        read_any(file)


@pytest.mark.parametrize("shape", [(), (4,), (4, 5, 1)])
def test_a_factor_of_peft_without_its_dimensions(shape: tuple[int, ...], call: Call, tmp_path: Path) -> None:
    """Found by fuzzing: an IndexError where the rank was read off a tensor without dimensions."""
    tensors = {**FORMATS["peft"][1], f"base_model.model.{SITE}.lora_A.weight": torch.ones(shape)}
    refused(call, made("peft", tmp_path / "in", tensors), "its factors have shapes")
