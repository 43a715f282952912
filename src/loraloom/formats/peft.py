"""Adapter folders as PEFT has them: the native format here, so that every program which reads PEFT reads ours.

    save_adapter(adapters, "default", "my-adapter")      # adapter_config.json and adapter_model.safetensors
    adapters = load_adapter(model, "my-adapter")         # written here or by PEFT

docs/format.md tells the files key by key.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from torch import nn

from loraloom.adapters import AdapterSet, adapters_of, attach
from loraloom.errors import ConfigError
from loraloom.formats.peft_config import PeftConfig
from loraloom.formats.peft_file import CONFIG_NAME, WEIGHTS_NAME, AdapterFile, read_folder
from loraloom.formats.peft_fit import fit
from loraloom.formats.peft_settings import header_of
from loraloom.formats.peft_write import PeftWriter
from loraloom.formats.tensorfile import tensor_pieces, write_together

__all__ = ["CONFIG_NAME", "WEIGHTS_NAME", "AdapterFile", "load_adapter", "read_adapter", "save_adapter"]


def save_adapter(
    adapters: AdapterSet,
    name: str,
    folder: Path | str,
    *,
    base_name: str | None = None,
    task_type: str | None = None,
) -> None:
    """Write one adapter of a model into a folder, which is made if need be; its other files are left alone.

    `base_name` tells readers where the base model is (a path or a name on the Hub); `task_type` is PEFT's word
    for the task ("SEQ_CLS", "CAUSAL_LM" …). The same adapter gives the same bytes. Warns of what PEFT has no word
    for; that is still read back here. Raises ConfigError for an unknown adapter or task, OutputError where the
    folder cannot be written, which then is as it was.
    """
    writer = PeftWriter(adapters, name)
    config, tensors = writer.config(base_name, task_type), writer.tensors()
    for sentence in writer.warnings:
        warnings.warn(sentence, stacklevel=2)
    header = header_of(adapters.spec(name), PeftConfig.of(config, CONFIG_NAME))
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_together(
        {
            Path(folder) / WEIGHTS_NAME: tensor_pieces(tensors, header),
            Path(folder) / CONFIG_NAME: [text.encode("utf-8")],
        }
    )


def read_adapter(folder: Path | str) -> AdapterFile:
    """Read an adapter folder and check all that can be checked without a model.

    A folder whose only subfolder is an adapter stands for that one, as PEFT lays out an adapter with a name.
    Raises FormatError for what is missing, damaged, not finite, a pickle, or another method than LoRA.
    """
    return read_folder(folder)


def load_adapter(model: nn.Module, folder: Path | str, *, name: str = "default") -> AdapterSet:
    """Attach the adapter of a folder to a model, and return the handle of all the model's adapters.

    Exactly what is in the file is attached. Raises FormatError that names everything which does not fit (missing,
    left over, misshapen, for another base), ConfigError for a name that is taken; the model is then as it was.
    """
    return attach_file(model, read_folder(folder), name, copy=False)


def attach_file(model: nn.Module, file: AdapterFile, name: str, *, copy: bool = True) -> AdapterSet:
    """Attach an adapter that has been read; see `load_adapter`. Without `copy` the file's tensors become its own."""
    existing = adapters_of(model)
    if existing is not None and name in existing.names:
        raise ConfigError(f"an adapter named {name!r} is already attached; delete it first, or load under another name")
    spec, plan, tensors, notes = fit(model, file)
    for sentence in notes:
        warnings.warn(sentence, stacklevel=3)
    own = {key: tensor.clone() for key, tensor in tensors.items()} if copy else tensors
    return attach(model, spec, name=name, plan=plan, tensors=own)
