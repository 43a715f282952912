"""Several adapters made into one, each by its weight, with the error against their exact sum.

    job = MixJob([Weighted(Path("ink"), 0.7), Weighted(Path("glass"), 0.4)], Path("both"), how="svd", rank=16)
    report = mix(job)          # both/ is there now; report.error says how far it is from the exact sum

One layer is worked on at a time, from PEFT folders on the disk to the result on the disk, so that memory is needed for
one layer's factors; files of other programs are in memory as a whole.
"""

from __future__ import annotations

import itertools
import json
import math
import warnings
from pathlib import Path

from loraloom.compose.mix.combine import Combined, combine
from loraloom.compose.mix.file import as_it_is, write_mixed
from loraloom.compose.mix.plan import MixJob, MixPlan, plan_mix
from loraloom.compose.mix.report import MixReport, SiteMix, SourceShare, card_lines, comment_of
from loraloom.compose.records import beside
from loraloom.errors import FormatError
from loraloom.formats.anyfile import read_any
from loraloom.formats.certificate import limit_of
from loraloom.formats.draft import Draft
from loraloom.formats.peft_file import CONFIG_NAME, WEIGHTS_NAME, AdapterFile, read_folder
from loraloom.formats.resolving import canonical
from loraloom.formats.stored import StoredTensors
from loraloom.formats.tensorfile import header_bytes, tensor_bytes, write_together
from loraloom.formats.updates import Update, in_dtype, updates_of
from loraloom.formats.writing import Files
from loraloom.training.output import RECORD_NAME

REPORT_NAME = "mix.json"
"""The whole report, beside the adapter in its folder."""

_SCRATCH = ".scratch"

__all__ = ["REPORT_NAME", "MixJob", "MixPlan", "MixReport", "mix", "plan_mix"]


def mix(job: MixJob) -> MixReport:
    """Mix and write. The target is there only where the written file read back does what was mixed.

    Raises ConfigError, FormatError and OutputError as `plan_mix` does, and where a value does not fit the dtype.
    """
    return make_mix(plan_mix(job))


def make_mix(plan: MixPlan) -> MixReport:
    """Carry out a plan."""
    with Draft(plan.target.path) as draft:
        file, report = _made(plan, draft)
        files = _streamed(plan, file) or plan.target.files(file)
        if "" not in files:
            files |= {name: [data] for name, data in _told(plan, file, report).items()}
        write_together({draft.path(name): pieces for name, pieces in files.items()})
        _check(file, draft, "" in files, plan)
        draft.name(files)
    if RECORD_NAME not in files and plan.target.path.is_dir():  # one that was there told of another adapter
        (plan.target.path / RECORD_NAME).unlink(missing_ok=True)
    return report


def _made(plan: MixPlan, draft: Draft) -> tuple[AdapterFile, MixReport]:
    """The result, which lies in the draft's folder where it is a new one, and what there is to tell of it."""
    sites: dict[str, SiteMix] = {}

    def made(path: str) -> Update:
        holders = plan.holders(path)
        updates = [(weight, plan.ingredients[at].source.updates[path]) for at, weight in holders]
        one = combine(updates, plan.method, plan.dtype) if plan.untouched is None else _itself(updates[0][1], plan)
        sites[path] = _site(plan, path, one)
        return one.update

    comment = comment_of(plan)
    if plan.untouched is None:
        file = write_mixed(plan, made, draft.folder / _SCRATCH, comment)
    else:
        file = as_it_is(plan, comment)
        for path in plan.sites:
            made(path)
    listed = tuple(sites[path] for path in plan.sites)
    shares = [SourceShare.of(one, [site.parts[at] for site in listed]) for at, one in enumerate(plan.ingredients)]
    return file, MixReport(plan, listed, tuple(shares))


def _streamed(plan: MixPlan, file: AdapterFile) -> Files:
    """PEFT's two files for what lies on the disk in its vocabulary and dtype, tensor by tensor; else nothing."""
    tensors = file.tensors
    as_asked = plan.untouched is None or plan.target.dtype is None
    one_folder = plan.target.to == "peft" and (file.path / CONFIG_NAME).is_file()
    if not (one_folder and as_asked and isinstance(tensors, StoredTensors)):
        return {}
    outline = {key: (tensors.dtype(key), tensors.shape(key)) for key in tensors}
    header = header_bytes(outline, file.metadata)
    config = json.dumps(dict(file.config), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    pieces = (tensor_bytes(tensors[key]) for key in sorted(tensors))
    return {WEIGHTS_NAME: itertools.chain([header], pieces), CONFIG_NAME: [config.encode()]}


def _site(plan: MixPlan, path: str, one: Combined) -> SiteMix:
    parts = [0.0] * len(plan.ingredients)
    for (at, _), norm in zip(plan.holders(path), one.parts, strict=True):
        parts[at] = norm
    return SiteMix(path, one.update.rank, one.exact, one.size, one.distance, one.own, one.cut, tuple(parts))


def _itself(update: Update, plan: MixPlan) -> Combined:
    """A layer that is carried over; nothing of it changes but, where that was asked for, its dtype."""
    asked = plan.target.torch_dtype
    kept = update if asked is None else in_dtype(update, asked)
    norm = update.norm()
    return Combined(kept, norm, (norm,), update.difference(kept) * norm if norm else 0.0, 0.0, norm, norm)


def _told(plan: MixPlan, file: AdapterFile, report: MixReport) -> dict[str, bytes]:
    """The report, the card, and, for a mix of runs, the record by which it is opened as one of them."""
    sources = list(dict.fromkeys([*plan.heads.values(), *plan.sources]))
    runs = [source.record for source in sources if source.record is not None and source.single_folder]
    records = runs if len(runs) == len(sources) and (file.path / CONFIG_NAME).is_file() else []
    title = f"Mix of {', '.join(one.name for one in plan.ingredients)}"
    told = {REPORT_NAME: (json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n").encode()}
    return told | beside(records, report.summary(), title, card_lines(report))


def _check(file: AdapterFile, draft: Draft, single: bool, plan: MixPlan) -> None:
    """Raise FormatError where what was written is not what was mixed; layer by layer, as both lie on the disk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = _read_back(draft.path("") if single else draft.folder)
    made, found = (updates_of(one, magnitudes=True)[0] for one in (file, again))
    names = {canonical(path): path for path in found}
    limit = limit_of(plan.target.torch_dtype)
    for path in made:
        theirs = names.get(canonical(path))
        apart = math.inf if theirs is None else made[path].difference(found[theirs])
        if apart > limit:
            raise FormatError(f"{plan.target.path} was not written: {path!r} came back changed by {apart:.1e} of it")


def _read_back(path: Path) -> AdapterFile:
    return read_folder(path, stored=True) if (path / CONFIG_NAME).is_file() else read_any(path)
