"""Put the trained style adapters beside the small base: one fp16 file in diffusers' format for each.

python -m examples.text_to_image.ship_styles
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .scenes.styles import STYLES

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "src" / "loraloom" / "imaging" / "scenes" / "styles"
LIMIT = 300_000
"""Bytes that a style may have."""


def ship(run: Path, style: str, folder: Path) -> int:
    """Write the run's diffusers file as `folder`/`style`.safetensors in fp16; returns its bytes.

    Raises ValueError for a file larger than LIMIT.
    """
    with safe_open(run / "pytorch_lora_weights.safetensors", framework="pt") as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name).to(torch.float16).contiguous() for name in file.keys()}  # noqa: SIM118
    about = {"name": style, "trigger": "", "base": "scenes", "license": "Apache-2.0"}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{style}.safetensors"
    save_file(tensors, path.with_suffix(".part"), metadata={**metadata, **about})
    if (size := path.with_suffix(".part").stat().st_size) > LIMIT:
        path.with_suffix(".part").unlink()
        raise ValueError(f"{style}: {size} bytes, more than {LIMIT}; train it at a lower rank")
    path.with_suffix(".part").chmod(0o644)  # the library writes it for the owner alone
    path.with_suffix(".part").rename(path)
    return size


def main() -> None:
    """Ship every style."""
    parser = argparse.ArgumentParser(description="Put the trained style adapters beside the small base.")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the runs text-to-image-STYLE")
    parser.add_argument("--to", type=Path, default=SHIPPED, help="default: the package's own folder")
    options = parser.parse_args()
    for style in STYLES:
        print(f"{style}: {ship(options.runs / f'text-to-image-{style}', style, options.to)} bytes")


if __name__ == "__main__":
    main()
