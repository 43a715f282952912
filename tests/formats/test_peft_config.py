"""adapter_config.json: what is accepted, what is refused by name, and which modules it means."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraloom.errors import FormatError
from loraloom.formats.peft_config import PeftConfig

PLACE = "somewhere/adapter_config.json"


def config(**fields: Any) -> PeftConfig:
    return PeftConfig.of({"peft_type": "LORA", **fields}, PLACE)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no type": ({"peft_type": None}, "peft_type is missing: only adapters of peft_type 'LORA'"),
    "another method": ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "a method that is none": ({"peft_type": ["LORA"]}, r"peft_type is \['LORA'\]"),
    "a rank in words": ({"r": "8"}, "r is '8', expected a whole number of at least 1"),
    "rank 0": ({"r": 0}, "r is 0, expected"),
    "a rank that is true": ({"r": True}, "r is True, expected"),
    "alpha 0": ({"lora_alpha": 0}, "lora_alpha is 0, expected a number above 0"),
    "alpha not finite": ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
    "dropout of all": ({"lora_dropout": 1.0}, "lora_dropout is 1.0"),
    "an unknown bias": ({"bias": "some"}, "bias is 'some', expected one of none, lora_only, all"),
    "targets of another kind": ({"target_modules": [1]}, r"target_modules is \[1\]"),
    "targets that are no expression": ({"target_modules": "(a"}, r"target_modules is '\(a'"),
    "a pattern that is no expression": ({"rank_pattern": {"(": 4}}, "rank_pattern is"),
    "a rank of 0 by pattern": ({"rank_pattern": {"a": 0}}, "rank_pattern is"),
    "heads that are one name": ({"modules_to_save": "head"}, "modules_to_save is 'head', expected a list of names"),
    "blocks in words": ({"layers_to_transform": "1"}, "layers_to_transform is '1'"),
    "a flag in words": ({"use_rslora": "yes"}, "use_rslora is 'yes', expected true or false"),
    "DoRA in words": ({"use_dora": "yes"}, "use_dora is 'yes', expected true or false"),
    "QALoRA": ({"use_qalora": True}, "QALoRA"),
    "trained tokens": ({"trainable_token_indices": [1]}, "trainable tokens"),
    "replication": ({"layer_replication": [[0, 2]]}, "layer replication"),
    "activated LoRA": ({"alora_invocation_tokens": [5]}, "activated LoRA"),
    "an initialisation that moves the base": ({"init_lora_weights": "pissa_niter_4"}, "changes the base model's"),
    "a field from the future": ({"use_mora": True}, "unknown field 'use_mora', which may change"),
    "a misspelling": ({"lora_alhpa": 4}, "did you mean 'lora_alpha'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    fields, told = REFUSED[name]
    with pytest.raises(FormatError, match=told) as error:
        config(**fields)
    assert str(error.value).startswith(PLACE)


def test_every_fault_is_told() -> None:
    with pytest.raises(FormatError, match="3 faults"):
        config(r=0, lora_alpha="x", use_qalora=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"use_mora": False, "another": None, "third": {}, "fourth": []},
        {"init_lora_weights": "gaussian", "corda_config": {"a": 1}},
        {"megatron_core": "megatron.core", "qalora_group_size": 16, "revision": "main"},
        {"init_lora_weights": False},
    ],
)
def test_what_changes_nothing_is_let_pass(fields: dict[str, Any]) -> None:
    assert config(**fields) == config()


def test_targets() -> None:
    named = config(target_modules=["query", "layers.0.value"], exclude_modules=["layers.1.query"])
    paths = ["query", "layers.0.query", "layers.1.query", "xquery", "layers.0.value", "layers.1.value"]
    assert [path for path in paths if named.targets(path)] == ["query", "layers.0.query", "layers.0.value"]
    pattern = config(target_modules=r".*\.(query|value)", modules_to_save=["layers.0"])
    assert [path for path in paths if pattern.targets(path)] == ["layers.1.query", "layers.1.value"]


def test_blocks() -> None:
    first = config(target_modules=["q"], layers_to_transform=[1])
    paths = ["m.h.0.q", "m.h.1.q", "m.h.1.experts.0.q", "h.1.q", "q"]
    assert [path for path in paths if first.targets(path)] == ["m.h.1.q", "m.h.1.experts.0.q", "q"]
    named = config(target_modules=["q"], layers_to_transform=1, layers_pattern=["h"])
    assert [path for path in paths if named.targets(path)] == ["m.h.1.q", "m.h.1.experts.0.q", "h.1.q", "q"]


def test_the_first_pattern_wins() -> None:
    patterns = config(r=2, rank_pattern={"0.q": 3, "q": 4, "^k": 5}, lora_alpha=6, alpha_pattern={"k": 1})
    assert [patterns.rank(path) for path in ("a.0.q", "a.1.q", "k", "a.k", "aq")] == [3, 4, 5, 2, 2]
    assert patterns.scale("a.k") == 0.5
    assert config(r=4, lora_alpha=6, use_rslora=True).scale("a") == 3.0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({field for fields, _ in REFUSED.values() for field in fields} | {"exclude_modules", "auto_mapping"})


@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6), json_values, max_size=5))
def test_anything_is_a_config_or_a_sentence(fields: dict[str, Any]) -> None:
    try:
        found = PeftConfig.of({"peft_type": "LORA", **fields}, PLACE)
    except FormatError:
        return
    found.targets("layers.0.query")
    assert found.rank("layers.0.query") >= 1
    assert found.scale("layers.0.query") > 0
    assert isinstance(found.canonical(), str)
