"""Brackets, numbers and backslashes that do something other than they seem to: warnings, no meaning."""

from __future__ import annotations

import re

from loraloom.imaging.prompt.emphasis import as_number
from loraloom.imaging.prompt.faults import Faults, quoted

_MARK = re.compile(r"\\[()\[\]\\]|\\|:\s*([+-]?[.,\d]+)\s*\)|[()\[\]]|\bBREAK\b")
_OPENING = {")": "(", "]": "["}


def warn_of_brackets(text: str, faults: Faults) -> list[int]:
    """Look through one part of a prompt as it was typed, each kind of bracket for itself, as weights are read.

    Returns the places of the BREAKs within brackets: those of a schedule may be outside of all where they hold.
    """
    inner: list[int] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for found in _MARK.finditer(text):
        mark, place = found[0], found.start()
        if mark == "BREAK":
            inner += [place] if opened["("] or opened["["] else []
        elif mark in opened:
            opened[mark].append(place)
        elif mark == "\\":
            faults.add("backslash", place, "a backslash before anything but a bracket or a backslash is left out")
        elif mark[-1] in _OPENING and mark[0] != "\\":
            _warn_of_closing(opened[_OPENING[mark[-1]]], found, faults)
    for bracket, places in opened.items():
        for place in places:
            sentence = f"'{bracket}' never closes, so that it weights all that follows; write \\{bracket} for the sign"
            faults.add(f"open {bracket}", place, sentence)
    return inner


def _warn_of_closing(opened: list[int], found: re.Match[str], faults: Faults) -> None:
    bracket, number, place = found[0][-1], found[1], found.end() - 1
    if not opened:
        faults.add(f"stray {bracket}", place, f"'{bracket}' closes no bracket and stays text")
        return
    opened.pop()
    if number is not None and as_number(number) is None:
        hint = "; a point, not a comma, goes before decimals" if "," in number else ""
        sentence = f"{quoted(number)} is no number, so that it stays text and the bracket is × 1.1{hint}"
        faults.add("weight", found.start(1), sentence)
