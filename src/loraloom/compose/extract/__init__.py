"""An adapter from two checkpoints.

`pairing` what of one is what of the other → `differences` and their factors → `keeping` what no factors can carry →
`writing` the files, `report` what it came to; `extracting` is all of it.
"""

from loraloom.compose.extract.extracting import ExtractJob, extract
from loraloom.compose.extract.report import ExtractReport

__all__ = ["ExtractJob", "ExtractReport", "extract"]
