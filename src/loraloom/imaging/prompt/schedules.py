"""`[from:to:when]` and `[a|b]`: which text holds at which step.

The web UI gives a prompt to an Earley parser, whose grammar amounts to four rules, read here in one pass:
1. A bracket pair counts if all that it holds is itself well formed: `(…)`, `(…:…)`, `[…]`, `[to:when]`,
   `[from:to:when]` or `[a|b|…]`. Every other bracket or colon is text.
2. `\\x` is always text.
3. A "|" outside of `[a|b]`, or a backslash with nothing behind it, makes the whole part text.
4. Where both readings are possible, a pair counts.
The grammar itself leaves 4 open: lark before 1.1.8 decides it differently from one start to the next, and later
ones take `[a:b:3]` for text exactly where an even number of stray brackets and colons follows it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass

from loraloom.imaging.prompt.faults import Faults, quoted

_MARK = re.compile(r"\\.|[\\\[\]():|]")
_WHEN = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
_PAIRS = {")": "(", "]": "["}


@dataclass(frozen=True, slots=True)
class _Choice:
    """A pair that stands for one of its options, by step."""

    marks: tuple[int, ...]
    """Offsets of the opening bracket, each colon or bar, and the closing bracket; option i lies behind mark i."""
    when: int | None
    """Last step of `from`; None for an alternation."""

    def option(self, step: int) -> int | None:
        """Index of the option that holds at a step; None for the empty one of `[to:when]`."""
        if self.when is None:
            return (step - 1) % (len(self.marks) - 1)
        late, has_from = step > self.when, len(self.marks) == 4
        return int(late) if has_from else 0 if late else None


@dataclass(slots=True)
class _Open:
    """A bracket that has not been closed yet."""

    bracket: str
    marks: list[int]
    bars: int = 0


def read_schedule(text: str, steps: int, faults: Faults) -> list[tuple[int, str]]:
    """(last step, text that holds up to it) pairs in their order; the last ends at `steps`."""
    choices = _choices(text, steps, faults)
    if not choices:
        return [(steps, text)]
    choices.sort(key=lambda choice: choice.marks[0])
    ends = _end_steps(choices, steps)
    states = _states(choices, ends)
    texts = {state: _text_at(text, choices, end) for state, end in dict(zip(states, ends, strict=True)).items()}
    return [(end, texts[state]) for end, state in zip(ends, states, strict=True)]


def step_of(number: str, steps: int) -> int:
    """The step that a number means: with a point a share of all steps, otherwise a step; at most `steps`.

    >>> step_of("0.25", 20), step_of("7", 20), step_of("1.5", 20), step_of("-3", 20)
    (5, 7, 20, -3)
    """
    value = float(number) * (steps if "." in number else 1)
    return int(min(max(value, -1e9), steps))  # int() of an infinite number raises


# -- brackets to choices ------------------------------------------------------------------------------


def _choices(text: str, steps: int, faults: Faults) -> list[_Choice]:
    """What the prompt chooses between, in the order of the closing brackets; empty if it is all text."""
    choices: list[_Choice] = []
    stack: list[_Open] = []
    bars: list[int] = []
    for found in _MARK.finditer(text):
        mark, place = found[0], found.start()
        if mark == "\\":
            return []
        if mark in "([":
            stack.append(_Open(mark, [place]))
        elif mark in "])":
            _close(stack, mark, place, text, steps, choices, faults)
        elif mark == "|":
            bars.append(place)
            if stack:
                stack[-1].marks.append(place)
                stack[-1].bars += 1
        elif mark == ":" and stack:
            stack[-1].marks.append(place)
    return [] if _stray_bar(bars, choices, faults) else choices


def _close(
    stack: list[_Open], mark: str, place: int, text: str, steps: int, choices: list[_Choice], faults: Faults
) -> None:
    """Close the innermost bracket; if that makes no well-formed pair, no bracket around it can become one."""
    opened = stack.pop() if stack else None
    if opened is None or opened.bracket != _PAIRS[mark]:
        stack.clear()
        return
    inner = len(opened.marks) - 1
    opened.marks.append(place)
    if mark == ")":
        well_formed = inner <= 1 and not opened.bars
    elif opened.bars or not inner:
        well_formed = opened.bars == inner
        if opened.bars and well_formed:
            choices.append(_Choice(tuple(opened.marks), None))
    else:
        when = _when(text, opened.marks, steps) if inner <= 2 else None
        well_formed = when is not None
        if when is not None:
            choices.append(_Choice(tuple(opened.marks), when))
    if not well_formed:
        stack.clear()
        if mark == "]":
            _warn_of_pair(text, opened, faults)


def _when(text: str, marks: list[int], steps: int) -> int | None:
    """The step that the last option of a pair names, or None if it is no number."""
    found = _WHEN.match(text, marks[-2] + 1, marks[-1])
    return step_of(found[1], steps) if found and found.end() == marks[-1] else None


def _warn_of_pair(text: str, opened: _Open, faults: Faults) -> None:
    shown = quoted(text[opened.marks[0] : opened.marks[0] + 64].partition("]")[0] + "]")
    if opened.bars:
        why = "':' and '|' do not go together in one bracket"
    elif len(opened.marks) > 4:
        why = f"a schedule has one or two colons, and this has {len(opened.marks) - 2}"
    else:
        last = text[opened.marks[-2] + 1 : opened.marks[-1]][:64].strip()
        why = f"{quoted(last)} is no number of a step"
    faults.add("no schedule", opened.marks[0], f"{shown} is no schedule and stays text, since {why}")


def _stray_bar(bars: list[int], choices: list[_Choice], faults: Faults) -> bool:
    """Whether a "|" stands outside of every alternation, and what that costs."""
    alternations = [choice for choice in choices if choice.when is None]
    if sum(len(choice.marks) - 2 for choice in alternations) == len(bars):
        return False
    used = {mark for choice in alternations for mark in choice.marks}
    stray = next(bar for bar in bars if bar not in used)
    if choices:
        sentence = (
            "this '|' is in no [a|b], so that no schedule of this part is read: write 'a, b', or close the bracket"
        )
        faults.add("stray bar", stray, sentence)
    return True


# -- choices to texts ---------------------------------------------------------------------------------


def _end_steps(choices: list[_Choice], steps: int) -> list[int]:
    """Where the text may change. Equal neighbours are kept, as the web UI keeps them."""
    if any(choice.when is None for choice in choices):
        return list(range(1, steps + 1))
    return sorted({steps, *(choice.when for choice in choices if choice.when is not None and choice.when >= 1)})


def _states(choices: list[_Choice], ends: list[int]) -> list[tuple[int, ...]]:
    """What the text at each step hangs on: steps of equal state have the same text."""
    cycles = sorted({len(choice.marks) - 1 for choice in choices if choice.when is None})
    turns = sorted({choice.when for choice in choices if choice.when is not None})
    return [(bisect_left(turns, end), *((end - 1) % cycle for cycle in cycles)) for end in ends]


def _text_at(text: str, choices: list[_Choice], step: int) -> str:
    """The text with each choice, sorted by place, replaced by the option that holds at a step."""
    kept: list[str] = []
    place = 0  # of the next character that may be kept
    tails: list[tuple[int, int]] = []  # of the choices around it: what is to be left out after their option
    for choice in choices:
        opening, closing = choice.marks[0], choice.marks[-1]
        while tails and tails[-1][0] < opening:
            end, after = tails.pop()
            kept.append(text[place:end])
            place = after
        if opening < place:  # within an option that does not hold
            continue
        kept.append(text[place:opening])
        option = choice.option(step)
        start, end = (closing, closing) if option is None else choice.marks[option : option + 2]
        place = start + 1
        tails.append((end, closing + 1))
    for end, after in reversed(tails):
        kept.append(text[place:end])
        place = after
    return "".join([*kept, text[place:]])
