"""Loading an adapter from disk and attaching it to a fresh model, against PEFT's ways, turn by turn in one process.

    python -m bench.compose.load_attach [--layers 14] [--width 768] [--rank 8] [--rounds 15]

A BERT-like model of random weights, the six linear layers of every block adapted: 84 sites. The file lies in the cache.
Every turn gets a fresh copy of the model's modules around the same weights, made outside the timing. PEFT has three
ways in: `PeftModel.load_adapter` onto a model that is wrapped already, `PeftModel.from_pretrained`, and transformers'
`model.load_adapter`; the quickest of them is what the ratio is taken to. About a minute.
"""

from __future__ import annotations

import argparse
import copy
import gc
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import BertConfig, BertModel
from transformers.utils import logging as their_logging

from loraloom.adapters import attach
from loraloom.formats import load_adapter, save_adapter

TARGETS = ("query", "key", "value", "dense")
MOST = 0.2
"""What ours may take, over PEFT's quickest."""
Side = tuple[Callable[[], nn.Module], Callable[[nn.Module], object]]
"""How its model is made ready, and what is timed."""


def base_model(layers: int, width: int) -> BertModel:
    """The base model, random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": max(width // 64, 1)}
    return BertModel(BertConfig(num_hidden_layers=layers, vocab_size=1000, **sizes)).eval()


def fresh(model: nn.Module) -> nn.Module:
    """New modules around the same weights."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def write_adapter(model: nn.Module, folder: Path, rank: int) -> int:
    """An adapter of random numbers in PEFT's folder; how many sites it has."""
    adapters = attach(fresh(model), rank=rank, targets=TARGETS, exclude="pooler.dense")
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_(std=0.02)
    save_adapter(adapters, "default", folder)
    return len(adapters.plan("default").sites)


def sides(model: nn.Module, folder: Path) -> dict[str, Side]:
    """Every way in, by name; ours first."""

    def wrapped() -> nn.Module:
        return PeftModel.from_pretrained(fresh(model), folder)

    return {
        "loraloom.load": (lambda: fresh(model), lambda new: load_adapter(new, folder)),
        "PeftModel.load_adapter": (wrapped, lambda new: new.load_adapter(folder, "second")),
        "PeftModel.from_pretrained": (lambda: fresh(model), lambda new: PeftModel.from_pretrained(new, folder)),
        "transformers' load_adapter": (lambda: fresh(model), lambda new: new.load_adapter(str(folder))),
    }


def measure(layers: int, width: int, rank: int, rounds: int) -> tuple[int, dict[str, float]]:
    """Sites, and median seconds by side."""
    model = base_model(layers, width)
    with tempfile.TemporaryDirectory() as place:
        count = write_adapter(model, Path(place) / "adapter", rank)
        all_sides = sides(model, Path(place) / "adapter")
        times: dict[str, list[float]] = {name: [] for name in all_sides}
        for turn in range(rounds + 2):
            for name, (ready, load) in all_sides.items():
                new = ready()
                gc.collect()  # what the turn before left behind is not this one's
                start = time.perf_counter()
                load(new)
                if turn >= 2:  # the first two warm up
                    times[name].append(time.perf_counter() - start)
    return count, {name: statistics.median(own) for name, own in times.items()}


def main(words: list[str] | None = None) -> int:
    """Print the table; 1 where ours takes more than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 14), ("width", 768), ("rank", 8), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    their_logging.disable_progress_bar()
    count, medians = measure(options.layers, options.width, options.rank, options.rounds)
    ours, *theirs = medians.values()
    share = ours / min(theirs)
    print(f"{count} sites, width {options.width}, rank {options.rank}, medians of {options.rounds} turns\n")
    print("| | ms | × ours |\n|---|---:|---:|")
    for name, seconds in medians.items():
        print(f"| {name} | {1000 * seconds:.1f} | {seconds / ours:.1f} |")
    print(f"\n{share:.3f} of the quickest of PEFT's; at most {MOST} is allowed")
    return int(share > MOST)


if __name__ == "__main__":
    raise SystemExit(main())
