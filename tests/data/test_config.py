"""The data settings: frozen, every field described, no unknown key, sensible ranges."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from loraloom.data import DataConfig


def test_every_field_says_what_it_is_for():
    for name, field in DataConfig.model_fields.items():
        assert field.description and field.description.endswith("."), name


def test_settings_do_not_change():
    with pytest.raises(ValidationError):
        DataConfig(train="a.csv").train = "b.csv"


@pytest.mark.parametrize(
    "wrong",
    [
        {"traim": "a.csv"},
        {"eval_fraction": 0},
        {"eval_fraction": 1},
        {"limit": 1},
        {"delimiter": ""},
        {"delimiter": ",,"},
        {"delimiter": '"'},
        {"delimiter": "\n"},
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError):
        DataConfig(**{"train": "a.csv", **wrong})


@pytest.mark.parametrize(
    ("given", "character"), [(";", ";"), ("tab", "\t"), ("\\t", "\t"), ("\t", "\t"), ("Semicolon", ";"), (None, None)]
)
def test_delimiters_by_name(given, character):
    assert DataConfig(train="a.csv", delimiter=given).delimiter == character


def test_settings_survive_json():
    config = DataConfig(train="a.csv", columns={"text": "review"}, delimiter="tab", limit=10)
    assert DataConfig.model_validate_json(config.model_dump_json()) == config
