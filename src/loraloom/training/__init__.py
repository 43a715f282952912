"""Training: the loop, checkpoints and resume, the baseline of full fine-tuning, and the record of a run.

config → prepare (read, load, attach, check) → loop (steps, evaluations, checkpoints) → results (evidence,
files); restore and inspection go from a result back to a model.
"""
