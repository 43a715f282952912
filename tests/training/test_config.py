"""Settings: what is refused and how it is told, what is generated from the fields, and that each is used."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from loraloom.adapters import AdapterSpec
from loraloom.errors import ConfigError
from loraloom.training.config import AdapterConfig, TrainConfig, changed_keys, load_config, reference_yaml
from loraloom.training.settings_file import dotted_keys

NEEDED: dict[str, Any] = {"base": "b", "data.train": "t.csv", "out": "o"}


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text("base: b\nout: o\ndata: {train: t.csv}\n" + text)
    return path


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lerning_rate: 1e-3", "line 4: unknown key 'lerning_rate'; did you mean 'learning_rate'"),
        ("adapter:\n  rnak: 4", "line 5: unknown key 'adapter.rnak'; did you mean 'rank'"),
        ("rank: 4", "unknown key 'rank'; did you mean 'adapter.rank'"),
        ("adapter: {rank: 0}", "'adapter.rank' is 0: it must be greater than or equal to 1"),
        ("adapter: {rank: -3}", "'adapter.rank' is -3"),
        ("learning_rate: .nan", "'learning_rate' is nan"),
        ("method: lorra", "'method' is 'lorra': it must be 'lora' or 'full'"),
        ("epochs: many", "'epochs' is 'many'"),
        ("seed: 1\nseed: 2", "line 5: 'seed' is given twice, first on line 4"),
        ("epochs: [", "line 4: expected the node content"),
    ],
)
def test_a_fault_is_told_with_file_line_key_and_nearest_word(tmp_path: Path, text: str, told: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(path) in str(error.value)
    assert told in str(error.value)


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"3 faults(.|\n)*epochs(.|\n)*batch_size(.|\n)*nothing_such"):
        load_config(write(tmp_path, "epochs: 0\nbatch_size: 0\nnothing_such: 1"))


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "no such configuration file"), (b"", "an empty file"), (b"- 1\n", "list"), (b"base: \xff", "byte 6")],
)
def test_a_file_that_is_none(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=told):
        load_config(path)


def test_what_is_missing_is_described() -> None:
    with pytest.raises(ConfigError, match="'out' is missing; it says: Folder for the results"):
        load_config(None, {"data.train": "t", "base": "b"})
    with pytest.raises(ConfigError, match="settings: 'base' is missing; give a base model, or a configuration"):
        load_config(None, {"data.train": "t", "out": "o"})


def test_random_weights_are_for_full_fine_tuning_alone() -> None:
    given = {"data.train": "t", "out": "o", "base_config": "c"}
    assert load_config(None, {**given, "method": "full"}).base_name == "c"
    with pytest.raises(ConfigError, match="random weights is trained with method 'full'"):
        load_config(None, given)
    with pytest.raises(ConfigError, match="both given"):
        load_config(None, {**given, "base": "b"})


def test_given_values_win_over_the_file_and_leave_the_callers_own_alone(tmp_path: Path) -> None:
    given_data = {"train": "other.csv"}
    path = write(tmp_path, "epochs: 2\nadapter: {rank: 4, alpha: 3}")
    config = load_config(path, {"data": given_data, "data.eval": "e.csv", "adapter.rank": "16", "epochs": 5})
    assert (config.epochs, config.adapter.rank, config.adapter.alpha) == (5, 16, 3)
    assert (config.data.train, config.data.eval) == ("other.csv", "e.csv")
    assert given_data == {"train": "other.csv"}
    with pytest.raises(ConfigError, match="'epochs' is 2, so that 'epochs.x' cannot be set"):
        load_config(path, {"epochs.x": 1})


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "learning_rate: 1e-3")).learning_rate == 1e-3


@settings(deadline=None)
@given(key=st.sampled_from([key for key, _ in dotted_keys(TrainConfig) if len(key) > 5]), data=st.data())
def test_a_letter_too_few_leads_to_the_right_key(key: str, data: st.DataObject) -> None:
    parent, _, name = key.rpartition(".")
    place = data.draw(st.integers(0, len(name) - 1))
    wrong = name[:place] + name[place + 1 :]
    known = {known for known, _ in dotted_keys(TrainConfig)}
    full = f"{parent}.{wrong}" if parent else wrong
    assume(wrong and full not in known and len(name) > 3)
    with pytest.raises(ConfigError) as error:
        load_config(None, {**NEEDED, full: 1})
    assert f"unknown key '{full}'" in str(error.value)
    assert f"'{name}'" in str(error.value)


def test_the_reference_holds_every_key_with_its_default_and_description() -> None:
    text = reference_yaml()
    data = yaml.safe_load(text.replace("...  # required", "x").replace("\nbase: null", "\nbase: x"))
    config = TrainConfig.model_validate(data)
    assert config == TrainConfig.model_validate({"base": "x", "out": "x", "data": {"train": "x"}})
    for key, field in dotted_keys(TrainConfig):
        assert field.description, key
        assert f"# {field.description}\n" in text, key


def test_the_adapters_settings_are_those_of_the_adapters_layer() -> None:
    settings = AdapterConfig().spec_settings(seed=3, heads=("classifier",))
    assert AdapterSpec.of(**settings) == AdapterSpec(seed=3, heads=("classifier",))
    spec = AdapterSpec.of(
        **AdapterConfig(layers="1-3", targets=["q", "v"], heads=["h"]).spec_settings(seed=0, heads=("c",))
    )
    assert (spec.layers, spec.targets, spec.heads) == ((1, 2, 3), ("q", "v"), ("c", "h"))


def test_settings_are_frozen_and_travel_through_json() -> None:
    config = load_config(None, {**NEEDED, "adapter.layers": [0, 1]})
    with pytest.raises(ValueError, match="frozen"):
        config.epochs = 5  # type: ignore[misc]
    assert TrainConfig.model_validate(config.settings()) == config


def test_changed_keys_are_named_and_harmless_ones_are_not() -> None:
    before = load_config(None, NEEDED).settings()
    now = load_config(None, {**NEEDED, "adapter.rank": 4, "epochs": 9, "out": "elsewhere", "log_every": 3}).settings()
    assert changed_keys(before, now) == ["adapter.rank", "epochs"]
    assert changed_keys(before, before) == []


def test_default_rates_follow_the_method() -> None:
    lora, full = (load_config(None, {**NEEDED, "method": method}) for method in ("lora", "full"))
    assert lora.rate > 5 * full.rate > 0
    assert lora.head_rate == lora.rate
    assert load_config(None, {**NEEDED, "head_learning_rate": 0.5}).head_rate == 0.5


def attributes_read(source: Path) -> Iterator[str]:
    """Names of attributes that the code under `source` reads."""
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                yield node.attr


def unread(keys: list[str], source: Path) -> list[str]:
    read = set(attributes_read(source))
    return [key for key in keys if key.rpartition(".")[2] not in read]


def test_every_setting_is_read_somewhere(root: Path) -> None:
    keys = [key for key, _ in dotted_keys(TrainConfig)]
    assert unread(keys, root / "src" / "loraloom") == []


def test_a_setting_that_nobody_reads_would_be_found(root: Path) -> None:
    assert unread(["adapter.rank", "adapter.never_read_at_all"], root / "src") == ["adapter.never_read_at_all"]
