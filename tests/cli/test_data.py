"""`loraloom data check`: what it prints, its status, and that it reads columns as training does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tests.cli.commands import Call, sentences, write_csv
from tests.imaging import tiny

from loraloom.cli.data import SUBVERBS
from loraloom.data.check import MODALITIES, pairs, pictures, recordings, text, writing
from loraloom.data.columns import Role
from loraloom.tasks import image_classification, speech_recognition, task_names, text_classification
from loraloom.tasks.language import lm_examples
from loraloom.tasks.language import pairs as task_pairs
from loraloom.tasks.speech import speech_pairs

CHECK = ("data", "check")


def test_a_sound_file_is_told_in_tables_and_status_0(call: Call, train_file: Path) -> None:
    outcome = call(*CHECK, train_file, "--task", "text-classification")
    assert (outcome.status, outcome.err) == (0, "")
    assert "positive 24" in outcome.out
    assert "words" in outcome.out
    assert outcome.out.splitlines()[-1] == "nothing amiss was found"


def test_findings_end_with_0_and_with_strict_in_2_and_one_sentence(call: Call, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", [*sentences(40), ("", "positive"), ("a text [of note]", "")])
    outcome = call(*CHECK, file, "--task", "text-classification")
    assert outcome.status == 0
    assert "problem: data: 1 row without a value that is needed (text column 'text')" in outcome.out
    assert "    a.csv:42" in outcome.out
    strict = call(*CHECK, file, "--task", "text-classification", "--strict")
    assert (strict.status, strict.out) == (2, outcome.out)
    assert len(strict.err.splitlines()) == 1
    assert strict.err.startswith("loraloom: data: 1 row without a value")
    assert strict.err.rstrip().endswith("and 1 other kinds of problems")


def test_strict_passes_what_is_sound(call: Call, train_file: Path) -> None:
    assert call(*CHECK, train_file, "--task", "text-classification", "--strict").status == 0


def test_json_is_one_object_with_strict_too(call: Call, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", [*sentences(40), ("", "positive")])
    outcome = call(*CHECK, file, "--task", "text-classification", "--json", "--strict")
    assert outcome.status == 2
    assert outcome.data["problems"] == 1
    (part,) = outcome.data["parts"]
    assert (part["rows"], part["usable"]) == (41, 40)
    assert part["lengths"]["words"]["max"] == 6
    assert part["findings"][0]["kind"] == "row-missing-value"


def test_an_evaluation_file_and_other_columns(call: Call, tmp_path: Path) -> None:
    train = write_csv(tmp_path / "a.csv", sentences(40), header="body of it;verdict", delimiter=";")
    held_out = write_csv(tmp_path / "b.csv", sentences(3), header="body of it;verdict", delimiter=";")
    words = ["--eval", held_out, "--text-column", "body of it", "--set", "columns.label=verdict", "--delimiter", ";"]
    outcome = call(*CHECK, train, "--task", "text-classification", "--json", *words)
    assert outcome.status == 0
    assert outcome.data["parts"][0]["columns"] == {"text": "body of it", "label": "verdict"}
    assert "leak" in {finding["kind"] for finding in outcome.data["between"]}


def test_a_sheet_is_drawn_only_when_asked_for(call: Call, train_file: Path, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    call(*CHECK, train_file, "--task", "text-classification")
    assert set(tmp_path.iterdir()) == before
    outcome = call(*CHECK, train_file, "--task", "text-classification", "--sheet", tmp_path / "sheet.png")
    assert outcome.out.splitlines()[-1] == f"drawn in {tmp_path / 'sheet.png'}"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 1400


def test_lengths_in_the_tokens_of_a_base(call: Call, train_file: Path, tiny_base: Path) -> None:
    words = [*CHECK, train_file, "--task", "text-classification", "--base", tiny_base, "--json"]
    (part,) = call(*words).data["parts"]
    assert part["lengths"]["tokens"] == {"n": 48, "min": 8, "median": 8, "p95": 8, "max": 8, "sum": 384}
    (part,) = call(*words, "--max-length", 7).data["parts"]
    assert [finding["count"] for finding in part["findings"] if finding["kind"] == "cut"] == [48]


def test_captions_in_the_tokens_of_a_base_of_pictures(call: Call, tmp_path: Path) -> None:
    base = tiny.saved("sd1", tmp_path / "base")
    (tmp_path / "set").mkdir()
    for number in range(2):
        Image.new("RGB", (64, 64), (90 * number, 20, 20)).save(tmp_path / "set" / f"{number}.png")
        (tmp_path / "set" / f"{number}.txt").write_text("a house " * (1 + 99 * number))
    words = [*CHECK, tmp_path / "set", "--task", "text-to-image", "--json", "--base"]
    (part,) = call(*words, base).data["parts"]
    assert part["lengths"]["tokens"]["min"] > 3
    assert [finding["count"] for finding in part["findings"] if finding["kind"] == "cut"] == [1]
    (base / "tokenizer").rename(tmp_path / "away")
    refused = call(*words, base)
    assert (refused.status, len(refused.err.splitlines())) == (2, 1)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data", "chekc"], "data has no verb 'chekc'; did you mean 'check'?"),
        (["data"], "missing command"),
        (["data", "check"], "PATH"),
        (["data", "check", "a.csv"], "--task"),
        (["data", "check", "a.csv", "--task", "text-clasification"], "did you mean 'text-classification'"),
        (["data", "check", "a.csv", "--task", "translation", "--shet", "x"], "did you mean '--sheet'?"),
        (["data", "check", "a.csv", "--task", "translation", "--sheet", "x.jpg"], "the name must end in .png"),
        (["data", "check", "a.csv", "--task", "translation", "--sheet", "no/x.png"], "there is no such folder"),
        (["data", "check", "a.csv", "--task", "translation", "--max-length", "9"], "needs a --base"),
        (["data", "check", "a.csv", "--task", "translation", "--set", "limit=3"], "columns.ROLE=NAME"),
        (["data", "check", "a.csv", "--task", "translation", "--delimiter", "ab"], "expected one character"),
        (["data", "check", "a.csv", "--task", "translation"], "a.csv does not exist"),
    ],
)
def test_a_slip_is_one_sentence(words: list[str], told: str, call: Call) -> None:
    outcome = call(*words)
    assert (outcome.status, outcome.out) == (2, "")
    assert told in outcome.err
    assert len(outcome.err.splitlines()) == 1


@pytest.mark.parametrize("verb", SUBVERBS)
def test_help_of_a_verb_of_the_group(verb: str, call: Call) -> None:
    outcome = call("data", verb, "--help")
    assert outcome.status == 0
    assert "--json" in outcome.out
    assert "--debug" in outcome.out
    assert verb in call("data", "--help").out


def test_a_check_does_not_import_torch(train_file: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from loraloom.cli.main import main; status = main(sys.argv[1:]); "
        "print('\\n' + ' '.join(sys.modules)); sys.exit(status)"
    )
    words = [*CHECK, str(train_file), "--task", "text-classification", "--sheet", str(tmp_path / "a.png")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "datasets"}.isdisjoint(done.stdout.splitlines()[-1].split())


def test_every_task_can_be_checked() -> None:
    assert set(MODALITIES) == set(task_names())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (text.TEXT, text_classification.TEXT),
        (text.LABEL, text_classification.LABEL),
        (pictures.LABEL, image_classification.LABEL),
        (pairs.SOURCE, task_pairs.SOURCE),
        (pairs.TARGET, task_pairs.TARGET),
        (writing.TEXT, lm_examples.TEXT),
        (writing.PROMPT, lm_examples.PROMPT),
        (writing.CONTEXT, lm_examples.CONTEXT),
        (writing.COMPLETION, lm_examples.COMPLETION),
        (writing.MESSAGES, lm_examples.MESSAGES),
    ],
    ids=lambda role: role.name,
)
def test_a_check_finds_the_columns_that_training_finds(ours: Role, theirs: Role) -> None:
    assert ours == theirs


def test_a_check_of_speech_finds_the_columns_of_both_of_its_tasks() -> None:
    assert set(recordings.TEXT.candidates) == {*speech_pairs.TEXT.candidates, *speech_recognition.TEXT.candidates}
    assert set(recordings.SPEAKER.candidates) == set(speech_pairs.SPEAKER.candidates)
