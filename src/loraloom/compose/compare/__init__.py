"""How adapters lie to each other, before they are mixed.

`overlap` two updates of one layer → `comparison` all layers of all adapters → `advice` in words, `maps` as a picture.
"""

from loraloom.compose.compare.comparison import Compared, Comparison, Pair, compare

__all__ = ["Compared", "Comparison", "Pair", "compare"]
