"""LoRA fine-tuning from top to bottom in one file, with the library alone: read, attach, train, prove, save.

    python examples/flat_loop.py --out runs/flat

trains an adapter on the packaged sentiment set over MiniLM. It is the readable twin of `loraloom train`:
a test holds it to the real loop, step for step and byte for byte.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from loraloom.adapters import AdapterSet, attach
from loraloom.data.batches import length_batches, sorted_batches
from loraloom.data.config import DataConfig
from loraloom.formats.peft import save_adapter
from loraloom.tasks import create_task
from loraloom.tasks.base import BaseModel, Feature, Task


@dataclass(frozen=True)
class Settings:
    """What the method has to be told."""

    base: str = "sentence-transformers/all-MiniLM-L6-v2"
    train: str = "sentiment:train"
    evaluation: str = "sentiment:test"
    rank: int = 8
    learning_rate: float = 1e-3
    epochs: int = 3
    batch_size: int = 32
    warmup: float = 0.06
    max_grad_norm: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Result:
    """What came of it: the loss of every step, the scores of every epoch, and where the adapter lies."""

    losses: list[float]
    scores: list[float]
    base_score: float
    output_change: float


def train(settings: Settings, out: Path) -> Result:
    """The whole method. The adapter of the best epoch is written to `out`."""
    # 1. Examples and a base model with a new head for their labels.
    task = create_task("text-classification")
    splits = task.read(DataConfig(train=settings.train, eval=settings.evaluation), seed=settings.seed)
    base = task.load(settings.base, dtype=torch.float32, seed=settings.seed)
    examples = task.encode(splits.train, base).features
    held_out = task.encode(splits.evaluation, base).features

    # 2. W is frozen; A and B, and the head, are all that trains. The base runs as in evaluation throughout.
    adapters = attach(base.model, rank=settings.rank, heads=base.heads, seed=settings.seed)
    base.model.eval()
    adapters.training_mode(False)
    base_outputs = outputs(task, base, held_out[:64])
    base_score = score(task, base, held_out, settings.batch_size)

    # 3. AdamW over the adapter, with a linear rise and fall of the rate.
    optimizer = torch.optim.AdamW(parameter_groups(adapters), lr=settings.learning_rate, weight_decay=0.0, fused=True)
    steps = settings.epochs * math.ceil(len(examples) / settings.batch_size)
    losses: list[float] = []
    scores: list[float] = []
    best: dict[str, Tensor] = {}
    for epoch in range(settings.epochs):
        adapters.training_mode(True)
        lengths = [feature.length for feature in examples]
        for indices in length_batches(lengths, settings.batch_size, seed=settings.seed, epoch=epoch):
            set_rate(optimizer, settings.learning_rate * rate_factor(len(losses), steps, settings.warmup))
            losses.append(step(task, base, [examples[index] for index in indices], optimizer, settings.max_grad_norm))

        # 4. Score after every epoch; the best adapter is kept, the earlier of equals.
        adapters.training_mode(False)
        scores.append(score(task, base, held_out, settings.batch_size))
        if scores[-1] > max(scores[:-1], default=-math.inf):
            best = {name: tensor.clone() for name, tensor in adapters.tensors("default").items()}
    adapters.load_tensors("default", best)

    # 5. Proof that the adapter acts, and the file that PEFT and others read.
    change = relative_change(base_outputs, outputs(task, base, held_out[:64]))
    if change == 0:
        raise SystemExit("nothing was learnt: the outputs are those of the base model")
    out.mkdir(parents=True)
    save_adapter(adapters, "default", out, base_name=base.name, task_type="SEQ_CLS")
    return Result(losses, scores, base_score, change)


def step(task: Task, base: BaseModel, features: list[Feature], optimizer: torch.optim.Optimizer, limit: float) -> float:
    """One step on one batch; returns the mean loss."""
    optimizer.zero_grad(set_to_none=True)
    total, items = task.loss(base.model, task.collate(features, base))
    (total / items).backward()
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if norm > limit:
        torch._foreach_mul_(gradients, float(limit / (norm + 1e-6)))
    optimizer.step()
    return float(total.detach()) / items


def parameter_groups(adapters: AdapterSet) -> list[dict[str, list[nn.Parameter]]]:
    """One group per role; a library user may give each a rate of its own (LoRA+ gives B more than A)."""
    roles = adapters.parameters_by_role("default")
    return [{"params": parameters} for parameters in roles.values() if parameters]


def rate_factor(number: int, steps: int, warmup: float) -> float:
    """Share of the peak rate at a step: a linear rise over the warm-up, then a linear fall to 0."""
    rise = math.ceil(warmup * steps)
    return (number + 1) / rise if number < rise else 1 - (number - rise) / (steps - rise)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group this rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def in_batches(
    task: Task, base: BaseModel, features: list[Feature], size: int, work: Callable[[dict[str, Tensor]], list[object]]
) -> list[object]:
    """What `work` makes of every example, in their order, computed in batches of like length."""
    found: dict[int, object] = {}
    for indices in sorted_batches([feature.length for feature in features], size):
        results = work(task.collate([features[index] for index in indices], base))
        found.update(zip(indices, results, strict=True))
    return [found[index] for index in range(len(features))]


def score(task: Task, base: BaseModel, features: list[Feature], size: int) -> float:
    """The task's metric over labelled examples."""
    predictions = in_batches(task, base, features, size, lambda batch: task.predict(base.model, batch, base))
    return task.score(predictions, [feature.reference for feature in features])[task.metric]


def outputs(task: Task, base: BaseModel, features: list[Feature]) -> Tensor:
    """Raw outputs (B, …) of the model as it is."""
    rows = in_batches(task, base, features, 16, lambda batch: list(task.outputs(base.model, batch)))
    return torch.stack([row for row in rows if isinstance(row, Tensor)])


def relative_change(before: Tensor, after: Tensor) -> float:
    """‖y' − y‖ / ‖y‖."""
    return float((after - before).norm() / before.norm())


def main() -> None:
    """Train, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=Settings.base)
    parser.add_argument("--out", type=Path, default=Path("runs/flat"))
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    arguments = parser.parse_args()
    result = train(Settings(base=arguments.base, epochs=arguments.epochs), arguments.out)
    print(f"accuracy {result.base_score:.3f} → {max(result.scores):.3f}; outputs moved by {result.output_change:.2f}")
    print(f"the adapter lies in {arguments.out}; try: loraloom inspect {arguments.out}")


if __name__ == "__main__":
    main()
