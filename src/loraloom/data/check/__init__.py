"""What a data set holds, told without training on it.

    check_data → Checked (report, parts) → Report.to_dict, draw_sheet

One class per kind of data (`Modality`), one table of what can be found (`KINDS`). Nothing here imports torch.
"""

from loraloom.data.check.check import MODALITIES, Checked, check_data
from loraloom.data.check.findings import KINDS, Finding
from loraloom.data.check.part import Part, Tokens
from loraloom.data.check.report import Balance, PartReport, Report, Spread

__all__ = [
    "MODALITIES",
    "check_data",
    "Checked",
    "Report",
    "PartReport",
    "Spread",
    "Balance",
    "Finding",
    "KINDS",
    "Part",
    "Tokens",
]
