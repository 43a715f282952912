"""Adapter files. PEFT's folder is the native format (`peft`)."""

from loraloom.formats.peft import AdapterFile, load_adapter, read_adapter, save_adapter

__all__ = ["AdapterFile", "load_adapter", "read_adapter", "save_adapter"]
