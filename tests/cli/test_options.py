"""Flags made from settings: what a word of the command line means."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraloom.cli.options import parse_assignment, parse_value
from loraloom.cli.train import FIELDS, FLAGS
from loraloom.errors import ConfigError
from loraloom.tasks import option_fields
from loraloom.training.config import TrainConfig, load_config

WORDS = [
    ("base", "123", "123"),
    ("adapter.rank", "16", 16),
    ("adapter.alpha", "null", None),
    ("adapter.targets", "query", "query"),
    ("adapter.targets", "query, value", ["query", "value"]),
    ("adapter.targets", "re:.*(q|k){1,2}", "re:.*(q|k){1,2}"),
    ("adapter.targets", "[query, value]", ["query", "value"]),
    ("adapter.exclude", "pooler", ["pooler"]),
    ("adapter.layers", "4-7", "4-7"),
    ("adapter.layers", "3", 3),
    ("adapter.layers", "[0, 1]", [0, 1]),
    ("base_dropout", "true", True),
    ("method", "full", "full"),
]


@pytest.mark.parametrize(("key", "word", "value"), WORDS)
def test_a_word_is_read_as_its_setting_wants_it(key: str, word: str, value: Any) -> None:
    assert parse_value(FIELDS[key], word) == value


@pytest.mark.parametrize(("key", "word", "value"), WORDS)
def test_what_was_read_is_accepted(key: str, word: str, value: Any) -> None:
    needed = {"base": "b", "data.train": "d", "out": "o"}
    config: Any = load_config(None, {**needed, key: parse_value(FIELDS[key], word)})
    for part in key.split("."):
        config = getattr(config, part)
    assert config == value


def test_every_flag_sets_a_setting_that_exists_and_says_what_it_is() -> None:
    for flag in FLAGS:
        of_pictures = flag.key.removeprefix("options.") in option_fields("text-to-image")
        assert flag.key in FIELDS or flag.key.startswith("data.columns.") or of_pictures
        assert flag.option().annotation.__metadata__[0].help.strip()
    assert len({flag.parameter for flag in FLAGS}) == len(FLAGS)


def test_a_rate_in_scientific_notation_is_a_number() -> None:
    settings = {"base": "b", "data.train": "d", "out": "o"}
    rate = parse_value(FIELDS["learning_rate"], "2e-4")
    assert load_config(None, {**settings, "learning_rate": rate}).learning_rate == pytest.approx(2e-4)


def test_an_assignment_may_hold_an_equals_sign() -> None:
    assert parse_assignment("base=a=b", FIELDS) == ("base", "a=b")
    assert parse_assignment("data.columns.text=42", FIELDS) == ("data.columns.text", "42")


@pytest.mark.parametrize("entry", ["", "=", "rank", "=4", "a b=3"])
def test_an_assignment_needs_a_key_and_an_equals_sign(entry: str) -> None:
    with pytest.raises(ConfigError, match="key=value"):
        parse_assignment(entry, FIELDS)


@given(st.sampled_from(sorted(FIELDS)), st.text(max_size=12))
def test_no_word_makes_reading_fail_in_any_other_way(key: str, word: str) -> None:
    parse_value(FIELDS[key], word)
    try:
        load_config(None, {"base": "b", "data.train": "d", "out": "o", key: parse_value(FIELDS[key], word)})
    except ConfigError as error:
        assert key.split(".")[-1] in str(error)


def test_the_reference_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    from loraloom.cli.main import main

    assert main(["train", "--reference"]) == 0
    printed = capsys.readouterr().out
    for key in FIELDS:
        assert f"{key.split('.')[-1]}:" in printed
    assert set(TrainConfig.model_fields) <= {key.split(".")[0] for key in FIELDS}
