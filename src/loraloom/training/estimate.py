"""What a run will need of memory and time, told before it: by the model's shapes and a few timed batches.

Everything is read, loaded and encoded as for the run, so that the time of that is measured. Then gradients
are taken of some batches, from the shortest to the longest, and thrown away: no step is applied, and nothing
is written. The optimiser's step is timed on tensors of the same shapes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from loraloom.data.batches import micro_batches, sorted_batches
from loraloom.tasks.base import BaseModel, Task
from loraloom.training.config import TrainConfig
from loraloom.training.evidence import site_changes
from loraloom.training.job import ADAPTER, Job
from loraloom.training.memory import MIB, PeakMemory
from loraloom.training.optim import make_optimizer
from loraloom.training.prepare import prepare
from loraloom.training.processes import Processes
from loraloom.training.reporter import Notebook, Reporter, SilentReporter
from loraloom.training.results import OUTPUT_EXAMPLES
from loraloom.training.scoring import raw_outputs
from loraloom.training.seeds import own_randomness, seed_generators, step_seed
from loraloom.training.stepper import within_memory
from loraloom.training.timing import Indices, Timing, padded, spread, time_batches, timed

PICTURE_S = 1.0
"""Seconds for drawing the curves, the drawing library's import included."""
DISK_BYTES_PER_S = 3e8
"""At which checkpoints and results are taken to be written; the disk is left alone."""
HOLES = 1.1
"""By how much a CPU's heap outgrows what activations take over the steps of a run, by holes between them."""
_SCRATCH = 8 * 2**20
"""Numbers on which the optimiser's step is timed, at most."""


@dataclass(frozen=True)
class MicroBatch:
    """What fewer examples per forward pass would need."""

    size: int
    peak_mib: float
    """Above the base model."""


@dataclass(frozen=True)
class Estimate:
    """The memory and time that a run is expected to take."""

    method: str
    base: str
    device: str
    precision: str
    trained_parameters: int
    steps: int
    evaluations: int
    """On all held-out examples: before, during and after the training."""
    micro_batch: int
    """Examples per forward pass that fit into memory here."""
    memory_mib: dict[str, float]
    """"weights" of the base; above it "adapter" (or "model": gradients and the best copy of a full run),
    "optimiser" and "activations", which make "peak_above_base"; "process" is what this process holds with the
    base in it, libraries included, and "total" the sum of the two."""
    seconds: dict[str, float]
    """"preparation", "training", "evaluation", "saving", "proof" and "total"."""
    smaller: tuple[MicroBatch, ...]
    """The same run with smaller micro-batches."""
    notes: list[str] = field(default_factory=list)


def estimate(config: TrainConfig, task: Task, *, reporter: Reporter | None = None) -> Estimate:
    """What `train(config, task)` will take, without training or writing anything.

    The model's tensors and the generators of random numbers are left as they were. Raises what `train`
    raises before its first step, and TrainingError when memory does not suffice for one example.
    """
    processes = Processes.of_environment(config.device)
    notebook = Notebook(reporter or SilentReporter())
    with own_randomness(processes.device):
        seed_generators(step_seed(config.seed, -1), processes.device)
        trial = _Trial(config, task, processes, notebook)
        kept = _Buffers(trial.job.base.model)
        try:
            return trial.estimate()
        finally:
            trial.forget_gradients()
            kept.restore()


class _LoadTimer:
    """A task whose loading of base models is timed."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def load(self, *arguments: Any, **settings: Any) -> BaseModel:
        began = time.perf_counter()
        base = self._task.load(*arguments, **settings)
        self.seconds = time.perf_counter() - began
        return base


class _Buffers:
    """The running statistics of a model, which a forward pass in training changes."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]

    @torch.no_grad()
    def restore(self) -> None:
        for buffer, value in self._kept:
            buffer.copy_(value)


