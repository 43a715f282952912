"""Adapter files of every program. PEFT's folder is the native format (`peft`).

`read_any` and `load_any` recognise a file by its content; `save_kohya` and `save_diffusers` write for other programs.
"""

from loraloom.formats.anyfile import load_any, read_any
from loraloom.formats.export import save_diffusers, save_kohya
from loraloom.formats.facts import AdapterFacts, describe_adapter
from loraloom.formats.peft import AdapterFile, load_adapter, read_adapter, save_adapter

__all__ = [
    "AdapterFacts",
    "AdapterFile",
    "describe_adapter",
    "load_adapter",
    "load_any",
    "read_adapter",
    "read_any",
    "save_adapter",
    "save_diffusers",
    "save_kohya",
]
