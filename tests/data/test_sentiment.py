"""The packaged sentiment set: counts, balance, and no templates, repeats or leaks between train and test."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.resources import files
from itertools import combinations, product
from statistics import mean

import pytest

SPLITS = ("train", "test")
LABELS = ("negative", "positive")
DOMAINS = (
    *("books", "deliveries", "electronics", "films", "food"),
    *("health", "hotels", "services", "software", "travel"),
)
LEAST_ROWS = {"train": 640, "test": 220}
NEAR = 0.5  # Jaccard similarity from which two texts count as nearly the same

Row = dict[str, str]
Shingles = frozenset[str]


def resource(name: str) -> str:
    return (files("loraloom") / "data" / "sentiment" / name).read_text(encoding="utf-8")


def lines(split: str) -> list[list[str]]:
    """All records of a file, the header first."""
    return list(csv.reader(resource(f"{split}.csv").splitlines(keepends=True), strict=True))


def load(split: str) -> list[Row]:
    header, *rows = lines(split)
    return [dict(zip(header, row, strict=True)) for row in rows]


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Row]]:
    return {split: load(split) for split in SPLITS}


@pytest.fixture(scope="module")
def texts(rows: dict[str, list[Row]]) -> list[str]:
    return [row["text"] for split in SPLITS for row in rows[split]]


def words(text: str) -> list[str]:
    return re.findall(r"\w+(?:'\w+)*", text.lower())


def shingles(text: str) -> tuple[Shingles, Shingles]:
    """Word triples, and runs of four characters, of the text without case and punctuation."""
    tokens = words(text)
    plain = f" {' '.join(tokens)} "
    triples = frozenset(" ".join(tokens[i : i + 3]) for i in range(max(1, len(tokens) - 2)))
    return triples, frozenset(plain[i : i + 4] for i in range(len(plain) - 3))


def jaccard(a: Shingles, b: Shingles) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def similarity(a: tuple[Shingles, Shingles], b: tuple[Shingles, Shingles]) -> float:
    return max(jaccard(a[0], b[0]), jaccard(a[1], b[1]))


def near_pairs(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    known: dict[str, tuple[Shingles, Shingles]] = {}
    for a, b in pairs:
        for text in (a, b):
            if text not in known:
                known[text] = shingles(text)
        if similarity(known[a], known[b]) >= NEAR:
            yield a, b


def runs_of(text: str, length: int) -> set[tuple[str, ...]]:
    tokens = words(text)
    return {tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)}


def share_positive(rows: Iterable[Row]) -> float:
    return mean(row["label"] == "positive" for row in rows)


@pytest.mark.parametrize("split", SPLITS)
def test_file_has_the_header_and_full_rows_only(split: str) -> None:
    header, *body = lines(split)
    assert header == ["text", "label", "domain"]
    assert [row for row in body if len(row) != 3] == []
    assert [row for row in body if any(cell != cell.strip() or not cell for cell in row)] == []


@pytest.mark.parametrize("split", SPLITS)
def test_counts_labels_and_domains(rows: dict[str, list[Row]], split: str) -> None:
    assert len(rows[split]) >= LEAST_ROWS[split]
    assert {row["label"] for row in rows[split]} == set(LABELS)
    assert {row["domain"] for row in rows[split]} == set(DOMAINS)


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_balanced_overall_and_in_each_domain(rows: dict[str, list[Row]], split: str) -> None:
    assert 0.48 <= share_positive(rows[split]) <= 0.52
    for domain in DOMAINS:
        share = share_positive(row for row in rows[split] if row["domain"] == domain)
        assert 0.4 <= share <= 0.6, (domain, share)


def test_both_files_mix_the_domains_alike(rows: dict[str, list[Row]]) -> None:
    counts = {split: Counter(row["domain"] for row in rows[split]) for split in SPLITS}
    for domain in DOMAINS:
        train, test = (counts[split][domain] / len(rows[split]) for split in SPLITS)
        assert abs(train - test) < 0.02, (domain, train, test)


def test_rows_are_not_sorted_by_label_or_domain(rows: dict[str, list[Row]]) -> None:
    for split in SPLITS:
        half = rows[split][: len(rows[split]) // 2]
        assert 0.4 <= share_positive(half) <= 0.6
        assert {row["domain"] for row in half} == set(DOMAINS)


def test_lengths_vary_and_agree_between_files_and_labels(rows: dict[str, list[Row]]) -> None:
    every = [row for split in SPLITS for row in rows[split]]
    lengths = [len(words(row["text"])) for row in every]
    assert min(lengths) >= 4 and max(lengths) <= 45
    assert 11 <= mean(lengths) <= 17
    assert mean(n <= 8 for n in lengths) > 0.1 and mean(n >= 20 for n in lengths) > 0.05
    by_split = [mean(len(words(row["text"])) for row in rows[split]) for split in SPLITS]
    by_label = [mean(len(words(row["text"])) for row in every if row["label"] == name) for name in LABELS]
    assert abs(by_split[0] - by_split[1]) < 1 and abs(by_label[0] - by_label[1]) < 1


def test_vocabulary_is_rich(texts: list[str]) -> None:
    counts = Counter(word for text in texts for word in words(text))
    assert len(counts) >= 2800
    assert len(counts) / counts.total() >= 0.2
    assert mean(count == 1 for count in counts.values()) >= 0.5


def test_no_sentence_frames(texts: list[str]) -> None:
    openings = Counter(tuple(words(text)[:5]) for text in texts)
    endings = Counter(tuple(words(text)[-5:]) for text in texts)
    runs = Counter(run for text in texts for run in runs_of(text, 4))
    for counts in (openings, endings, runs):
        assert [(run, n) for run, n in counts.items() if n > 3] == []


@pytest.mark.parametrize(
    "cue",
    [r"!", r"^[a-z]", r"\bbut\b", r"\bnot\b|n't\b|\bno\b|\bnever\b|\bnobody\b|\bnothing\b", r","],
    ids=["exclamation", "lower-case start", "but", "negation", "comma"],
)
def test_surface_cues_do_not_give_the_label_away(rows: dict[str, list[Row]], cue: str) -> None:
    shown = [row for split in SPLITS for row in rows[split] if re.search(cue, row["text"])]
    assert len(shown) >= 20
    assert 0.35 <= share_positive(shown) <= 0.65


def test_no_text_occurs_twice(texts: list[str]) -> None:
    counts = Counter(" ".join(words(text)) for text in texts)
    assert [text for text, n in counts.items() if n > 1] == []


def test_no_near_duplicates_between_train_and_test(rows: dict[str, list[Row]]) -> None:
    train, test = ([row["text"] for row in rows[split]] for split in SPLITS)
    assert list(near_pairs(product(train, test))) == []


@pytest.mark.parametrize("split", SPLITS)
def test_no_near_duplicates_inside_a_file(rows: dict[str, list[Row]], split: str) -> None:
    assert list(near_pairs(combinations([row["text"] for row in rows[split]], 2))) == []


def test_the_measure_sees_a_swapped_noun_and_spares_two_ideas() -> None:
    first = "The soup was cold and the waiter never came back to our table."
    swapped = "The soup was cold and the waitress never came back to our table!"
    other = "We asked twice for bread, and the second time he pretended not to hear."
    assert list(near_pairs([(first, swapped)])) == [(first, swapped)]
    assert list(near_pairs([(first, other)])) == []


def test_readme_states_the_counts_of_the_files(rows: dict[str, list[Row]]) -> None:
    table = r"^\| (\w+) \| (\d+ \| \d+ \| \d+ \| \d+) \|$"
    stated = dict(re.findall(table, resource("README.md"), re.MULTILINE))
    order = [(split, label) for split in SPLITS for label in ("positive", "negative")]
    for domain in (*DOMAINS, "total"):
        found = [
            sum(row["label"] == label and domain in (row["domain"], "total") for row in rows[split])
            for split, label in order
        ]
        assert stated[domain] == " | ".join(map(str, found))


def test_licence_is_named() -> None:
    assert "CC0-1.0" in resource("LICENSE")
    assert "creativecommons.org/publicdomain/zero/1.0" in resource("LICENSE")
    assert "CC0 1.0" in resource("README.md")
