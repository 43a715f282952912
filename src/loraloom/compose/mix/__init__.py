"""Several adapters made into one, each by its weight.

`plan` who takes part and what is refused → `combine` one layer, `sparsify` the methods on entries, `kept` heads and
biases → `file` the result → `report` what it came to; `mixing` is all of it.
"""

from loraloom.compose.mix.mixing import make_mix, mix, plan_mix
from loraloom.compose.mix.plan import MixJob, MixPlan
from loraloom.compose.mix.report import MixReport

__all__ = ["MixJob", "MixPlan", "MixReport", "make_mix", "mix", "plan_mix"]
