"""The language a second time: slow, recursive where the rules are recursive, and nothing shared with the package."""

from __future__ import annotations

import re
from typing import Any

Run = list[Any]
"""[text, weight]"""

# -- weights ----------------------------------------------------------------------------------------


def emphasis(text: str) -> list[Run]:
    """Every bracket multiplies all runs since it was opened, one by one, when it closes."""
    runs: list[Run] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    while text:
        text = _token(text, runs, opened)
    for bracket, factor in (("(", 1.1), ("[", 1 / 1.1)):
        for start in opened[bracket]:
            _multiply(runs, start, factor)
    return _merged(runs) if runs else [["", 1.0]]


def _token(text: str, runs: list[Run], opened: dict[str, list[int]]) -> str:
    """Take one token off the text."""
    if text[0] == "\\":
        length = 2 if text[1:2] and text[1] in "()[]\\" else 1
        runs.append([text[1:length], 1.0])
        return text[length:]
    if text[0] in opened:
        opened[text[0]].append(len(runs))
        return text[1:]
    weighted = re.match(r":\s*([+-]?[.\d]+)\s*\)", text)
    if weighted and opened["("]:
        try:
            factor = float(weighted[1])
        except ValueError:  # the web UI fails here; ours is text, and a plain bracket
            _words(weighted[0][:-1], runs)
            factor = 1.1
        _multiply(runs, opened["("].pop(), factor)
        return text[weighted.end() :]
    if text[0] == ")" and opened["("]:
        _multiply(runs, opened["("].pop(), 1.1)
        return text[1:]
    if text[0] == "]" and opened["["]:
        _multiply(runs, opened["["].pop(), 1 / 1.1)
        return text[1:]
    words = weighted or re.match(r"[^\\()\[\]:]+|.", text, re.S)
    assert words
    _words(words[0], runs)
    return text[words.end() :]


def _words(text: str, runs: list[Run]) -> None:
    for index, words in enumerate(re.split(r"\s*\bBREAK\b\s*", text)):
        if index:
            runs.append(["BREAK", -1.0])
        runs.append([words, 1.0])


def _multiply(runs: list[Run], start: int, factor: float) -> None:
    for run in runs[start:]:
        run[1] *= factor


def _merged(runs: list[Run]) -> list[Run]:
    if len(runs) < 2:
        return runs
    first, second, *rest = runs
    if first[1] == second[1]:
        return _merged([[first[0] + second[0], first[1]], *rest])
    return [first, *_merged([second, *rest])]


# -- schedules --------------------------------------------------------------------------------------

_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")


class _Unfit(Exception):
    """No derivation: all of it is text."""


def schedule(text: str, steps: int) -> list[list[Any]]:
    """Grammar rules as functions that return a tree and what is left, or None; then the tree at every step."""
    try:
        tree = _start(_tokens(text))
    except _Unfit:
        return [[steps, text]]
    ends = sorted({steps, *_ends(tree, steps)})
    return [[end, _at(tree, end, steps)] for end in ends]


def _tokens(text: str) -> list[str]:
    tokens = re.findall(r"(?:[^\\\[\]():|]|\\.)+|[\[\]():|\\]", text)
    if "".join(tokens) != text or "\\" in tokens:
        raise _Unfit
    return tokens


def _start(tokens: list[str]) -> list[Any]:
    """start: (prompt | one of []():)*"""
    tree: list[Any] = []
    while tokens:
        found, tokens = _prompt(tokens)
        tree += found
        if tokens:
            if tokens[0] == "|":
                raise _Unfit
            tree.append(tokens[0])
            tokens = tokens[1:]
    return tree


def _prompt(tokens: list[str]) -> tuple[list[Any], list[str]]:
    """prompt: (bracket | words)*"""
    tree: list[Any] = []
    while tokens and tokens[0] not in set(")]:|"):
        if tokens[0] in "([":
            bracket = _bracket(tokens)
            if bracket is None:
                break
            tree.append(bracket[0])
            tokens = bracket[1]
        else:
            tree.append(tokens[0])
            tokens = tokens[1:]
    return tree, tokens


def _bracket(tokens: list[str]) -> tuple[Any, list[str]] | None:
    opening, signs = tokens[0], ""
    inner, tokens = _prompt(tokens[1:])
    options = [inner]
    while tokens and tokens[0] in ":|":
        signs += tokens[0]
        inner, tokens = _prompt(tokens[1:])
        options.append(inner)
    closing = tokens[0] if tokens else ""
    tree: Any = None
    if opening + closing == "()" and signs in ("", ":"):
        tree = ["(", *options[0], *([":", *options[1]] if signs else []), ")"]
    elif opening + closing == "[]" and not signs:
        tree = ["[", *options[0], "]"]
    elif opening + closing == "[]" and set(signs) == {"|"}:
        tree = ("either", options)
    elif opening + closing == "[]" and signs in (":", "::") and all(isinstance(word, str) for word in options[-1]):
        number = _NUMBER.fullmatch("".join(options[-1]))
        tree = ("turn", [[], *options[:-1]][-2:], number[1]) if number else None
    return None if tree is None else (tree, tokens[1:])


def _when(number: str, steps: int) -> int:
    return int(min(float(number) * (steps if "." in number else 1), steps))


def _ends(tree: list[Any], steps: int) -> set[int]:
    found: set[int] = set()
    for node in tree:
        if isinstance(node, list):
            found |= _ends(node, steps)
        elif isinstance(node, tuple):
            if node[0] == "either":
                found |= set(range(1, steps + 1))
            elif _when(node[2], steps) >= 1:
                found.add(_when(node[2], steps))
            for option in node[1]:
                found |= _ends(option, steps)
    return found


def _at(tree: Any, step: int, steps: int) -> str:
    if isinstance(tree, str):
        return tree
    if isinstance(tree, list):
        return "".join(_at(node, step, steps) for node in tree)
    if tree[0] == "either":
        return _at(tree[1][(step - 1) % len(tree[1])], step, steps)
    return _at(tree[1][0 if step <= _when(tree[2], steps) else 1], step, steps)


# -- AND and tags -----------------------------------------------------------------------------------


def parts(text: str) -> list[tuple[str, float]]:
    """The shortest beginning such that a weight and blanks, or blanks alone, are what is left."""
    found = []
    for piece in re.split(r"\bAND\b", text):
        match = re.search(r"^(.*?)(?:\s*:\s*([-+]?(?:\d+\.?|\d*\.\d+)))?\s*$", piece, re.S)
        assert match
        found.append((match[1], float(match[2]) if match[2] else 1.0))
    return found


def tags(text: str) -> tuple[str, list[tuple[str, list[str]]]]:
    """The text without its tags, and each tag's name and arguments."""
    found = [(match[1], match[2].split(":")) for match in re.finditer(r"<(\w+):([^>]+)>", text)]
    return re.sub(r"<(\w+):([^>]+)>", "", text), found


def prompt(text: str, steps: int) -> list[dict[str, Any]]:
    """All of it, in the form of `ParsedPrompt.to_json()["parts"]`."""
    return [
        {
            "weight": weight,
            "schedule": [{"end_step": end, "segments": emphasis(said)} for end, said in schedule(part, steps)],
        }
        for part, weight in parts(tags(text)[0])
    ]
