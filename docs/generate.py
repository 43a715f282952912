"""Writes the pages that are made from the code: configuration.md from the settings, cli.md from --help.

python docs/generate.py
"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

from loraloom.cli.main import VERBS, main
from loraloom.training.config import reference_yaml

HERE = Path(__file__).parent
WIDTH = "80"

CONFIGURATION = """# Every setting of a run

What a configuration file for `loraloom train CONFIG.yaml` may hold, with the default of each setting; `...` marks
those that have none. `--set KEY=VALUE` sets one from the command line by its dotted key, e.g. `--set adapter.rank=16`.
An unknown key is refused, with the nearest right one. Ready files to start from are in [examples](../examples).

This page is made by `python docs/generate.py` from `src/loraloom/training/config.py` and
`src/loraloom/data/config.py`; `loraloom train --reference` prints the same.

```yaml
{settings}```
"""

COMMANDS = """# The command line

Exit status: 0 done; 1 a failure of ours, or a demo without a clear gain; 2 something for the user to mend;
130 interrupted. Results go to stdout, all else to stderr; with `--json` stdout holds one JSON object.

This page is made by `python docs/generate.py` from what `--help` says.

{verbs}"""


def configuration() -> str:
    """The page of all settings."""
    return CONFIGURATION.format(settings=reference_yaml())


def commands() -> str:
    """The page of all verbs."""
    pages = [f"## loraloom {verb}".rstrip() + f"\n\n```\n{help_of(verb)}```\n" for verb in ("", *VERBS)]
    return COMMANDS.format(verbs="\n".join(pages))


def help_of(verb: str) -> str:
    """What `loraloom VERB --help` prints on a terminal of 80 columns."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            main([*([verb] if verb else []), "--help"])
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


PAGES = {"configuration.md": configuration, "cli.md": commands}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
