"""What a user may ask of predictions, whatever the task; importing this imports no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class AnswerOptions(BaseModel):
    """What a user may ask of predictions. None leaves it to the task; a task names those that it knows."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    top_k: int | None = Field(default=None, ge=1, description="How many of the most probable labels to tell.")
    threshold: float | None = Field(default=None, ge=0, le=1, description="Least score of a box that is told.")
    max_new_tokens: int | None = Field(default=None, ge=1, description="Most tokens to write.")
    temperature: float | None = Field(
        default=None, ge=0, description="Spread of the choice of each token: 0 takes the most probable one."
    )
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="Choose among the most probable tokens that hold this share in all."
    )
    beams: int | None = Field(default=None, ge=1, description="Candidates that beam search follows.")
    speaker: str | None = Field(default=None, description="Whose voice: a name that training knew.")
    seed: int | None = Field(default=None, ge=0, lt=2**32, description="Seed of what is drawn by chance.")


NOTHING_ASKED = AnswerOptions()
