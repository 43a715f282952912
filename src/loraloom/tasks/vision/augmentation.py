"""Training pictures varied by chance: a gentle crop, a turn, colours, an erased patch.

All pictures of a batch are varied at once, and every draw comes from torch's global generator in one call,
so that the same seed gives the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Augment = Literal["none", "light", "strong"]


@dataclass(frozen=True)
class Strength:
    """How far pictures are varied."""

    area: float = 1.0
    """Least share of the picture that a crop keeps; the share is uniform from this to 1."""
    aspect: float = 1.0
    """Most that a crop's aspect is changed by, as a factor; uniform on a log scale, both ways."""
    turn: float = 0.0
    """Most degrees that a picture is turned by, both ways."""
    colour: float = 0.0
    """Most that brightness, contrast and saturation are each changed by, as a share, both ways."""
    erase: float = 0.0
    """Share of the pictures in which a rectangle of 2 % to 20 % of the area is erased."""

    @property
    def margin(self) -> float:
        """How much larger than the model's input pictures are to be kept: crops then lose no sharpness."""
        return 1.0 if self.area == 1.0 else 1.15


STRENGTHS: dict[Augment, Strength] = {
    "none": Strength(),
    "light": Strength(area=0.7, aspect=1.1, colour=0.2),
    "strong": Strength(area=0.4, aspect=4 / 3, turn=15.0, colour=0.4, erase=0.25),
}
"""By the name of the option. Random erasing is that of Zhong et al. (2020), with a plain colour."""

_DRAWS = 13
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma


def augment(pictures: Tensor, size: tuple[int, int], strength: Strength, *, flip: bool, fill: Tensor) -> Tensor:
    """Vary uint8 pictures (B, H', W', 3) into float values 0 to 255 (B, 3, H, W), `size` being (H, W).

    With `flip`, half of them are mirrored left to right. `fill` (3,) is the colour of erased patches. Draws
    from torch's global generator.
    """
    drawn = torch.rand(len(pictures), _DRAWS)
    # contiguous: convolutions of torch 2.13 crash a CPU when going back from the strides of a plain permute
    values = pictures.permute(0, 3, 1, 2).float().contiguous()
    if flip and strength == STRENGTHS["none"]:  # exact, where resampling would blur a little
        values = torch.where((drawn[:, 0] < 0.5).view(-1, 1, 1, 1), values.flip(-1), values)
    elif strength != STRENGTHS["none"]:
        height, width = values.shape[-2:]
        theta = _placements(drawn[:, :6], strength, width / height, flip=flip)
        grid = functional.affine_grid(theta, [len(values), 3, *size], align_corners=False)
        values = functional.grid_sample(values, grid, padding_mode="reflection", align_corners=False)
    if strength.colour:
        values = _recoloured(values, 1 + strength.colour * (2 * drawn[:, 6:9] - 1))
    if strength.erase:
        values = _erased(values, drawn[:, 9:13], strength.erase, fill)
    return values


def _placements(drawn: Tensor, strength: Strength, aspect: float, *, flip: bool) -> Tensor:
    """Where each output pixel comes from, (B, 2, 3), in coordinates from -1 to 1; `drawn` is (B, 6)."""
    area = strength.area + (1 - strength.area) * drawn[:, 1]
    squeeze = torch.exp(math.log(strength.aspect) * (2 * drawn[:, 2] - 1))
    wide, high = ((area * factor).sqrt().clamp(max=1) for factor in (squeeze, 1 / squeeze))
    x, y = (1 - wide) * (2 * drawn[:, 3] - 1), (1 - high) * (2 * drawn[:, 4] - 1)
    angle = math.radians(strength.turn) * (2 * drawn[:, 5] - 1)
    sine, cosine = angle.sin(), angle.cos()
    mirror = torch.where(drawn[:, 0] < 0.5, -1.0, 1.0) if flip else torch.ones(len(drawn))
    # the sides differ in pixels, so a turn within the square of coordinates must undo the aspect
    rows = [wide * cosine * mirror, -high * sine / aspect, x, wide * sine * aspect * mirror, high * cosine, y]
    return torch.stack(rows, 1).view(-1, 2, 3)


def _recoloured(values: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and saturation by `factors` (B, 3): one affine map of the colours of each picture."""
    bright, contrast, saturation = (factors[:, i].view(-1, 1, 1) for i in range(3))
    luma = torch.tensor(_GREY)
    grey = luma.expand(3, 3)
    matrix = bright * contrast * (saturation * torch.eye(3) + (1 - saturation) * grey)
    level = bright * (values.mean((2, 3)) @ luma).view(-1, 1, 1)
    shift = ((1 - contrast) * level).expand(-1, 3, 1)
    return torch.baddbmm(shift, matrix, values.flatten(2)).clamp_(0, 255).view_as(values)


def _erased(values: Tensor, drawn: Tensor, share: float, fill: Tensor) -> Tensor:
    """A rectangle of each of a `share` of the pictures in the colour `fill`; `drawn` is (B, 4)."""
    height, width = values.shape[-2:]
    side = (0.02 + 0.18 * (drawn[:, 0] / share).clamp(max=1)).sqrt()  # uniform, as drawn[:, 0] is below `share`
    stretch = torch.exp(math.log(2.0) * (drawn[:, 1] - 0.5))
    across = _span(width, side * stretch, drawn[:, 2])
    down = _span(height, side / stretch, drawn[:, 3])
    hit = (drawn[:, 0] < share).view(-1, 1, 1)
    mask = (down.unsqueeze(2) & across.unsqueeze(1) & hit).unsqueeze(1)
    return torch.where(mask, fill.view(1, 3, 1, 1).to(values.dtype), values)


def _span(length: int, share: Tensor, place: Tensor) -> Tensor:
    """Which of `length` positions lie in a stretch of that share at that place: booleans (B, length)."""
    start = (place * (1 - share)).unsqueeze(1) * length
    positions = torch.arange(length) + 0.5
    return (positions >= start) & (positions < start + share.unsqueeze(1) * length)
