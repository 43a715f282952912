"""One training step of an adapter against the frozen floor: base forward, and backward to the input only."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from bench.models import llama, minilm_classifier
from bench.pairs import ratio, take_turns
from loraloom.adapters import attach


class Step:
    """Forward and backward from a given input embedding, with or without an adapter and its optimiser."""

    def __init__(self, model: nn.Module, width: int, batch: int, positions: int, rank: int) -> None:
        self.model = model.eval()
        self.adapters = attach(model, rank=rank)
        with torch.no_grad():
            for parameter in self.adapters.parameters():
                parameter.normal_(std=0.02)
        self.optimizer = torch.optim.AdamW(self.adapters.parameters(), lr=1e-4, fused=True)
        dtype = next(model.parameters()).dtype
        self.x = torch.randn(batch, positions, width, dtype=dtype, requires_grad=True)

    def floor(self) -> None:
        with self.adapters.disable():
            self._backward()

    def adapted(self) -> None:
        self._backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _backward(self) -> None:
        self.x.grad = None
        loss(self.model(inputs_embeds=self.x)).backward()


def loss(output: object) -> Tensor:
    """Some number that depends on all of a model's output."""
    logits = getattr(output, "logits", None)
    tensor: Tensor = logits if logits is not None else output.last_hidden_state  # type: ignore[attr-defined]
    return tensor.float().square().mean()


def measure(rounds: int = 15) -> dict[str, float]:
    """Ratio of a step to the frozen floor, by model and dtype."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        word = str(dtype).removeprefix("torch.")
        cases = {
            f"MiniLM, 32 × 16 tokens, {word}": Step(minilm_classifier(dtype=dtype), 384, 32, 16, rank=8),
            f"Llama 4 × 768, 8 × 64 tokens, {word}": Step(llama(dtype=dtype), 768, 8, 64, rank=8),
        }
        for name, case in cases.items():
            timings = take_turns({"step": case.adapted, "floor": case.floor}, rounds=rounds)
            found[name] = ratio(timings, "step", "floor")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    for name, value in measure(parser.parse_args().rounds).items():
        print(f"{value:6.3f}  {name}")
