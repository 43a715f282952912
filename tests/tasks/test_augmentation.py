"""Pictures varied by chance: bounds, repeatability, and that each option does what it says."""

from __future__ import annotations

import pytest
import torch
from tests.scaling import seconds_of
from torch import Tensor

from loraloom.tasks.vision.augmentation import STRENGTHS, Augment, Strength, augment

FILL = torch.tensor([10, 20, 30])


def ramps(count: int, height: int = 32, width: int = 32) -> Tensor:
    """Pictures (B, H, W, 3): red grows to the right, green downwards, blue is flat."""
    red = torch.linspace(0, 255, width).expand(height, width)
    green = torch.linspace(0, 255, height).unsqueeze(1).expand(height, width)
    picture = torch.stack([red, green, torch.full((height, width), 128.0)], -1)
    return picture.round().to(torch.uint8).expand(count, -1, -1, -1).contiguous()


def vary(pictures: Tensor, strength: Strength, *, seed: int = 0, flip: bool = False) -> Tensor:
    torch.manual_seed(seed)
    return augment(pictures, (32, 32), strength, flip=flip, fill=FILL)


def test_none_leaves_every_pixel() -> None:
    pictures = ramps(4)
    values = vary(pictures, STRENGTHS["none"])
    assert torch.equal(values, pictures.permute(0, 3, 1, 2).float())
    assert values.is_contiguous()


@pytest.mark.parametrize("name", ["light", "strong"])
def test_values_shape_and_repeatability(name: Augment) -> None:
    strength = STRENGTHS[name]
    pictures = ramps(8, 37, 37)
    first = vary(pictures, strength, flip=True)
    assert first.shape == (8, 3, 32, 32) and first.dtype == torch.float32
    assert first.min() >= 0 and first.max() <= 255
    assert torch.equal(first, vary(pictures, strength, flip=True))
    assert not torch.equal(first, vary(pictures, strength, flip=True, seed=1))
    assert all(not torch.equal(first[0], other) for other in first[1:]), "each picture has draws of its own"


def test_only_the_global_generator_is_drawn_from() -> None:
    torch.manual_seed(5)
    augment(ramps(2), (32, 32), STRENGTHS["strong"], flip=True, fill=FILL)
    after = torch.random.get_rng_state()
    torch.manual_seed(5)
    torch.rand(2, 13)
    assert torch.equal(after, torch.random.get_rng_state())


@pytest.mark.parametrize("strength", [STRENGTHS["none"], Strength(area=0.999)], ids=["exact", "resampled"])
def test_flip_mirrors_half_of_them(strength: Strength) -> None:
    values = vary(ramps(200), strength, flip=True)
    falls = values[:, 0, 16, 2] > values[:, 0, 16, -3]
    assert 70 < falls.sum() < 130
    assert (values[:, 1, 2, 16] < values[:, 1, -3, 16]).all(), "never upside down"
    assert not (vary(ramps(50), strength)[:, 0, 16, 2] > 128).any(), "off by default"


def test_crops_keep_the_share_of_the_area() -> None:
    values = vary(ramps(500), Strength(area=0.5, aspect=4 / 3))
    wide = (values[:, 0, 16, -1] - values[:, 0, 16, 0]) / 255
    high = (values[:, 1, -1, 16] - values[:, 1, 0, 16]) / 255
    share = wide * high * (32 / 31) ** 2  # from middle to middle of the outer pixels
    assert 0.4 < share.min() < 0.55 and 0.9 < share.max() < 1.1
    ratio = wide / high
    assert ratio.min() > 0.7 and ratio.max() < 1.43


def test_crops_reach_every_corner() -> None:
    values = vary(ramps(500), Strength(area=0.5))
    left, top = values[:, 0, 16, 0], values[:, 1, 0, 16]
    assert left.min() < 8 and left.max() > 55 and top.min() < 8 and top.max() > 55


def test_turns_keep_right_angles_in_pictures_that_are_not_square() -> None:
    torch.manual_seed(0)
    values = augment(ramps(50, 32, 64), (32, 64), Strength(area=0.999, turn=15), flip=False, fill=FILL)
    # position in pixels where each output pixel came from, by the ramps
    x, y = values[:, 0] / 255 * 63, values[:, 1] / 255 * 31
    along = torch.stack([x[:, 16, 40] - x[:, 16, 24], y[:, 16, 40] - y[:, 16, 24]])
    across = torch.stack([x[:, 24, 32] - x[:, 8, 32], y[:, 24, 32] - y[:, 8, 32]])
    assert ((along * across).sum(0).abs() < 12).all()
    angle = torch.atan2(along[1], along[0]).rad2deg()
    assert 10 < angle.abs().max() < 16 and angle.min() < -5 and angle.max() > 5


def test_colours_vary_within_bounds_and_grey_stays_grey() -> None:
    grey = torch.full((300, 32, 32, 3), 100, dtype=torch.uint8)
    values = vary(grey, Strength(colour=0.2))
    level = values.mean((2, 3))
    torch.testing.assert_close(level, level[:, :1].expand(-1, 3), atol=1e-3, rtol=0)
    assert 79 < level.min() < 83 and 117 < level.max() < 121


def test_erased_patches_have_the_fill_and_the_share() -> None:
    white = torch.full((400, 32, 32, 3), 255, dtype=torch.uint8)
    values = vary(white, Strength(erase=0.25))
    hit = (values == FILL.view(1, 3, 1, 1)).all(1).flatten(1).float().mean(1)
    assert 70 < (hit > 0).sum() < 130
    assert hit[hit > 0].min() > 0.008 and hit.max() < 0.24
    assert ((values == 255).all(1) | (values == FILL.view(1, 3, 1, 1)).all(1)).all()


def test_a_batch_costs_less_than_its_pictures_one_by_one() -> None:
    pictures = ramps(32, 74, 74)

    def varied(batch: torch.Tensor) -> None:
        augment(batch, (64, 64), STRENGTHS["strong"], flip=True, fill=FILL)

    varied(pictures)
    together = seconds_of(lambda: varied(pictures))
    assert together < 1.5 * seconds_of(lambda: [varied(picture[None]) for picture in pictures])