class _Trial:
    """A prepared job, and what is measured of it."""

    def __init__(self, config: TrainConfig, task: Task, processes: Processes, notebook: Notebook) -> None:
        self.device = processes.device
        self.notebook = notebook
        timer = _LoadTimer(task)
        began = time.perf_counter()
        with PeakMemory(self.device) as peak:
            prepared = prepare(config, cast(Task, timer), processes, notebook.note, loaded=peak.begin)
        self.job: Job = prepared[0]
        self.preparation = time.perf_counter() - began
        self.load = timer.seconds
        self.process = peak.baseline_mib
        self.highest = peak.baseline_mib + peak.peak_mib
        """The most that was in use at any time, MiB."""
        self.lengths = [feature.length for feature in self.job.train]

    def estimate(self) -> Estimate:
        job = self.job
        share = -(-job.config.batch_size // job.processes.count)
        wanted = min(share, job.config.micro_batch_size or share)
        self.bytes = _trained_bytes(job)
        job.set_training(True)
        smaller, micro = within_memory(self._grow, wanted, job.processes, self.notebook.note)
        parts = self._parts(micro)
        steps, first = self._time_steps(parts)
        self.forget_gradients()
        job.set_training(False)
        evaluation = self._evaluation(micro)
        memory = self._memory()
        seconds = self._seconds(parts, steps, first, evaluation)
        return Estimate(
            method=job.config.method,
            base=job.base.name,
            device=str(self.device),
            precision=job.precision.name,
            trained_parameters=sum(parameter.numel() for parameter in job.gradients_of),
            steps=job.steps,
            evaluations=self._evaluations(),
            micro_batch=micro,
            memory_mib=memory,
            seconds=seconds,
            smaller=self._smaller(micro, memory["peak_above_base"], smaller),
            notes=self.notebook.notes,
        )

    def forget_gradients(self) -> None:
        """Leave no gradient behind."""
        for parameter in self.job.base.model.parameters():
            parameter.grad = None

    # -- batches ------------------------------------------------------------------------------------

    def _parts(self, micro: int) -> list[Indices]:
        """Every forward pass in training of this process, in the run's order."""
        processes = self.job.processes
        parts: list[Indices] = []
        for batch in self.job.batches(0):
            share = batch[processes.index :: processes.count]
            parts += micro_batches(share, -(-len(share) // micro)) if share else []
        return parts

    def _gradients(self, part: Indices) -> None:
        """A forward and a backward pass, as a step makes them: from no gradients to new ones."""
        job = self.job
        self.forget_gradients()
        with job.precision.computing(self.device):
            batch = job.collate([job.train[index] for index in part], training=True)
            loss, _ = job.task.loss(job.callable, batch)
        (loss / len(part)).backward()  # type: ignore[no-untyped-call]

    # -- time ---------------------------------------------------------------------------------------

    def _time_steps(self, parts: Sequence[Indices]) -> tuple[Timing, float]:
        """Seconds of a forward and backward pass by size, and what the very first one took above that."""
        chosen = spread(parts, self.lengths)
        timing = self._watched(lambda: time_batches(self._gradients, chosen, self.lengths, self.device))
        usual = timing.seconds(padded(self.largest, self.lengths))
        return timing, max(0.0, self.first - usual)

    def _evaluation(self, micro: int) -> float:
        """Seconds of one evaluation on all held-out examples of this process."""
        job = self.job
        lengths = [feature.length for feature in job.evaluation]
        batches = sorted_batches(lengths, micro)[job.processes.index :: job.processes.count]

        def predict(indices: Indices) -> None:
            features = [job.evaluation[index] for index in indices]
            with torch.no_grad(), job.precision.computing(self.device):
                job.task.predict(job.callable, job.collate(features), job.base)

        chosen = spread(batches, lengths, 3)
        timing = self._watched(lambda: time_batches(predict, chosen, lengths, self.device))
        return timing.total([padded(batch, lengths) for batch in batches])

    def _seconds(self, parts: Sequence[Indices], steps: Timing, first: float, evaluation: float) -> dict[str, float]:
        job = self.job
        outputs = timed(lambda: raw_outputs(job, job.evaluation[:OUTPUT_EXAMPLES]), self.device)[1]
        training = first + steps.total([padded(part, self.lengths) for part in parts])
        seconds = {
            "preparation": self.preparation + outputs,
            "training": training + job.steps * optimizer_seconds(job),
            "evaluation": evaluation * (1 + _loop_evaluations(job)),
            "saving": self._written() / DISK_BYTES_PER_S,
            "proof": PICTURE_S + outputs + self._proof(evaluation),
        }
        return {**seconds, "total": sum(seconds.values())}

    def _proof(self, evaluation: float) -> float:
        """Seconds for the evidence: the updates' sizes, or a look at the base again, and the scores over it."""
        job = self.job
        if job.adapters is None:
            return self.load
        sites = timed(lambda: site_changes(job.base.model, cast(Any, job.adapters), ADAPTER), self.device)[1]
        return sites + (self.load + evaluation * float32_ratio(job) if _compares(job) else 0.0)

    def _written(self) -> float:
        """Bytes of all checkpoints and the result; a best state that is not the newest is taken for half of them."""
        job, trained = self.job, self.bytes
        checkpoints = max(0, _loop_evaluations(job) - 1)
        if job.config.checkpoint_every is not None:
            checkpoints = (job.steps - 1) // job.config.checkpoint_every
        return checkpoints * 3.5 * trained + trained

    def _evaluations(self) -> int:
        return 1 + _loop_evaluations(self.job) + int(_compares(self.job))

    # -- memory -------------------------------------------------------------------------------------

    def _watched(self, work: Callable[[], Timing]) -> Timing:
        with PeakMemory(self.device) as peak:
            result = work()
        self.highest = max(self.highest, peak.baseline_mib + peak.peak_mib)
        return result

    def _grow(self, micro: int) -> list[tuple[int, float]]:
        """(examples, MiB in use at most) with half and all of the largest micro-batch."""
        parts = self._parts(micro)
        self.largest = max(parts, key=lambda part: padded(part, self.lengths))
        found: list[tuple[int, float]] = []
        half = self.largest[len(self.largest) // 2 :]
        for part in (half, self.largest) if len(half) < len(self.largest) else (self.largest,):
            with PeakMemory(self.device) as peak:
                self.first = timed(lambda part=part: self._gradients(part), self.device)[1]  # type: ignore[misc]
            found.append((len(part), peak.baseline_mib + peak.peak_mib))
            self.highest = max(self.highest, found[-1][1])
        return found

    def _memory(self) -> dict[str, float]:
        job, trained = self.job, self.bytes / MIB
        on_cpu = self.device.type == "cpu"
        # On a CPU the best state so far lies beside the model, from the first evaluation on; an accelerator's memory
        # is spared that.
        best = trained if on_cpu and _loop_evaluations(job) > 1 else 0.0
        own = 2 * trained if job.adapters is not None else trained
        activations = max(0.0, self.highest - self.process - own) * (HOLES if on_cpu else 1.0)
        peak = own + activations + 2 * trained + best
        return {
            "weights": weight_bytes(job.base.model, set(map(id, job.gradients_of))) / MIB,
            "adapter" if job.adapters is not None else "model": own + best,
            "optimiser": 2 * trained,
            "activations": activations,
            "peak_above_base": peak,
            "process": self.process,
            "total": self.process + peak,
        }

    def _smaller(self, micro: int, peak: float, grown: list[tuple[int, float]]) -> tuple[MicroBatch, ...]:
        """Memory falls with the examples along the line through the two that were measured."""
        if len(grown) < 2 or micro < 2:
            return ()
        (few, less), (many, more) = grown
        slope = max(0.0, more - less) / (many - few)
        sizes = []
        while micro > 1:
            micro = (micro + 1) // 2
            sizes.append(MicroBatch(micro, max(0.0, peak - slope * max(0, many - micro))))
        return tuple(sizes)


def optimizer_seconds(job: Job) -> float:
    """Seconds that clipping and one step of the optimiser take, on scratch tensors of the trained ones' shapes."""
    scratch: list[nn.Parameter] = []
    total = sum(parameter.numel() for parameter in job.gradients_of)
    used = 0
    for parameter in job.gradients_of:
        if used >= _SCRATCH:
            break
        scratch.append(nn.Parameter(torch.zeros_like(parameter.detach())))
        scratch[-1].grad = torch.full_like(scratch[-1], 1e-3)
        used += parameter.numel()
    optimizer = make_optimizer([{"params": scratch, "peak": 1e-3, "weight_decay": 0.0}])
    gradients = [cast(Tensor, parameter.grad) for parameter in scratch]

    def step() -> None:
        torch.nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, 1.0)
        optimizer.step()

    step()  # makes the moments
    device = job.processes.device
    return min(timed(step, device)[1] for _ in range(3)) * total / max(1, used)


def float32_ratio(job: Job) -> float:
    """How much longer a product of matrices takes in float32 than in the base's own format."""
    if job.precision.base == torch.float32:
        return 1.0
    device, wide = job.processes.device, 512
    taken = []
    for dtype in (job.precision.base, torch.float32):
        a, b = (torch.ones(wide, wide, dtype=dtype, device=device) for _ in range(2))
        timed(lambda a=a, b=b: a @ b, device)  # type: ignore[misc]
        taken.append(min(timed(lambda a=a, b=b: a @ b, device)[1] for _ in range(5)))  # type: ignore[misc]
    return max(1.0, taken[1] / taken[0])


def weight_bytes(model: nn.Module, without: set[int]) -> int:
    """Bytes of a model's parameters and buffers as they are held, quantised ones too; not those of ids `without`."""
    tensors: dict[int, Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in without or tensor.requires_grad is False:
            tensors[id(tensor)] = tensor
    return sum(_held(tensor) for tensor in tensors.values())


def _held(tensor: Tensor) -> int:
    """A tensor class that holds others (torchao's) names them; any other is as large as it looks."""
    names = getattr(type(tensor), "tensor_data_names", None)
    if not names:
        return tensor.numel() * tensor.element_size()
    return sum(_held(getattr(tensor, name)) for name in names)


def _trained_bytes(job: Job) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in job.gradients_of)


def _loop_evaluations(job: Job) -> int:
    every = job.config.evaluate_every or job.steps_per_epoch
    return job.steps // every + (job.steps % every > 0)


def _compares(job: Job) -> bool:
    """Whether the run scores its adapter over the whole float32 base too."""
    rounded = job.precision.base != torch.float32 or job.config.quantize is not None
    return job.adapters is not None and rounded and job.config.compare_precision
