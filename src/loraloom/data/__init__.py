"""From files to checked examples that know their lines, to labels, splits and batches.

    read_table → Table of Example → Labels, split_examples, find_leaks → length_batches

Importing this package imports neither torch nor datasets nor pyarrow.
"""

from loraloom.data.batches import (
    length_batches,
    micro_batches,
    padding_share,
    shard_batch,
    sorted_batches,
)
from loraloom.data.columns import Role
from loraloom.data.config import DataConfig
from loraloom.data.labels import Labels, label_name
from loraloom.data.split import Leak, drop_duplicates, find_leaks, sample_examples, split_examples
from loraloom.data.table import Example, Table, read_table

__all__ = [
    "DataConfig",
    "Example",
    "Role",
    "Table",
    "read_table",
    "Labels",
    "label_name",
    "Leak",
    "split_examples",
    "find_leaks",
    "drop_duplicates",
    "sample_examples",
    "length_batches",
    "sorted_batches",
    "micro_batches",
    "shard_batch",
    "padding_share",
]
