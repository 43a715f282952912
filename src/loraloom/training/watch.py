"""Watches the loss, and stops a run that has gone wrong with a sentence that says what to change."""

from __future__ import annotations

import math
from dataclasses import dataclass

from loraloom.errors import TrainingError

_MEMORY = 0.9
_TIMES_LOWEST, _TIMES_FIRST, _PATIENCE = 10.0, 3.0, 20
_BEYOND_DOUBT = 1000.0


@dataclass
class LossWatch:
    """Tells a diverged run from a noisy one; its numbers travel with the checkpoint.

    A run has exploded when its smoothed loss stays, for 20 steps in a row, above both ten times the lowest
    that it had and three times the loss of the first step (that of the base model), or ever gets to a
    thousand times that.
    """

    first: float | None = None
    smooth: float = 0.0
    lowest: float = math.inf
    high: int = 0
    """Steps in a row above both limits."""

    def see(self, step: int, loss: float, grad_norm: float, learning_rate: float) -> None:
        """Take in the loss and gradient norm of `step`. Raises TrainingError."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {grad_norm}"
            raise TrainingError(
                f"step {step}: {what}; lower learning_rate (it is {learning_rate:.3g} here), raise warmup, "
                "or take precision: fp32"
            )
        if self.first is None:
            self.first = self.smooth = loss
        self.smooth = _MEMORY * self.smooth + (1 - _MEMORY) * loss
        self.lowest = min(self.lowest, self.smooth)
        above = self.smooth > max(_TIMES_LOWEST * self.lowest, _TIMES_FIRST * self.first)
        self.high = self.high + 1 if above else 0
        if self.high >= _PATIENCE or (above and self.smooth > _BEYOND_DOUBT * self.first):
            raise TrainingError(
                f"step {step}: the loss has risen to {self.smooth:.3g} from {self.first:.3g} at the first step "
                f"and {self.lowest:.3g} at its lowest; lower learning_rate (it is {learning_rate:.3g} here), "
                "raise warmup, or set max_grad_norm lower"
            )
