"""From parsed prompts to what the denoiser is told: chunks, weights, schedules, textual-inversion embeddings."""

from loraloom.imaging.conditioning.conditioner import Conditioner
from loraloom.imaging.conditioning.conditioning import Conditioning, Schedule, ScheduledPart, batches, pad_together
from loraloom.imaging.conditioning.embedding import Embedding, read_embedding
from loraloom.imaging.conditioning.folder import EmbeddingFolder, Entry

__all__ = [
    "Conditioner",
    "Conditioning",
    "Schedule",
    "ScheduledPart",
    "batches",
    "pad_together",
    "Embedding",
    "EmbeddingFolder",
    "Entry",
    "read_embedding",
]
