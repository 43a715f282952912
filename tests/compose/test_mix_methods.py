"""svd, ties, dare and magnitude pruning: held to plain numpy, to PEFT, and to what their papers promise."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from peft.utils import merge_utils
from tests.compose.mix_models import adapter, dense

from loraloom.compose.mix import MixJob, mix
from loraloom.compose.mix.combine import Method, combine
from loraloom.compose.mix.sparsify import MIXTURES, Dense, dare, kept_count, magnitude_prune, seed_of, ties, trim
from loraloom.compose.weights import Weighted
from loraloom.formats.updates import Update

WEIGHTS = (0.7, 0.4, -0.2)
Matrix = np.ndarray


def plain_trim(matrix: Matrix, density: float) -> Matrix:
    keep = max(1, int(density * matrix.size))
    order = np.argsort(-np.abs(matrix).ravel(), kind="stable")[:keep]
    kept = np.zeros(matrix.size)
    kept[order] = matrix.ravel()[order]
    return kept.reshape(matrix.shape)


def plain_ties(matrices: list[Matrix], weights: tuple[float, ...], density: float) -> Matrix:
    """Entry by entry, as the paper's algorithm 1 reads, with the weights multiplied in first."""
    trimmed = [w * plain_trim(m, density) for w, m in zip(weights, matrices, strict=True)]
    result = np.zeros(matrices[0].shape)
    for place in itertools.product(*map(range, result.shape)):
        values = [matrix[place] for matrix in trimmed]
        sign = np.sign(sum(values))
        agreeing = [value for value in values if value != 0 and np.sign(value) == sign]
        result[place] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return result


