"""What is done with finished adapters: compare, mix, resize, merge into a base, extract from two checkpoints.

Exact sums of updates keep their factors end to end, and everything else is measured against them; ΔW is formed only
where a method is defined on its entries, and then for one layer at a time.
"""
