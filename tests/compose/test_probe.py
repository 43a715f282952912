"""The probe of a written weight: it passes what is right, and sees one wrong row, whichever way it looks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loraloom.compose.merge.changes import Patch
from loraloom.compose.merge.probe import Answers, Probe, may_note, probe
from loraloom.compose.merge.rows import HeldRows, Rounding, changed_blocks

ROWS, COLUMNS, RANK = 700, 520, 3
"""More numbers than one block holds."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def merged(dtype: torch.dtype, *, noted: bool) -> tuple[Tensor, Tensor, list[Patch], Answers | None]:
    """A base, the base with an update, the update, and what the base answered on the way."""
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(ROWS, COLUMNS, generator=generator) * 0.02).to(dtype)
    left = torch.randn(ROWS, RANK, generator=generator).double() * 0.02
    patches = [Patch(0, left, torch.randn(RANK, COLUMNS, generator=generator).double() * 0.1)]
    answers = Answers("w", ROWS, COLUMNS) if noted else None
    watch = None if answers is None else answers.note
    blocks = changed_blocks(HeldRows(base, patches), patches, None, dtype, Rounding(), watch)
    return base, torch.cat([block.clone() for block in blocks]), patches, answers


def found(base: Tensor, written: Tensor, patches: list[Patch], answers: Answers | None) -> Probe:
    size = float(written.double().norm())
    return probe("w", HeldRows(base, patches), HeldRows(written, patches), size, patches, None, answers)


@pytest.mark.parametrize(
    ("dtype", "noted"), [(dtype, noted) for dtype in DTYPES for noted in (False, True) if not noted or may_note(dtype)]
)
def test_a_weight_as_meant_holds_and_one_wrong_row_does_not(dtype: torch.dtype, noted: bool) -> None:
    base, written, patches, answers = merged(dtype, noted=noted)
    right = found(base, written, patches, answers)
    assert right.holds and right.moved > 0
    for row in (0, ROWS - 1):
        spoiled = written.clone()
        spoiled[row] = 0.5
        assert not found(base, spoiled, patches, answers).holds
    assert not found(base, base, patches, answers).holds, "the base passed for the merged weight"


@pytest.mark.parametrize("noted", [False, True])
def test_a_weight_that_is_the_bases_has_not_moved(noted: bool) -> None:
    base, _, patches, answers = merged(torch.bfloat16, noted=noted)
    assert found(base, base, patches, answers).moved == 0


def test_float32_cannot_tell_its_own_rounding() -> None:
    assert may_note(torch.bfloat16, torch.float16)
    assert not may_note(torch.bfloat16, torch.float32)
