"""Full checkpoints on the disk: `opened` without reading a weight, `layout` which layer is where, `dense` as numbers,
`streaming` and `target` written again."""

from loraloom.compose.checkpoint.opened import Checkpoint, Part

__all__ = ["Checkpoint", "Part"]
