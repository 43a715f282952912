"""`loraloom prompt`: the JSON that programs read, files and stdin, the tables, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.cli.commands import Call
from tests.imaging.prompt.missions import NEGATIVE, NEGATIVE_SEGMENTS, POSITIVE, POSITIVE_SEGMENTS


def whole(segments: list[list[object]], steps: int = 20) -> dict[str, object]:
    parts = [{"weight": 1.0, "schedule": [{"end_step": steps, "segments": segments}]}]
    return {"loras": [], "networks": [], "parts": parts, "warnings": []}


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch):
    def give(data: bytes) -> None:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))

    return give


def test_one_prompt_is_one_object(call: Call) -> None:
    outcome = call("prompt", "a [red:blue:0.5] (boat) BREAK b <lora:ink:0.8> <hypernet:foo:1>", "--steps", 4, "--json")
    assert (outcome.status, outcome.err) == (0, "")
    tail = [["boat", 1.1], ["", 1.0], ["BREAK", -1], ["b", 1.0]]  # the blanks at a part's end go
    assert outcome.data == {
        "loras": [{"name": "ink", "te": 0.8, "unet": 0.8}],
        "networks": [{"name": "hypernet", "args": ["foo", "1"], "named": {}}],
        "parts": [
            {
                "weight": 1.0,
                "schedule": [
                    {"end_step": 2, "segments": [["a red ", 1.0], *tail]},
                    {"end_step": 4, "segments": [["a blue ", 1.0], *tail]},
                ],
            }
        ],
        "warnings": [],
    }


@pytest.mark.parametrize(("text", "segments"), [(POSITIVE, POSITIVE_SEGMENTS), (NEGATIVE, NEGATIVE_SEGMENTS)])
def test_the_prompts_of_the_image_scene(call: Call, text: str, segments: list[list[object]]) -> None:
    assert call("prompt", text, "--json").data == whole(segments)


def test_a_negative_prompt_stands_beside_it(call: Call) -> None:
    data = call("prompt", "a", "--negative", "b AND c", "--json").data
    assert data["parts"] == whole([["a", 1.0]])["parts"]
    assert data["negative"]["parts"] == whole([["b AND c", 1.0]])["parts"]
    assert "AND is left as text" in data["negative"]["warnings"][0]


def test_a_file_gives_one_line_per_prompt(call: Call, tmp_path: Path) -> None:
    texts = [POSITIVE, NEGATIVE, "", "line\nbreak \u2028 and \ud800", "ein Boot, 船"]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\ufeff" + "\n".join(json.dumps(text) for text in texts[:3]) + "\n", "utf-8")
    with file.open("a", encoding="utf-8") as stream:
        stream.write('"line\\nbreak \u2028 and \\ud800"\n"ein Boot, 船"\n')
    outcome = call("prompt", "--file", file, "--steps", 7, "--json")
    assert (outcome.status, outcome.err) == (0, "")
    lines = outcome.out.removesuffix("\n").split("\n")
    expected = [POSITIVE_SEGMENTS, NEGATIVE_SEGMENTS, *([[text, 1.0]] for text in texts[2:])]
    assert [json.loads(line) for line in lines] == [whole(segments, 7) for segments in expected]
    assert "船" in lines[-1]


def test_an_empty_file_has_no_prompts(call: Call, tmp_path: Path) -> None:
    (tmp_path / "none").touch()
    outcome = call("prompt", "--file", tmp_path / "none", "--json")
    assert (outcome.status, outcome.out) == (0, "")


def test_stdin_holds_json_strings_for_file_and_plain_text_for_text(call: Call, stdin) -> None:
    stdin(b'"a"\n"(b)"')
    lines = call("prompt", "--file", "-", "--json").out.splitlines()
    assert [json.loads(line) for line in lines] == [whole([["a", 1.0]]), whole([["b", 1.1]])]
    stdin(b'"(b)"\n')
    assert call("prompt", "-", "--json").data == whole([['"', 1.0], ["b", 1.1], ['"', 1.0]])


def test_weights_beyond_all_numbers_are_null_in_json(call: Call) -> None:
    outcome = call("prompt", "(a:" + "9" * 400 + ")", "--json")
    assert "Infinity" not in outcome.out
    assert outcome.data["parts"][0]["schedule"][0]["segments"] == [["a", None]]
    assert len(outcome.data["warnings"]) == 1


# -- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"a plain line", "a plain line found"),
        (b"", "an empty line found"),
        (b"12", "12 found"),
        (b'["a"]', '["a"] found'),
        (b'{"prompt": "a"}', '{"prompt": "a"} found'),
        (b'"a', '"a found'),
        (b'"\xff"', '"\ufffd" found'),
        (b"[" * 100_000, "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[… found"),
    ],
)
def test_a_line_that_is_no_json_string(call: Call, tmp_path: Path, line: bytes, found: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'"right"\n' + line + b'\n"right"\n')
    outcome = call("prompt", "--file", file)
    assert (outcome.status, outcome.out) == (2, "")
    assert f"{file}, line 2: {found}, and one JSON string is needed" in outcome.err
    assert len(outcome.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "a prompt is needed: either as TEXT, or in --file FILE"),
        (["a", "--file", "b"], "not both"),
        (["--file", "nothing-here"], "--file 'nothing-here': there is no such file"),
        (["--file", "."], "--file '.': a folder was found, and a file is needed"),
        (["--file", "-", "--negative", "a"], "--negative goes with one TEXT"),
        (["a", "--steps", "0"], "steps: 0 found, and 1 to 1000 are accepted"),
    ],
)
def test_words_that_do_not_fit(call: Call, words: list[str], said: str) -> None:
    outcome = call("prompt", *words)
    assert (outcome.status, outcome.out) == (2, "")
    assert said in outcome.err


def test_stdin_that_is_no_text(call: Call, stdin) -> None:
    stdin(b"a\xff")
    outcome = call("prompt", "-")
    assert (outcome.status, outcome.err) == (2, "loraloom: stdin: byte 2 is no UTF-8 text\n")


# -- for people -------------------------------------------------------------------------------------


def test_tables_show_steps_parts_adapters_and_warnings(call: Call) -> None:
    text = "a [red|blue] (boat:1.25) BREAK sea AND (night :0.5 <lora:ink:0.8:blocks=up*0:steps=2*0> <x:y:k=v>"
    outcome = call("prompt", text, "--steps", 4, "--negative", "(ugly)")
    assert (outcome.status, outcome.err) == (0, "")
    rows = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert rows[1] == "part steps weight text"
    assert rows[3:11] == [
        "1 × 1 1, 3 1 a red",
        "1.25 boat",
        "– BREAK: a new chunk",
        "1 sea",
        "2, 4 1 a blue",
        "1.25 boat",
        "– BREAK: a new chunk",
        "1 sea",
    ]
    assert rows[11:13] == ["2 × 0.5 1–4 1 ␣", "1.1 night"]
    assert "ink 0.8 0.8 up × 0 1–2 × 0, 3–4 × 1" in rows
    assert "not an adapter: <x:y:k=v>" in rows
    assert (
        "warning: character 40: '(' never closes, so that it weights all that follows; write \\( for the sign" in rows
    )
    assert "negative prompt" in rows
    assert rows[-2] == "1 1–4 1.1 ugly"


def test_nothing_of_a_prompt_is_obeyed_by_the_terminal(call: Call) -> None:
    outcome = call("prompt", "a\nb \x1b]0;title\x07 [bold]x[/bold] \ud800")
    assert outcome.status == 0
    assert "a⏎b" in outcome.out
    assert "\\x1b" in outcome.out
    assert "\x1b" not in outcome.out
    assert "\\ud800" in outcome.out


def test_a_file_without_json_shows_each_line(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"a (b)"\n"c"\n', "utf-8")
    out = call("prompt", "--file", file).out
    assert out.index("line 1: a (b)") < out.index("line 2: c")
