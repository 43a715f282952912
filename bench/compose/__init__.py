"""Composition measured: `python -m bench.compose.NAME`."""
