"""What the tasks reach on real data: base · LoRA · full in one table each, written into docs/results.md."""
