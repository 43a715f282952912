"""A checkpoint with adapters folded into its weights: W' = W + Σ weight · scale · B·A, written shard by shard.

    report = merge(MergeJob("models/llama", (Weighted(Path("runs/style"), 0.8),), Path("merged")))
    report.holds, report.rounding.of_update

Plan (what becomes of each tensor, from names and shapes), write to a draft beside the target, read what was written and
hold it against base and adapters, and only then give it its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraloom.compose.checkpoint import Checkpoint
from loraloom.compose.checkpoint.dense import Dense, dense_view
from loraloom.compose.checkpoint.target import FolderTarget
from loraloom.compose.merge.changes import ChangePlan, Fitted
from loraloom.compose.merge.fitting import fit_all
from loraloom.compose.merge.outputs import OutputCheck, compare_outputs, may_compare
from loraloom.compose.merge.papers import papers_of
from loraloom.compose.merge.rows import Rounding
from loraloom.compose.merge.shards import ShardWriter, Written
from loraloom.compose.sources import Source, open_adapters
from loraloom.compose.weights import Weighted
from loraloom.errors import ConfigError, FormatError, suggest
from loraloom.formats.export import DTYPES
from loraloom.tasks.diffusion.places import find_base
from loraloom.tasks.models.bases import fingerprint

CHECKS = ("layers", "outputs")
NOTABLE = 0.1
"""A share of the update that the rounding eats, from which on it is told as a warning."""


@dataclass(frozen=True)
class MergeJob:
    """What is to be merged into what. Raises ConfigError for a dtype or a check that there is not, and no adapter."""

    base: str
    """A folder, a .safetensors file, or a name."""
    adapters: tuple[Weighted, ...]
    out: Path
    dtype: str | None = None
    """"fp16", "bf16" or "fp32" for all floating-point tensors; None keeps each one's own."""
    dequantize: bool = False
    """Whether a quantised base may become a dense copy."""
    check: str | None = None
    """"layers", "outputs" (which holds for layers too), or None: outputs where the model is small."""
    head: str | None = None
    """Whose head is taken, where several adapters have one."""
    any_base: bool = False
    """Whether the base may be another than the one that an adapter says it was trained over."""
    overwrite: bool = False
    dry_run: bool = False
    """Plan and check all, write nothing."""

    def __post_init__(self) -> None:
        if not self.adapters:
            raise ConfigError("there is no adapter to merge: name one behind the base, e.g. runs/style:0.8")
        if not any(one.acts for one in self.adapters):
            raise ConfigError("every adapter has weight 0: the result would be the base")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(f"--dtype {self.dtype!r} is not one of {', '.join(DTYPES)}{suggest(self.dtype, DTYPES)}")
        if self.check is not None and self.check not in CHECKS:
            raise ConfigError(f"--check {self.check!r} is not one of {', '.join(CHECKS)}{suggest(self.check, CHECKS)}")


@dataclass(frozen=True)
class MergeReport:
    """What was merged, what the rounding cost, and what the check found."""

    job: MergeJob
    names: tuple[str, ...]
    """Of the adapters, short."""
    class_name: str | None
    """Of the model; None for a pipeline, or where only names of tensors are known."""
    written: tuple[Written, ...]
    """Tensors that changed, worst rounding first."""
    tensors: int
    """In the checkpoint."""
    size: int
    """Bytes of weights that are written."""
    rounding: Rounding
    """Of all updates."""
    conversion: Rounding | None
    """Of the tensors that no adapter changes, where another dtype was asked for."""
    outputs: OutputCheck | None
    """None where the model was not run."""
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = field(default=())
    """What was written, relative to the target."""

    @property
    def moved(self) -> bool:
        """Whether any tensor is another than the base's."""
        return any(one.moved for one in self.written)

    @property
    def failed(self) -> list[Written]:
        """Tensors that do not act as base and adapters together."""
        return [one for one in self.written if not one.holds]

    @property
    def holds(self) -> bool:
        """Whether the result acts as base and adapters together; of a dry run, whether it can be made."""
        if self.job.dry_run:
            return True
        return self.moved and not self.failed and (self.outputs is None or self.outputs.holds)

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "base": self.job.base,
            "out": str(self.job.out),
            "adapters": [
                {"name": name, **one.to_json()} for name, one in zip(self.names, self.job.adapters, strict=True)
            ],
            "class": self.class_name,
            "written": not self.job.dry_run and self.holds,
            "holds": self.holds,
            "tensors": self.tensors,
            "changed": [one.to_json() for one in self.written],
            "bytes": self.size,
            "rounding": {"of_update": self.rounding.of_update, "of_weight": self.rounding.of_weight},
            "conversion": None if self.conversion is None else self.conversion.of_weight,
            "outputs": None if self.outputs is None else self.outputs.to_json(),
            "files": list(self.files),
            "notes": list(self.notes),
        }


