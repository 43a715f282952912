"""An extracted adapter as files: put in its format's words, written, read back and held against the differences."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from loraloom.adapters import AdapterSet, AdapterSpec, AttachPlan, plan_attach
from loraloom.adapters.layers.conv import narrow
from loraloom.compose.extract.differences import Cut, Factors, probe
from loraloom.compose.extract.keeping import Kept
from loraloom.compose.extract.pairing import Model, Pair, Pairing
from loraloom.compose.extract.report import ExtractReport
from loraloom.compose.records import CARD_NAME, beside
from loraloom.errors import FormatError, one_error
from loraloom.formats.anyfile import DIFFUSERS_NAME, read_any
from loraloom.formats.certificate import limit_of
from loraloom.formats.draft import Draft
from loraloom.formats.peft_config import PeftConfig
from loraloom.formats.peft_file import CONFIG_NAME, WEIGHTS_NAME, AdapterFile, read_folder
from loraloom.formats.peft_names import without_wrappers
from loraloom.formats.peft_settings import header_of
from loraloom.formats.peft_write import PeftWriter
from loraloom.formats.resolving import canonical
from loraloom.formats.selection import most_common, shortest_names
from loraloom.formats.tensorfile import tensor_pieces, write_together
from loraloom.formats.updates import Update, as_peft, updates_of
from loraloom.formats.writing import Files, Target
from loraloom.training.output import RECORD_NAME

REPORT_NAME = "extract.json"
_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}
"""End of a class's name → PEFT's word for its task."""
_NOT_TRAINED = "extracted from a model that was trained in full, not trained and not scored itself; 'settings' are its"


@dataclass(frozen=True)
class Extracted:
    """The factors of an extraction and what is carried whole, not yet in any format's words."""

    tuned: str
    base: str
    pairing: Pairing
    factors: Mapping[str, Factors]
    """By the path of the layer."""
    kept: Kept
    record: Mapping[str, Any] | None = None
    """The run.json of the tuned model, changed to one of an adapter."""

    @cached_property
    def pairs(self) -> dict[str, Pair]:
        """The weight of every layer that takes an update, by the layer's path."""
        return {pair.module: pair for pair in self.pairing.pairs if pair.kind is not None}

    def file(self, out: Path, to: str) -> AdapterFile:
        """The adapter in PEFT's vocabulary."""
        if self.pairing.single and to == "peft":
            return _SingleModel(self).file(out)
        prefix = f"{self.pairing.part_word}." if self.pairing.single and self.pairing.part_word else ""
        return as_peft([replace(one, path=prefix + one.path) for one in self.updates()], out, {"format": "pt"})

    def updates(self) -> Iterator[Update]:
        """Every layer's, with a scale of 1."""
        for path, one in self.factors.items():
            yield Update(path, one.a, one.b, float(one.rank), self.pairs[path].kind == "embedding")


def write_extracted(extracted: Extracted, target: Target, cut: Cut, report: ExtractReport) -> ExtractReport:
    """Write the adapter, read it back, and give it its name only if it is the difference. Raises FormatError."""
    file = extracted.file(target.path, target.to)
    files = _files(file, target, extracted.pairing.single)
    folder = target.path.suffix != ".safetensors"
    with Draft(target.path) as draft:
        write_together({draft.path(name): pieces for name, pieces in files.items()})
        size = sum(draft.path(name).stat().st_size for name in files)
        written = read_back(draft.folder, target, extracted.pairing.single)
        check_written(written, extracted, cut)
        report = replace(report, size=size)
        extra = _beside(extracted, report) if folder else {}
        write_together({draft.path(name): [data] for name, data in extra.items()})
        draft.name([*files, *extra])
    if folder:
        _tidy(target, {*files, *extra})
    return report


