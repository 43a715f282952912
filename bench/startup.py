"""What it costs to import the library and to ask the command for help, each in fresh processes, turn by turn."""

from __future__ import annotations

import subprocess
import sys

from bench.pairs import take_turns


def measure(rounds: int = 7) -> dict[str, float]:
    """Seconds: import loraloom above import torch, attach and all; and `loraloom --help`."""
    sides = {
        "torch": lambda: _python("import torch"),
        "loraloom": lambda: _python("import loraloom; loraloom.attach"),
        "help": lambda: subprocess.run([sys.executable, "-m", "loraloom", "--help"], check=True, capture_output=True),
    }
    timings = take_turns(sides, rounds=rounds, warmup=1)
    return {
        "import loraloom (and use attach) above import torch": timings["loraloom"].median - timings["torch"].median,
        "loraloom --help": timings["help"].median,
    }


def _python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{value:6.3f} s  {name}")