def plain_cut(matrix: Matrix, rank: int) -> Matrix:
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def matrices(count: int = 3, shape: tuple[int, int] = (12, 9)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def parts(weights: tuple[float, ...] = WEIGHTS) -> list[Dense]:
    return [Dense(weight, matrix, seed) for seed, (weight, matrix) in enumerate(zip(weights, matrices(), strict=False))]


@pytest.mark.parametrize("density", [0.05, 0.3, 0.999, 1.0])
def test_trimming_keeps_the_largest(density: float) -> None:
    for matrix in matrices():
        assert np.array_equal(trim(matrix, density).numpy(), plain_trim(matrix.numpy(), density))
    assert kept_count(10, 0.01) == 1


@pytest.mark.parametrize("density", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("weights", [WEIGHTS, (1.0, 1.0, 1.0), (-1.0, 0.3, 2.0)])
def test_ties_is_the_papers(density: float, weights: tuple[float, ...]) -> None:
    wanted = plain_ties([matrix.numpy() for matrix in matrices()], weights, density)
    assert np.allclose(ties(parts(weights), density).numpy(), wanted, atol=1e-12)


def test_ties_of_equal_weights_and_magnitude_pruning_are_pefts() -> None:
    equal = parts((0.5, 0.5, 0.5))
    wanted = merge_utils.ties(matrices(), torch.tensor([0.5, 0.5, 0.5]), 0.4)
    assert torch.allclose(ties(equal, 0.4), wanted, atol=1e-12)
    wanted = merge_utils.magnitude_prune(matrices(), torch.tensor(WEIGHTS, dtype=torch.float64), 0.4)
    assert torch.allclose(magnitude_prune(parts(), 0.4), wanted, atol=1e-12)


def test_dare_keeps_a_share_and_its_expectation() -> None:
    one = matrices(1)[0]
    once = dare([Dense(1.0, one, 5)], 0.25)
    stays = once != 0
    assert torch.allclose(once[stays], 4 * one[stays])
    drawn = torch.stack(
        [
            dare([Dense(part.weight, part.matrix, 7 * at + seed) for seed, part in enumerate(parts())], 0.4)
            for at in range(3000)
        ]
    )
    exact = sum(part.weight * part.matrix for part in parts())
    spread = drawn.std(0) / 3000**0.5
    assert float(((drawn.mean(0) - exact).abs() / spread).max()) < 5
    shares = torch.stack([dare([Dense(1.0, one, seed)], 0.25) != 0 for seed in range(400)]).double().mean()
    assert abs(float(shares) - 0.25) < 0.01


def test_what_dare_draws_hangs_on_seed_layer_and_update_alone() -> None:
    a, b = torch.ones(2, 3), torch.zeros(3, 2)
    seeds = {seed_of(0, "x", a, b), seed_of(1, "x", a, b), seed_of(0, "y", a, b), seed_of(0, "x", b, a)}
    assert len(seeds) == 4
    assert seed_of(0, "x", a, b) == seed_of(0, "x", a.clone(), b.clone()) == 6162006839649387402


# -- whole adapters -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("three")
    targets = ["linear", "transposed", "lookup", "conv1"]
    return [
        adapter(place / name, seed, rank=rank, targets=targets)
        for seed, (name, rank) in enumerate(zip("ABC", (2, 4, 3), strict=True))
    ]


def job(three: list[Path], out: Path, **settings: object) -> MixJob:
    weighted = [Weighted(folder, weight) for folder, weight in zip(three, WEIGHTS, strict=True)]
    return MixJob(weighted, out, **settings)  # type: ignore[arg-type]


def mixed_by_numpy(three: list[Path], how: str, density: float) -> dict[str, Matrix]:
    own = [dense(folder) for folder in three]
    found = {}
    for path in own[0]:
        listed = [one[path] for one in own]
        if how == "ties":
            found[path] = plain_ties(listed, WEIGHTS, density)
        elif how == "magnitude-prune":
            found[path] = sum(w * plain_trim(m, density) for w, m in zip(WEIGHTS, listed, strict=True))
        else:
            found[path] = sum(w * m for w, m in zip(WEIGHTS, listed, strict=True))
    return found


@pytest.mark.parametrize(("how", "density"), [("svd", None), ("ties", 0.3), ("magnitude-prune", 0.6)])
@pytest.mark.parametrize("rank", [1, 3])
def test_cut_to_the_rank_and_both_errors(
    three: list[Path], tmp_path: Path, how: str, density: float, rank: int
) -> None:
    report = mix(job(three, tmp_path / "out", how=how, density=density, rank=rank))
    own, exact = mixed_by_numpy(three, how, density), mixed_by_numpy(three, "exact", 1.0)
    found = dense(tmp_path / "out")
    for site in report.sites:
        whole, truth = own[site.path], exact[site.path]
        cut = plain_cut(whole, rank)
        assert np.allclose(found[site.path], cut, atol=1e-5), site.path
        assert site.rank == rank
        assert site.left_out == pytest.approx(np.linalg.norm(whole - cut) / np.linalg.norm(whole), abs=1e-6)
        assert site.error == pytest.approx(np.linalg.norm(cut - truth) / np.linalg.norm(truth), abs=1e-6)
    total = np.sqrt(sum(np.linalg.norm(found[p] - exact[p]) ** 2 for p in exact))
    assert report.error == pytest.approx(total / np.sqrt(sum(np.linalg.norm(m) ** 2 for m in exact.values())), rel=1e-4)


def test_the_rank_where_none_is_said_is_the_largest(three: list[Path], tmp_path: Path) -> None:
    report = mix(job(three, tmp_path / "out", how="svd"))
    assert {site.rank for site in report.sites} == {4}
    assert report.plan.notes[0].startswith("rank 4, the largest of the adapters'")
    assert "4 layers at rank 4" in report.verdict


@pytest.mark.parametrize("how", MIXTURES)
def test_same_seed_same_bytes_in_any_order(three: list[Path], tmp_path: Path, how: str) -> None:
    def made(name: str, backwards: bool = False, **settings: object) -> bytes:
        one = job(three, tmp_path / name, how=how, density=0.5, **settings)
        order = list(one.adapters)[::-1] if backwards else list(one.adapters)
        mix(MixJob(order, one.target, how, density=0.5, seed=one.seed))
        return (tmp_path / name / "adapter_model.safetensors").read_bytes()

    first = made("first")
    assert made("again") == first
    forward, backward = dense(tmp_path / "first"), (made("backward", True), dense(tmp_path / "backward"))[1]
    for path, matrix in forward.items():
        assert np.allclose(matrix, backward[path], atol=1e-5)
    if how == "dare":
        assert made("other", seed=1) != first


def test_density_1_is_the_exact_sum_for_what_drops_nothing_else(three: list[Path], tmp_path: Path) -> None:
    for how in ("dare", "magnitude-prune"):
        report = mix(job(three, tmp_path / how, how=how, density=1.0, rank=9))
        assert report.error < 1e-5


def test_a_grouped_convolution_is_cut_group_by_group() -> None:
    generator = torch.Generator().manual_seed(1)

    def update(rank: int) -> Update:
        a = torch.randn(rank, 3, 2, 2, generator=generator)
        return Update("g", a, torch.randn(8, rank // 2, 1, 1, generator=generator), float(rank))

    one, two = update(4), update(8)
    exact = 0.5 * one.delta() - 2 * two.delta()
    for how in ("svd", *MIXTURES):
        made = combine([(0.5, one), (-2.0, two)], Method(how, 4, 1.0), torch.float64)
        assert made.update.a.shape == (4, 3, 2, 2) and made.update.b.shape == (8, 2, 1, 1)
        if how == "ties":
            continue
        halves = [plain_cut(half.flatten(1).numpy(), 2) for half in exact.chunk(2)]
        assert np.allclose(made.update.delta().flatten(1).numpy(), np.concatenate(halves), atol=1e-9)
        wanted = np.linalg.norm(np.concatenate(halves) - exact.flatten(1).numpy())
        assert made.distance == pytest.approx(wanted) and made.cut == pytest.approx(wanted)


def test_an_update_of_zeros() -> None:
    zero = Update("z", torch.randn(2, 5), torch.zeros(4, 2), 2.0)
    for how in ("exact", "svd", *MIXTURES):
        made = combine([(1.0, zero), (2.0, zero)], Method(how, None if how == "exact" else 1, 0.5), torch.float32)
        assert made.exact == made.distance == made.cut == 0.0
        assert not made.update.delta().any()


# -- what is told of the size -------------------------------------------------------------------------


def test_adapters_that_cancel_or_add_up_are_told(three: list[Path], tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    twin.mkdir()
    for file in three[0].iterdir():
        (twin / file.name).write_bytes(file.read_bytes())
    apart = mix(MixJob([Weighted(three[0], 1.0), Weighted(twin, -0.9)], tmp_path / "apart"))
    assert apart.warnings == ["the adapters cancel each other: their sum has 10% of the size of its largest part"]
    assert apart.error < 1e-5
    together = mix(MixJob([Weighted(three[0], 1.0), Weighted(twin, 0.9)], tmp_path / "together"))
    assert "1.9 times as strong as the strongest adapter alone" in together.warnings[0]
    nothing = mix(MixJob([Weighted(three[0], 1.0), Weighted(twin, -1.0)], tmp_path / "nothing"))
    assert nothing.exact < 1e-9 and "0%" in nothing.warnings[0]
    wild = mix(job(three, tmp_path / "wild", how="dare", density=0.05, rank=4))
    assert "times the size of the exact sum" in wild.warnings[-1]
    assert not mix(job(three, tmp_path / "plain")).warnings
