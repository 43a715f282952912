"""What a check finds in texts, pairs and conversations, however broken the file is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from loraloom.data import DataConfig
from loraloom.data.check import Finding, Report, Tokens, check_data
from loraloom.data.check.texts import odd_parts
from loraloom.errors import ConfigError, DataError

Write = Callable[[str, "str | bytes"], str]


def checked(task: str, train: str, **settings: Any) -> Report:
    tokens = settings.pop("tokens", None)
    return check_data(task, DataConfig(train=train, **settings), tokens=tokens).report


def found(report: Report, kind: str) -> list[Finding]:
    return [finding for _, finding in report.findings() if finding.kind == kind]


def only(report: Report, kind: str) -> Finding:
    (finding,) = found(report, kind)
    return finding


def csv(rows: list[tuple[str, str]], header: str = "text,label") -> str:
    return "\n".join([header, *(f"{text},{label}" for text, label in rows)]) + "\n"


SOUND = [(f"the {thing} was {word} today number {n}", label)
         for n, (thing, word, label) in enumerate(
             [("soup", "good", "a"), ("film about trains", "bad", "b"), ("long winter", "cold", "b"),
              ("garden", "green and wide", "a"), ("old song", "sung twice", "a"), ("river", "too deep for us", "b"),
              ("bread", "warm", "a"), ("last train", "late again", "b"), ("kitchen", "full of light", "a"),
              ("answer", "wrong", "b")])]  # fmt: skip


def test_a_sound_set_has_nothing_amiss(write: Write) -> None:
    report = checked("text-classification", write("a.csv", csv(SOUND)))
    (part,) = report.parts
    assert report.findings() == []
    assert (part.name, part.rows, part.usable, part.columns) == ("data", 10, 10, {"text": "text", "label": "label"})
    assert part.balance["label"].counts == {"a": 5, "b": 5}
    assert part.balance["label"].majority_share == 0.5
    words = part.lengths["words"]
    assert (words.n, words.min, words.max, words.sum) == (10, 7, 10, sum(len(text.split()) for text, _ in SOUND))


def test_the_spread_is_of_figures_that_occur(write: Write) -> None:
    rows = [(" ".join(["w"] * n) + f" {n}", "ab"[n % 2]) for n in range(1, 101)]
    spread = checked("text-classification", write("a.csv", csv(rows))).parts[0].lengths["words"]
    assert (spread.min, spread.median, spread.p95, spread.max) == (2, 51, 96, 101)


@pytest.mark.parametrize(
    ("text", "kind", "shown"),
    [
        ("gr\ufffdn ist die Wiese", "lost-characters", "\ufffd"),
        ("die BÃ¤ume sind grÃ¼n", "mojibake", "Ã¤"),
        ("it isnâ€™t so", "mojibake", "â€™"),
        ("a bell\x07 rings", "control-characters", "\x07"),
        ("a mark \ufeffwithin", "control-characters", "\ufeff"),
        ("fish &amp; chips", "markup", "&amp;"),
        ("first<br />second", "markup", "<br"),
        ("?!", "near-empty", "?!"),
        ("a ", "near-empty", "a"),
    ],
)
def test_odd_texts_are_told_by_what_is_odd(text: str, kind: str, shown: str) -> None:
    assert [name for name, _ in odd_parts(text)] == [kind]
    assert shown in odd_parts(text)[0][1]


@pytest.mark.parametrize(
    "text",
    ["Ça coûte 5 €, déjà", "NÃO é", "Âge d’or", "naïve — “so”", "tab\tand\nline", "好", "5 < 6 & 7", "ok", "Ñandú"],
)
def test_ordinary_texts_of_many_scripts_are_not_odd(text: str) -> None:
    assert [kind for kind, _ in odd_parts(text) if kind != "near-empty"] == []


def test_rows_without_a_value_are_counted_by_column_and_the_rest_is_read(write: Write) -> None:
    rows = [*SOUND, ("", "a"), ("nothing said of it", ""), ("  ", "b")]
    report = checked("text-classification", write("a.csv", csv(rows)))
    empty, unlabelled = found(report, "row-missing-value")
    assert (empty.count, empty.places) == (2, ["a.csv:12", "a.csv:14"])
    assert "text column" in empty.what
    assert (unlabelled.count, unlabelled.places) == (1, ["a.csv:13"])
    assert (report.parts[0].rows, report.parts[0].usable) == (13, 10)
    assert all(finding.severity == "problem" for _, finding in report.problems)


def test_a_csv_is_read_past_every_kind_of_broken_row(write: Write) -> None:
    lines = csv(SOUND).splitlines()
    lines[3] += ",surplus"
    lines.insert(5, '"a quote that never ends,a')
    data = "\n".join(lines).encode() + b"\nsoup of b\xe9ef,a\nthe very last row of all,b\n"
    report = checked("text-classification", write("a.csv", data))
    told = {finding.what.partition("(")[2].rstrip(")"): finding.places for finding in found(report, "unreadable")}
    assert told["3 fields where the header names 2"] == ["a.csv:4"]
    assert told["a quotation mark out of place"] == ["a.csv:6"]
    assert told["not UTF-8"] == ["a.csv:13"]
    assert (report.parts[0].usable, report.parts[0].rows) == (10, 13)


def test_a_jsonl_is_read_past_broken_lines(write: Write) -> None:
    rows = [json.dumps({"text": text, "label": label}) for text, label in SOUND]
    rows[2:2] = ["{broken", "[1, 2]"]
    report = checked("text-classification", write("a.jsonl", "\n".join(rows)))
    assert {finding.what: finding.places for finding in found(report, "unreadable")} == {
        "row that cannot be read (broken JSON)": ["a.jsonl:3"],
        "row that cannot be read (no JSON object)": ["a.jsonl:4"],
    }
    assert report.parts[0].usable == 10


def test_values_of_the_wrong_kind_are_named(write: Write) -> None:
    rows = [{"text": text, "label": label} for text, label in SOUND]
    rows += [{"text": ["a", "list"], "label": "a"}, {"text": "half a pair \ud83d", "label": "b"}]
    report = checked("text-classification", write("a.jsonl", "\n".join(map(json.dumps, rows))))
    assert only(report, "row-wrong-kind").places == ["a.jsonl:11", "a.jsonl:12"]


def test_only_five_places_are_shown_however_many_there_are(write: Write) -> None:
    rows = [*SOUND, *[("", "a")] * 40]
    missing = only(checked("text-classification", write("a.csv", csv(rows))), "row-missing-value")
    assert (missing.count, len(missing.places)) == (40, 5)
    assert "and 35 more" in missing.sentence


def test_duplicates_and_conflicts_within_a_part(write: Write) -> None:
    rows = [*SOUND, (SOUND[0][0].upper() + "!", "a"), (SOUND[1][0], "a"), (SOUND[2][0] + " too", "b")]
    report = checked("text-classification", write("a.csv", csv(rows)))
    assert [place.partition(" '")[0] for place in only(report, "duplicate").places] == [
        "a.csv:12 = a.csv:2",
        "a.csv:13 = a.csv:3",
    ]
    conflict = only(report, "conflicting-labels")
    assert (conflict.severity, conflict.count) == ("problem", 1)
    assert "'a' in a.csv:13, 'b' in a.csv:3" in conflict.places[0]
    assert only(report, "near-duplicate").places[0].startswith("a.csv:14 ≈ a.csv:4")


def test_leaks_between_the_splits_of_a_folder(write: Write) -> None:
    train = write("train.csv", csv(SOUND))
    write("test.csv", csv([(SOUND[3][0] + "!", "b"), (SOUND[4][0] + " again", "a"), ("a new one entirely", "c")]))
    report = checked("text-classification", train.rpartition("/")[0])
    assert [part.name for part in report.parts] == ["train", "test"]
    leak, near = only(report, "leak"), only(report, "near-leak")
    assert leak.places[0].startswith("test.csv:2 = train.csv:5")
    assert "labelled 'a' there and 'b' here" in leak.places[0]
    assert near.places[0].startswith("test.csv:3 ≈ train.csv:6")
    assert only(report, "unseen-label").places == ["'c' (1 in test)"]
    assert {name for name, _ in report.problems} == {"between"}


def test_an_evaluation_file_is_checked_as_well(write: Write) -> None:
    report = checked("text-classification", write("a.csv", csv(SOUND)), eval=write("b.csv", csv(SOUND[:4])))
    assert [(part.name, part.usable) for part in report.parts] == [("train", 10), ("evaluation", 4)]
    assert only(report, "leak").count == 4


def test_labels_that_are_rare_alike_dominant_or_no_classes(write: Write) -> None:
    rows = [(f"row {n} says {n * 7} things of {n * 13}", "Yes" if n % 20 else "yes ") for n in range(60)]
    report = checked("text-classification", write("a.csv", csv(rows)))
    assert only(report, "few-examples").places == ["'yes' (3)"]
    assert only(report, "labels-alike").places == ["'Yes' = 'yes'"]
    assert only(report, "dominant-label").places == ["'Yes' (95.0 %)"]
    every = [(f"row {n} says {n * 7} things", f"id{n}") for n in range(30)]
    other = checked("text-classification", write("b.csv", csv(every)))
    assert "nearly every row has its own" in only(other, "not-classes").places[0]
    assert found(other, "few-examples") == []


def test_a_text_much_longer_than_the_others(write: Write) -> None:
    rows = [*SOUND, (" ".join(f"word{n}" for n in range(200)), "a")]
    report = checked("text-classification", write("a.csv", csv(rows)))
    assert only(report, "long-text").places == ["a.csv:12 (text, 200 words)"]


def test_tokens_of_a_base_and_what_it_would_cut(write: Write) -> None:
    tokens = Tokens("tiny", lambda texts: [len(text.split()) + 2 for text in texts], limit=10)
    report = checked("text-classification", write("a.csv", csv(SOUND)), tokens=tokens)
    assert report.parts[0].lengths["tokens"].max == 12
    cut = only(report, "cut")
    assert cut.count == sum(len(text.split()) > 8 for text, _ in SOUND)
    assert "10 tokens" in cut.what
    pairs = checked("translation", write("p.csv", csv([("a b c", "x")] * 2, "source,target")), tokens=tokens)
    assert pairs.parts[0].lengths["source tokens"].max == 5
    assert pairs.parts[0].lengths["target tokens"].max == 3


def test_pairs_with_sides_that_do_not_go_together(write: Write) -> None:
    usual = [(f"sentence number {n} of the book", f"zin nummer {n} van het boek") for n in (1, 22, 333, 4444)]
    rows = [*usual, ("Stop!", "Stop!"), ("a short one", "heel " * 30), ("Stop!", "Halt!"), ("half", "")]
    report = checked("translation", write("a.csv", csv(rows, "source,target")))
    assert only(report, "same-sides").places == ["a.csv:6 'Stop!'"]
    assert only(report, "odd-ratio").places[0].startswith("a.csv:7 ")
    assert only(report, "many-targets").places == ["a.csv:6, a.csv:8 'stop'"]
    assert only(report, "row-missing-value").places == ["a.csv:9"]
    assert set(report.parts[0].lengths) >= {"source words", "target words"}


def test_a_leak_of_pairs_is_told_by_the_source_alone(write: Write) -> None:
    train = write(
        "a.csv", csv([("the dog sleeps", "de hond slaapt"), ("we eat bread", "we eten brood")], "source,target")
    )
    held_out = write("b.csv", csv([("The dog sleeps.", "de hond ligt te slapen")], "source,target"))
    assert only(checked("translation", train, eval=held_out), "leak").count == 1


def test_a_column_of_pairs_by_language(write: Write) -> None:
    rows = [{"translation": {"en": f"line {n} here", "nl": f"regel {n} hier"}} for n in range(3)] + [
        {"translation": None}
    ]
    source = write("a.jsonl", "\n".join(map(json.dumps, rows)))
    report = checked("translation", source)
    assert report.parts[0].columns == {"source": "en", "target": "nl"}
    assert (report.parts[0].rows, report.parts[0].usable) == (4, 3)
    turned = checked("translation", source, columns={"source": "nl"})
    assert turned.parts[0].columns == {"source": "nl", "target": "en"}


def test_prompts_and_completions(write: Write) -> None:
    rows = [
        {"prompt": "What is two and two?", "completion": "Four."},
        {"prompt": "Name a river of France"},
        {"completion": "An answer to nothing"},
    ]
    report = checked("causal-lm", write("a.jsonl", "\n".join(map(json.dumps, rows))))
    assert only(report, "no-completion").places == ["a.jsonl:2 'Name a river of France'"]
    assert only(report, "no-prompt").places[0].startswith("a.jsonl:3")
    assert (report.parts[0].rows, report.parts[0].usable) == (3, 1)
    assert report.parts[0].lengths["completion words"].max == 1


def says(*turns: str) -> dict[str, Any]:
    return {"messages": [{"role": turn.partition(":")[0], "content": turn.partition(":")[2]} for turn in turns]}


def test_conversations_out_of_order(write: Write) -> None:
    rows = [
        says("system:be brief", "user:how are you", "assistant:well"),
        says("user:nobody answers this"),
        says("user:one thing", "user:and another thing", "assistant:fine"),
        says("user:the weather", "assistant:rain", "user:thanks a lot"),
        says("user:a riddle", "wizard:a spell", "assistant:none"),
        says("user:a question of mine", "assistant:"),
        {"messages": "no list"},
        {"messages": [{"text": "no role"}]},
        {"messages": [{"from": "human", "value": "an older form"}, {"from": "gpt", "value": "is read too"}]},
    ]
    report = checked("causal-lm", write("a.jsonl", "\n".join(map(json.dumps, rows))))
    places = {finding.kind: [place.split()[0] for place in finding.places] for _, finding in report.findings()}
    assert places == {
        "no-assistant": ["a.jsonl:2"],
        "not-in-turn": ["a.jsonl:3"],
        "ends-on-question": ["a.jsonl:4"],
        "unknown-role": ["a.jsonl:5"],
        "empty-message": ["a.jsonl:6"],
        "not-a-conversation": ["a.jsonl:7", "a.jsonl:8"],
    }
    assert report.parts[0].lengths["messages"].max == 3


def test_a_turn_of_phrase_that_comes_twice_is_no_problem_for_a_language_model(write: Write) -> None:
    train = write("a.txt", "Dear Sir,\n\nThe carriage came at nine in the morning.\n")
    held_out = write("b.txt", "Dear Sir,\n\nThe carriage came at nine in the morning.\n")
    report = checked("causal-lm", train, eval=held_out)
    assert (only(report, "short-leak").severity, only(report, "short-leak").count) == ("notice", 1)
    assert (only(report, "leak").severity, only(report, "leak").count) == ("problem", 1)


def test_what_cannot_be_read_at_all_is_refused_in_a_sentence(write: Write) -> None:
    with pytest.raises(DataError, match="does not exist"):
        checked("text-classification", "nowhere.csv")
    with pytest.raises(DataError, match="no column known to hold the label"):
        checked("text-classification", write("a.csv", "text,number\nsome text here,1\nmore text there,2\n"))
    with pytest.raises(ConfigError, match="did you mean 'translation'"):
        checked("translations", write("b.csv", "source,target\na,b\n"))


def test_the_packaged_set_is_checked_in_both_its_splits() -> None:
    report = checked("text-classification", "sentiment")
    assert [(part.name, part.usable) for part in report.parts] == [("train", 720), ("test", 240)]
    assert report.problems == []


def test_a_report_is_plain_data(write: Write) -> None:
    report = checked("text-classification", write("a.csv", csv([*SOUND, ("", "a")])))
    data = json.loads(json.dumps(report.to_dict()))
    assert data["problems"] == 1
    assert data["parts"][0]["lengths"]["words"]["median"] == report.parts[0].lengths["words"].median
    assert data["parts"][0]["findings"][0]["places"] == ["a.csv:12"]
