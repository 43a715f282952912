"""`python -m bench.tasks [ROW …]`: run rows of docs/results.md anew."""

from __future__ import annotations

import argparse
import importlib
import pkgutil

import bench.tasks
from bench.tasks.common import Row, write_row


def rows() -> dict[str, Row]:
    """Every row that a module of this folder defines, by name."""
    found: dict[str, Row] = {}
    for module in pkgutil.iter_modules(bench.tasks.__path__):
        if module.name not in ("common", "__main__"):
            loaded = importlib.import_module(f"bench.tasks.{module.name}")
            found.update((row.name, row) for row in vars(loaded).values() if isinstance(row, Row))
    return found


def main() -> None:
    """Run the rows named, or all."""
    every = rows()
    parser = argparse.ArgumentParser(prog="python -m bench.tasks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*every, []], metavar="ROW", help=", ".join(every))
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument("--keep", action="store_true", help="take finished runs of the same settings as they are")
    given = parser.parse_args()
    if given.list:
        for name, row in every.items():
            print(f"{name}\t{row.title}")
        return
    for name in given.names or every:
        write_row(every[name], keep=given.keep)


if __name__ == "__main__":
    main()
