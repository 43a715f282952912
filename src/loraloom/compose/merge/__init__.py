"""Adapters folded into a checkpoint.

`fitting` adapters against the checkpoint → `changes` what becomes of each tensor → `rows` one of them, block by block →
`shards` the files, `papers` what lies beside them → `probe` and `outputs` the proof; `merging` is all of it.
"""

from loraloom.compose.merge.merging import MergeJob, MergeReport, merge

__all__ = ["MergeJob", "MergeReport", "merge"]
