"""Setting examples aside for evaluation, without letting near-duplicates onto both sides."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from loraloom.data.labels import label_name
from loraloom.data.near import THRESHOLD, NearIndex, pair_frequency, plain_text, word_pairs
from loraloom.data.table import Example
from loraloom.errors import ConfigError, DataError

Group = list[int]


@dataclass(frozen=True)
class Leak:
    """An evaluation example that training has already shown, as it is or nearly so."""

    train: Example
    """The training example most like it, the first of equals."""
    evaluation: Example
    similarity: float
    """Jaccard similarity of the word pairs, 1.0 for the same text."""
    exact: bool
    """The same but for case, punctuation and spacing."""


def find_leaks(
    train: Sequence[Example],
    evaluation: Sequence[Example],
    *,
    ignore: Collection[str] = ("label",),
    threshold: float = THRESHOLD,
) -> list[Leak]:
    """The evaluation examples whose text is that of a training example, or near to it, in their order.

    The text of an example is all its strings except those of the roles in `ignore`. Takes time about
    linear in the number of rows.
    """
    first = _first_by_text(train, ignore)
    train_pairs = [word_pairs(text) for text in first]
    asked = {text: word_pairs(text) for text in (_text(example, ignore) for example in evaluation)}
    index = NearIndex(pair_frequency([*train_pairs, *asked.values()]), threshold)
    for pairs in train_pairs:
        index.add(pairs)
    sources = list(first.values())
    leaks = []
    for example in evaluation:
        text = _text(example, ignore)
        if text in first:
            leaks.append(Leak(train[first[text]], example, 1.0, exact=True))
        elif near := index.near(asked[text]):
            number, score = max(near, key=lambda found: found[1])
            leaks.append(Leak(train[sources[number]], example, score, exact=False))
    return leaks


def drop_duplicates(
    examples: Sequence[Example], *, ignore: Collection[str] = ("label",)
) -> tuple[list[Example], list[Example]]:
    """Keep the first of the examples with the same text; returns the kept and the dropped ones."""
    kept = set(_first_by_text(examples, ignore).values())
    return (
        [example for i, example in enumerate(examples) if i in kept],
        [example for i, example in enumerate(examples) if i not in kept],
    )


def sample_examples(examples: Sequence[Example], limit: int, seed: int) -> list[Example]:
    """At most `limit` examples, drawn by the seed, in file order: the head of a sorted file is no sample."""
    if limit >= len(examples):
        return list(examples)
    chosen = random.Random(f"sample/{seed}").sample(range(len(examples)), limit)
    return [examples[i] for i in sorted(chosen)]


def split_examples(
    examples: Sequence[Example],
    fraction: float,
    seed: int,
    stratify_by: str | None = "label",
    *,
    ignore: Collection[str] = ("label",),
) -> tuple[list[Example], list[Example]]:
    """Part examples into (train, evaluation), both in file order, by the seed alone.

    About `fraction` of them go to evaluation, of each value of `stratify_by` alike. Near-duplicates stay
    together, except where so many are alike that nothing could be set aside otherwise: then only the
    same texts do, and `find_leaks` tells. Raises ConfigError for a fraction that is not between 0 and
    1, DataError where no class has an example to spare.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"eval_fraction: expected a share between 0 and 1, found {fraction}")
    strata = [label_name(example.values.get(stratify_by, "")) for example in examples] if stratify_by else []
    strata = strata or [""] * len(examples)
    texts = [_text(example, ignore) for example in examples]
    wanted = _quotas(strata, fraction, seed)
    aside = _choose(_near_groups(texts), strata, wanted, seed)
    if 2 * len(aside) < sum(wanted.values()):
        aside = _choose(_same_groups(texts), strata, wanted, seed)
    if not aside:
        raise DataError(
            f"{len(examples)} examples of {len(set(strata))} classes are too few to set some aside for "
            "evaluation: one class at least needs two different ones; give more, or an evaluation file"
        )
    return (
        [example for i, example in enumerate(examples) if i not in aside],
        [example for i, example in enumerate(examples) if i in aside],
    )


def _quotas(strata: Sequence[str], fraction: float, seed: int) -> Counter[str]:
    """How many of each stratum to set aside: the whole rounded, shared out by the largest remainders."""
    counts = Counter(strata)
    total = min(max(1, round(fraction * len(strata))), len(strata) - 1)
    exact = {name: fraction * count for name, count in counts.items()}
    wanted = Counter({name: int(share) for name, share in exact.items()})
    order = sorted(counts)
    random.Random(f"quotas/{seed}").shuffle(order)
    order.sort(key=lambda name: int(exact[name]) - exact[name])
    for name in order:
        if wanted.total() < total and wanted[name] < counts[name] - 1:  # one of each must stay
            wanted[name] += 1
    return wanted


def _choose(groups: Sequence[Group], strata: Sequence[str], wanted: Counter[str], seed: int) -> set[int]:
    """Take groups in a seeded order as long as each fits into what its strata still want."""
    order = list(groups)
    random.Random(f"split/{seed}").shuffle(order)
    left, chosen = Counter(wanted), set[int]()
    for group in order:
        needs = Counter(strata[i] for i in group)
        if all(count <= left[name] for name, count in needs.items()):
            left.subtract(needs)
            chosen.update(group)
    return chosen


def _near_groups(texts: Sequence[str]) -> list[Group]:
    """Indices whose texts are the same or near, directly or through others."""
    same = _same_groups(texts)
    pairs = [word_pairs(texts[group[0]]) for group in same]
    index = NearIndex(pair_frequency(pairs))
    leader = list(range(len(same)))

    def lead(number: int) -> int:
        while leader[number] != number:
            leader[number] = number = leader[leader[number]]
        return number

    for number, its in enumerate(pairs):
        for other, _ in index.near(its):
            leader[lead(other)] = lead(number)
        index.add(its)
    joined: defaultdict[int, Group] = defaultdict(list)
    for number, group in enumerate(same):
        joined[lead(number)] += group
    return [sorted(group) for group in joined.values()]


def _same_groups(texts: Sequence[str]) -> list[Group]:
    groups: defaultdict[str, Group] = defaultdict(list)
    for i, text in enumerate(texts):
        groups[text].append(i)
    return list(groups.values())


def _first_by_text(examples: Sequence[Example], ignore: Collection[str]) -> dict[str, int]:
    first: dict[str, int] = {}
    for i, example in enumerate(examples):
        first.setdefault(_text(example, ignore), i)
    return first


def _text(example: Example, ignore: Collection[str]) -> str:
    """All strings of an example but those of the roles in `ignore`, plain."""
    return plain_text(
        " ".join(value for role, value in example.values.items() if isinstance(value, str) and role not in ignore)
    )
