"""`loraloom evaluate`, `predict` and `inspect` on a finished run."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from tests.cli.commands import Call, sentences, write_csv

TEXTS = [text for text, _ in sentences(6)]


def test_evaluate_scores_with_an_interval(call: Call, run_folder: Path, eval_file: Path) -> None:
    outcome = call("evaluate", run_folder, "--data", eval_file, "--json")
    assert outcome.status == 0, outcome.err
    metrics = outcome.data["metrics"]
    assert outcome.data["metric"] == "accuracy"
    assert metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"]
    assert metrics["accuracy"] > 0.8
    table = call("evaluate", run_folder, "--data", eval_file).out
    assert "accuracy" in table and "macro_f1" in table and "20 examples" in table


def test_evaluate_is_the_same_for_any_batch_size(call: Call, run_folder: Path, eval_file: Path) -> None:
    scores = [call("evaluate", run_folder, "--data", eval_file, "--json", "--batch-size", n).data for n in (1, 7, 64)]
    assert scores[0]["metrics"] == scores[1]["metrics"] == scores[2]["metrics"]


def test_other_columns_than_in_training_can_be_named(call: Call, run_folder: Path, tmp_path: Path) -> None:
    other = write_csv(tmp_path / "other.csv", sentences(8), header="opinion,verdict")
    assert call("evaluate", run_folder, "--data", other, "--text-column", "opinoin").status == 2
    words = ["--text-column", "opinion", "--label-column", "verdict"]
    assert call("evaluate", run_folder, "--data", other, *words).status == 0
    assert call("predict", run_folder, "--data", other, "--text-column", "opinion").status == 0


def test_predict_texts(call: Call, run_folder: Path) -> None:
    words = [word for text in TEXTS for word in ("--text", text)]
    outcome = call("predict", run_folder, *words, "--json")
    assert outcome.status == 0, outcome.err
    rows = outcome.data["predictions"]
    assert [row["text"] for row in rows] == TEXTS
    assert [row["label"] for row in rows] == [label for _, label in sentences(6)]
    for row in rows:
        assert row["score"] == max(row["scores"].values())
        assert sum(row["scores"].values()) == pytest.approx(1, abs=1e-5)
    assert TEXTS[0] in call("predict", run_folder, *words).out


def test_predict_reads_lines_of_stdin(call: Call, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{TEXTS[0]}\n\n{TEXTS[1]}\n".encode())))
    rows = call("predict", run_folder, "--text", "-", "--json").data["predictions"]
    assert [row["text"] for row in rows] == TEXTS[:2]


@pytest.mark.parametrize(("given", "told"), [(b"", "held no text"), (b"caf\xe9\n", "byte 3 of stdin is not UTF-8")])
def test_stdin_that_cannot_be_used(
    given: bytes, told: str, call: Call, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
    outcome = call("predict", run_folder, "--text", "-")
    assert outcome.status == 2
    assert told in outcome.err


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_predict_a_file_into_a_file(suffix: str, call: Call, run_folder: Path, eval_file: Path, tmp_path: Path) -> None:
    out = tmp_path / f"p{suffix}"
    outcome = call("predict", run_folder, "--data", eval_file, "--out", out)
    assert outcome.status == 0, outcome.err
    assert f"20 predictions in {out}" in outcome.out
    text = out.read_text("utf-8")
    rows = list(csv.DictReader(io.StringIO(text))) if suffix == ".csv" else [json.loads(x) for x in text.splitlines()]
    assert len(rows) == 20
    assert rows[0]["label"] in ("positive", "negative")
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], 'either --text "…", --file FILE or --data PATH'),
        (["--text", "a", "--data", "b.csv"], 'either --text "…", --file FILE or --data PATH'),
        (["--text", "  "], "text 1 is empty"),
        (["--text", "a", "--out", "p.xlsx"], ".jsonl or .csv"),
        (["--text", "a", "--out", "no/such/folder/p.csv"], "no such folder"),
    ],
)
def test_what_predict_refuses(words: list[str], told: str, call: Call, run_folder: Path) -> None:
    outcome = call("predict", run_folder, *words)
    assert outcome.status == 2
    assert outcome.out == ""
    assert told in outcome.err


def test_inspect_shows_every_layer_and_draws(call: Call, run_folder: Path, tmp_path: Path) -> None:
    png = tmp_path / "spectra.png"
    outcome = call("inspect", run_folder, "--png", png)
    assert outcome.status == 0, outcome.err
    for told in ("encoder.layer.0.attention.self.query", "all-linear", "trained parameters", "base", "effective"):
        assert told in outcome.out
    assert png.read_bytes().startswith(b"\x89PNG")


def test_inspect_has_json(call: Call, run_folder: Path) -> None:
    data = call("inspect", run_folder, "--json").data
    assert len(data["sites"]) == data["effective"]["sites"]
    assert all(site["effective_rank"] <= site["rank"] + 1e-6 for site in data["sites"])
    assert data["output_change"] > 0


def test_inspect_refuses_another_kind_of_picture(call: Call, run_folder: Path) -> None:
    assert call("inspect", run_folder, "--png", "x.jpg").status == 2
    assert call("inspect", run_folder, "--png", "no/such/folder/x.png").status == 2