def _files(file: AdapterFile, target: Target, single: bool) -> Files:
    if target.to != "peft" or not single:
        return replace(target, dtype=None).files(file)
    # Not by Target: a path such as GPT-2's "transformer.h.0" is no part of a pipeline here.
    text = json.dumps(dict(file.config), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return {
        WEIGHTS_NAME: tensor_pieces(file.tensors, file.metadata),
        CONFIG_NAME: [text.encode("utf-8")],
    }


def _beside(extracted: Extracted, report: ExtractReport) -> dict[str, bytes]:
    """README.md, the report, and a run.json where the tuned model has one."""
    share = f"{100 * report.carried:.4g} %"
    lines = [
        f"The low-rank part of what `{extracted.tuned}` has over `{extracted.base}`: updates of {len(report.sites)} "
        f"layers, which carry {share} of the squared change of all weights. `{REPORT_NAME}` tells it layer by layer.",
        "It was taken from the difference of two checkpoints, not trained. It acts only over the base named above.",
    ]
    if report.lost:
        lines.append("Not carried: " + ", ".join(f"`{other.path}`" for other in report.lost[:20]) + ".")
    note = {"how": "extract", "tuned": extracted.tuned, "base": extracted.base, "carried": report.carried}
    records = [] if extracted.record is None else [extracted.record]
    files = beside(records, note, "LoRA adapter from a fine-tuned checkpoint", lines)
    if RECORD_NAME in files:
        told = json.loads(files[RECORD_NAME]) | {"notes": [_NOT_TRAINED]}
        files[RECORD_NAME] = _json(told)
    return files | {REPORT_NAME: _json(report.to_json())}


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False, default=str) + "\n").encode()


def _tidy(target: Target, written: set[str]) -> None:
    """Take away what a former adapter of this folder would be mistaken by: its record, its factors in other words."""
    for name in (RECORD_NAME, CONFIG_NAME, WEIGHTS_NAME, CARD_NAME, REPORT_NAME, DIFFUSERS_NAME):
        if target.overwrite and name not in written:
            (target.path / name).unlink(missing_ok=True)


# -- one model, in PEFT's words -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Planned:
    """What `PeftWriter` asks of an AdapterSet, of an adapter that is attached to nothing."""

    model: torch.nn.Module
    own_plan: AttachPlan
    own_spec: AdapterSpec
    own_tensors: Mapping[str, Tensor]

    def plan(self, name: str) -> AttachPlan:
        return self.own_plan

    def spec(self, name: str) -> AdapterSpec:
        return self.own_spec

    def tensors(self, name: str) -> Mapping[str, Tensor]:
        return self.own_tensors


class _SingleModel:
    """The adapter of one model, by the rules that a trained one is written by."""

    def __init__(self, extracted: Extracted) -> None:
        self.extracted = extracted
        self.model: Model = extracted.pairing.models[0]
        self.empty = self.model.skeleton.model
        self.factors = dict(extracted.factors)
        for bias in extracted.kept.biases:  # PEFT carries the bias of a layer only beside an update of it
            self.factors.setdefault(bias.rpartition(".")[0], self._nothing(bias.rpartition(".")[0]))

    def file(self, out: Path) -> AdapterFile:
        """Raises TargetError where a tied weight is used by what takes no update."""
        spec = self._spec()
        plan = plan_attach(self.empty, spec)
        planned = cast(AdapterSet, _Planned(self.empty, plan, spec, self._tensors(plan)))
        writer = PeftWriter(planned, "")
        config = writer.config(self.extracted.base, self._task())
        tensors = {key: self._filled(key, tensor) for key, tensor in writer.tensors().items()}
        return AdapterFile(config, tensors, header_of(spec, PeftConfig.of(config, CONFIG_NAME)), out)

    def _spec(self) -> AdapterSpec:
        paths = [path for path, _ in self.empty.named_modules() if path]
        ranks = {path: one.rank for path, one in self.factors.items()}
        common = int(most_common([float(rank) for rank in ranks.values()] or [1.0]))
        by_rank = {
            pattern: rank
            for rank in sorted(set(ranks.values()) - {common})
            for pattern in patterns_of([path for path, own in ranks.items() if own == rank], paths)
        }
        tied = any(self.extracted.pairs[path].users for path in self.factors)
        return AdapterSpec(
            rank=common,
            alpha=float(common),
            targets=tuple(patterns_of(list(self.factors), paths)),
            rank_pattern=by_rank,
            alpha_pattern={pattern: float(rank) for pattern, rank in by_rank.items()},
            heads=tuple(patterns_of(self.extracted.kept.heads, paths)),
            bias="adapted" if self.extracted.kept.biases else "none",
            tied="share" if tied else "refuse",
        )

    def _tensors(self, plan: AttachPlan) -> dict[str, Tensor]:
        own: dict[str, Tensor] = {}
        for site in plan.sites:
            if site.shares is None:
                own |= {f"{site.path}|A": self.factors[site.path].a, f"{site.path}|B": self.factors[site.path].b}
        for copied in plan.copies:
            own |= {f"{path}|{copied.role}": self._tuned(path) for path in copied.paths}
        return own

    def _tuned(self, path: str) -> Tensor:
        return self.extracted.pairing.tuned.tensors[self.model.skeleton.keys[path]]

    def _filled(self, key: str, tensor: Tensor) -> Tensor:
        """A tensor that the writer took from the empty model: what the tuned one has there."""
        return self._tuned(without_wrappers(key)) if tensor.is_meta else tensor

    def _nothing(self, path: str) -> Factors:
        pair = self.extracted.pairs[path]
        rank, kind = pair.groups, pair.kind
        inner = pair.shape[:1] if kind == "conv1d-transposed" else pair.shape[1:]
        outer = pair.shape[1] if kind == "conv1d-transposed" else pair.shape[0]
        b = torch.zeros(outer, 1, *(1,) * (len(inner) - 1))
        return Factors(torch.zeros(rank, *inner), b, rank, 0.0, 0, torch.zeros(0))

    def _task(self) -> str | None:
        name = self.model.skeleton.class_name or ""
        return next((word for end, word in _TASKS.items() if name.endswith(end)), None)


