"""What `loraloom data check` found, as tables and sentences; and the bar that it shows while it reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loraloom.cli import output
from loraloom.data.check import Finding, PartReport, Report
from loraloom.data.check.part import Progress as Hears

_LABELS = 12
_DIGITS = {"seconds": 2, "level (dB)": 1, "characters a second": 1, "width / height": 2}


def show_report(report: Report) -> None:
    """Print a report: counts, lengths, balance, then what was found, problems first."""
    for part in report.parts:
        output.say(*(f"note: {note}" for note in part.notes))
    output.show_table(("part", "usable", "of", "columns", "from"), [_part_cells(part) for part in report.parts])
    lengths = [cells for part in report.parts for cells in _length_cells(part)]
    if lengths:
        output.show_table(("part", "figures", "least", "median", "95 %", "most", "sum"), lengths)
    balance = [cells for part in report.parts for cells in _balance_cells(part)]
    if balance:
        output.show_table(("part", "role", "values", "most frequent", "share", "below 5", "counts"), balance)
    for name, finding in report.findings():
        output.say(*_finding_lines(name, finding))
    output.say(_verdict(report))


def _part_cells(part: PartReport) -> list[str]:
    columns = ", ".join(f"{role} = {name}" if role != name else role for role, name in part.columns.items())
    return [part.name, f"{part.usable:,}", f"{part.rows:,}", columns, part.source]


def _length_cells(part: PartReport) -> Iterator[list[str]]:
    for unit, spread in part.lengths.items():
        digits = _DIGITS.get(unit, 0)
        figures = [f"{figure:,.{digits}f}" for figure in (spread.min, spread.median, spread.p95, spread.max)]
        total = output.duration(spread.sum) if unit == "seconds" else f"{spread.sum:,.0f}"
        summed = unit == "seconds" or unit.endswith(("words", "characters", "tokens", "messages", "boxes a picture"))
        yield [part.name, unit, *figures, total if summed else ""]


def _balance_cells(part: PartReport) -> Iterator[list[str]]:
    for role, balance in part.balance.items():
        counts = [f"{name} {count:,}" for name, count in balance.counts.items()]
        more = f" and {len(counts) - _LABELS} more" if len(counts) > _LABELS else ""
        shown = ", ".join(counts[:_LABELS]) + more
        share = output.percent(balance.majority_share)
        yield [part.name, role, str(len(counts)), balance.majority, share, str(balance.below_five), shown]


def _finding_lines(name: str, finding: Finding) -> list[str]:
    """The finding, and the first places each on a line of its own."""
    advice = f"; {finding.advice}" if finding.advice else ""
    more = finding.count - len(finding.places)
    lines = [f"{finding.severity}: {name}: {finding.count:,} {finding.what}{advice}"]
    lines += [f"    {place}" for place in finding.places]
    return [*lines, f"    and {more:,} more"] if more > 0 else lines


def _verdict(report: Report) -> str:
    problems, notices = len(report.problems), len(report.findings()) - len(report.problems)
    told = [_counted(count, word) for count, word in ((problems, "problem"), (notices, "notice")) if count]
    return f"found {' and '.join(told)}" if told else "nothing amiss was found"


def _counted(count: int, word: str) -> str:
    return f"one kind of {word}" if count == 1 else f"{count} kinds of {word}s"


@contextmanager
def reading_bar() -> Iterator[Hears]:
    """A bar on stderr for as long as files are read, and what is to be called for each."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.console(stderr=True), transient=True) as bar:
        bars: dict[str, int] = {}

        def hears(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = bar.add_task(what, total=total)
            bar.update(bars[what], completed=done)  # type: ignore[arg-type]

        yield hears
