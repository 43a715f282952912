"""The training form and the YAML text say the same."""

from __future__ import annotations

import pytest
import yaml

from loraloom.errors import ConfigError
from loraloom.studio.settings_form import (
    FORM,
    checked_config,
    first_settings,
    form_values,
    reconciled,
    usual,
    with_form,
)

KEYS = [field.key for field in FORM]
TEXT = """\
task: text-classification
base: owner/name
data: {train: sentiment, columns: {text: review}}
out: first
adapter: {rank: 4, dropout: 0.1}
learning_rate: 0.002
"""


def test_every_field_is_a_setting_that_is_described() -> None:
    assert all(len(field.help) > 20 for field in FORM)
    assert usual("adapter.rank") == "8" and usual("seed") == "0" and usual("base") == ""


def test_the_first_settings_fill_the_form() -> None:
    values = dict(zip(KEYS, form_values(first_settings()), strict=True))
    assert values["task"] and values["base"] and values["out"] and values["epochs"] == ""


def test_the_text_fills_the_form_and_the_form_the_text() -> None:
    values = dict(zip(KEYS, form_values(TEXT), strict=True))
    assert (values["adapter.rank"], values["learning_rate"], values["data.train"]) == ("4", "0.002", "sentiment")
    changed = yaml.safe_load(with_form(TEXT, {**values, "adapter.rank": "16", "max_steps": "20", "base": "other"}))
    assert changed["adapter"] == {"rank": 16, "dropout": 0.1}, "what the form has no field for must stay"
    assert changed["data"]["columns"] == {"text": "review"}
    assert (changed["max_steps"], changed["base"], changed["learning_rate"]) == (20, "other", 0.002)


def test_an_empty_field_takes_its_setting_away() -> None:
    changed = yaml.safe_load(with_form(TEXT, {"learning_rate": " ", "adapter.rank": None, "data.eval": ""}))
    assert "learning_rate" not in changed and changed["adapter"] == {"dropout": 0.1}
    assert "eval" not in changed["data"]


def test_what_is_no_number_reaches_the_check_as_it_was_written() -> None:
    with pytest.raises(ConfigError, match="'adapter.rank' is 'many'"):
        checked_config(with_form(TEXT, {"adapter.rank": "many"}))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1", "the settings: line 1"),
        ("- 1\n- 2", "expected 'key: value' lines, found list"),
        ("a: &x [1]\nb: *x", "alias"),
        ("x: " + "y" * 60_000, "60,003 characters"),
        ("[" * 20_000, "nested more than 20 levels"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ],
)
def test_a_text_that_is_no_settings_is_refused_in_words(text: str, told: str) -> None:
    for reads in (form_values, checked_config):
        with pytest.raises(ConfigError, match=told):
            reads(text)


def test_faults_name_line_and_key_and_no_file_of_ours() -> None:
    with pytest.raises(ConfigError) as error:
        checked_config(TEXT + "epoch: 3\nseed: -1\n")
    assert "line 7: unknown key 'epoch'; did you mean 'epochs'" in str(error.value)
    assert "line 8: 'seed' is -1" in str(error.value) and str(error.value).startswith("the settings")
    assert "/tmp" not in str(error.value)


def test_the_task_and_its_options_are_checked_too() -> None:
    with pytest.raises(ConfigError, match="did you mean 'text-classification'"):
        checked_config(TEXT.replace("text-classification", "text-clasification"))
    with pytest.raises(ConfigError, match="no option 'colour'"):
        checked_config(TEXT + "options: {colour: red}\n")


def test_the_newer_of_form_and_text_wins_field_by_field() -> None:
    before = form_values(TEXT)
    assert reconciled(TEXT, before, before) == TEXT, "comments and order stay where the form says nothing new"
    now = list(before)
    now[KEYS.index("epochs")] = "7"
    edited = TEXT.replace("rank: 4", "rank: 32")  # in the text, and the form has not heard of it yet
    merged = yaml.safe_load(reconciled(edited, before, now))
    assert (merged["epochs"], merged["adapter"]["rank"]) == (7, 32)