def merge(job: MergeJob) -> MergeReport:
    """Merge adapters into a base, and write the checkpoint where the check finds that it acts as both together.

    Raises BaseModelError, FormatError, ConfigError for what cannot be merged, naming every place that is at fault, and
    OutputError where it cannot be written; nothing is then left behind, nor where the report does not hold.
    """
    target = FolderTarget(job.out, job.overwrite)
    checkpoint = Checkpoint.open(job.base)
    target.check(checkpoint, [one.path for one in job.adapters])
    dense = dense_view(checkpoint, job.dequantize)
    sources = open_adapters([one.path for one in job.adapters])
    notes = [] if job.any_base else _check_bases(checkpoint, sources)
    skeleton, fitted = fit_all(dense, job.adapters, sources)
    plan = ChangePlan(skeleton, dense.tensors, fitted, job.head)
    if not plan.changes:
        raise FormatError("the adapters change no tensor of the checkpoint with these weights")
    writer = ShardWriter(dense, plan, None if job.dtype is None else DTYPES[job.dtype], target.single)
    made = _Made(job, checkpoint, dense, sources, fitted, plan, writer)
    made.notes += [*notes, *(note for one in fitted for note in one.notes), *dense.notes]
    return made.report([], None) if job.dry_run else _write(made, target)


@dataclass
class _Made:
    """What the stages of one merge share."""

    job: MergeJob
    checkpoint: Checkpoint
    dense: Dense
    sources: Sequence[Source]
    fitted: Sequence[Fitted]
    plan: ChangePlan
    writer: ShardWriter
    notes: list[str] = field(default_factory=list)

    def report(self, files: Sequence[str], outputs: OutputCheck | None) -> MergeReport:
        writer = self.writer
        return MergeReport(
            self.job,
            tuple(source.name for source in self.sources),
            self.plan.skeleton.class_name,
            tuple(sorted(writer.written.values(), key=lambda one: -one.rounding.of_update)),
            writer.count,
            writer.size,
            writer.rounding,
            writer.conversion if self.job.dtype is not None else None,
            outputs,
            tuple(dict.fromkeys([*self.notes, *self._warnings()])),
            tuple(files),
        )

    def _warnings(self) -> list[str]:
        share = self.writer.rounding.of_update
        if share < NOTABLE:
            return []
        return [f"rounding to {self.writer.dtype_words} eats {share:.0%} of the update; --dtype fp32 would keep it"]


def _write(made: _Made, target: FolderTarget) -> MergeReport:
    with target.draft() as draft:
        files = made.writer.write(draft.path)
        papers = papers_of(made.checkpoint, made.plan, made.fitted, made.sources, made.writer, made.job.out)
        if not target.single:
            files += papers.write(draft.path)
        made.writer.check(draft.path)
        outputs = None
        if all(one.holds for one in made.writer.written.values()):
            outputs = _outputs(made, draft.path(""))
        report = made.report(sorted(files), outputs)
        if report.holds:
            draft.name()
    return report


def _outputs(made: _Made, folder: Path) -> OutputCheck | None:
    """The whole models' outputs side by side, where that was asked for or is soon done."""
    job = made.job
    if job.check == "layers" or (job.check is None and not may_compare(made.checkpoint, made.dense)):
        return None
    found = compare_outputs(made.checkpoint, folder, made.plan, made.fitted)
    if isinstance(found, OutputCheck):
        return found
    if job.check == "outputs":
        raise ConfigError(f"--check outputs: {found}")
    made.notes.append(f"the whole model was not run ({found}); every changed layer was")
    return None


def _check_bases(checkpoint: Checkpoint, sources: Sequence[Source]) -> list[str]:
    """Refuse a base that an adapter says it was not trained over. Raises FormatError."""
    told = {source.name: source.fingerprint for source in sources if source.fingerprint}
    if not told:
        return ["no adapter says which base it was trained over: names and shapes of its layers fit this one"]
    found = fingerprint(list(_fingerprinted(checkpoint)))
    for name, expected in told.items():
        if found != expected:
            raise FormatError(
                f"{name!r} was trained over a base of sha256 {expected[:12]}…, and {checkpoint.name!r} has "
                f"{found[:12]}…; give that base, or say --any-base to merge into this one"
            )
    return []


def _fingerprinted(checkpoint: Checkpoint) -> Sequence[Path]:
    """The files in the order in which a base's fingerprint counts them."""
    if checkpoint.form == "pipeline":
        return find_base(str(checkpoint.path)).weights
    return sorted(checkpoint.shards)