def patterns_of(chosen: Sequence[str], paths: Iterable[str]) -> list[str]:
    """Target patterns that mean exactly these modules, as short as can be."""
    names, hopeless = shortest_names(chosen, paths)
    return [*names, *(f"re:{_escaped(path)}" for path in hopeless)]


def _escaped(path: str) -> str:
    return path.replace(".", r"\.")


# -- proof --------------------------------------------------------------------------------------------


def read_back(folder: Path, target: Target, single: bool) -> AdapterFile:
    """What was written; PEFT's folder of one model stays on the disk, to be read layer by layer."""
    if target.to != "peft":
        name = "" if target.path.suffix == ".safetensors" else DIFFUSERS_NAME
        return read_any(folder / (name or target.path.name))
    return read_folder(folder, stored=True) if single else read_any(folder)


def check_written(written: AdapterFile, extracted: Extracted, cut: Cut) -> None:
    """Hold every layer of the file against the difference, on random vectors. Raises FormatError naming what differs.

    ΔW·x was noted when ΔW was at hand; the file must come as near to it as its factors were measured to come.
    """
    found = {canonical(path): update for path, update in updates_of(written)[0].items()}
    word = f"{extracted.pairing.part_word}." if extracted.pairing.single else ""
    faults = []
    for path, one in extracted.factors.items():
        update = found.get(canonical(path)) or found.get(canonical(word + path))
        if update is None:
            faults.append(f"{path!r} is not in it")
        elif (error := _error(update, one, extracted.pairs[path])) > limit_of(cut.dtype) + _SUMS:
            faults.append(f"{path!r} differs by {error:.1e} of its size from what was extracted")
    faults += [f"{path!r} is not the tuned tensor" for path in _unlike(written, extracted)]
    if faults:
        raise one_error(FormatError, f"{written.path}: the written adapter is not the difference", faults[:_MOST])


_SUMS = 1e-5
"""What sums of products in float32, in which the remainders were measured, may differ by."""
_MOST = 10


def _error(update: Update, one: Factors, pair: Pair) -> float:
    """How much further from ΔW·x the file's update is than the factors that were measured, as a share of ΔW·x."""
    if pair.groups > 1 and update.a.shape[1] != pair.shape[1]:
        own = narrow(update.a, pair.groups)
        update = update if own is None else replace(update, a=own)
    product = update.product()
    if product.shape[0] != one.probed.shape[0]:
        return float("inf")
    x = probe(product.shape[1], one.seed)
    ours = _applied(one, pair, x)
    size = float(one.probed.norm()) or 1.0
    return abs(float((product.b @ (product.a @ x) - one.probed).norm()) - float((ours - one.probed).norm())) / size


def _applied(one: Factors, pair: Pair, x: Tensor) -> Tensor:
    """The factors in memory times probe vectors."""
    hidden = (one.a.double().flatten(1) @ x).reshape(pair.groups, -1, x.shape[1])
    b = one.b.double().flatten(1).reshape(pair.groups, -1, one.b.shape[1])
    return (b @ hidden).flatten(0, 1)


def _unlike(written: AdapterFile, extracted: Extracted) -> Iterator[str]:
    """What is carried whole and is not the tuned checkpoint's to the bit."""
    if not extracted.kept:
        return
    keys = extracted.pairing.models[0].skeleton.keys
    held = {without_wrappers(key): key for key in written.tensors if ".lora_" not in key}
    for path, key in held.items():
        whole = extracted.kept.holds(path) and path in keys
        if whole and not torch.equal(written.tensors[key], extracted.pairing.tuned.tensors[keys[path]]):
            yield path
    yield from (bias for bias in extracted.kept.biases if bias not in held)


__all__ = ["Extracted", "check_written", "write_extracted"]
