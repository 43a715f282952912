"""One .safetensors checkpoint, as the web UI and ComfyUI use them, as a diffusers pipeline.

SD 1.x, SD 2.x and SDXL need no network: their configuration is read off the file (`single_config`). The tokenizer's
vocabulary is not in such a file; it is looked for in a folder `tokenizer` beside it, in the Hugging Face cache, and on
the Hub, 1.5 MB. SD 3 and Flux are left to diffusers, whose configuration must be in the cache or come from the Hub.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub import constants as hub_constants
from safetensors import safe_open

from loraloom.errors import BaseModelError
from loraloom.tasks.diffusion.single_config import (
    ENCODERS,
    UNET,
    VAE,
    Shapes,
    pipeline_index,
    schedule_config,
    text_config,
    tokenizer_config,
    unet_config,
    vae_config,
)

VOCABULARY = ("vocab.json", "merges.txt")
WHOLE = ("tokenizer.json",)
"""The same in one file, as newer programs write it."""
CLIP = "openai/clip-vit-large-patch14"
"""The Hub's model whose tokenizer all of these bases share."""
_CACHED = (
    (CLIP, ""),
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer/"),
    ("runwayml/stable-diffusion-v1-5", "tokenizer/"),
    ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer/"),
    ("stabilityai/stable-diffusion-2-1", "tokenizer/"),
    ("stabilityai/sd-turbo", "tokenizer/"),
    ("stabilityai/sdxl-turbo", "tokenizer/"),
)
_BY_DIFFUSERS = {
    "StableDiffusion3Pipeline": ("joint_blocks.0.context_block.attn.qkv.weight",),
    "FluxPipeline": ("double_blocks.0.img_attn.norm.key_norm.scale",),
}
_NOT_BASES = {
    "an adapter": ["lora_unet_", "lora_te", "lora_A.weight", "lora.down.weight", "hada_w1_a", "lokr_w1"],
    "an embedding": ["emb_params", "clip_l", "clip_g"],
}
_V_THRESHOLD = -1.0


def load_single_file(file: Path, dtype: torch.dtype) -> Any:
    """The pipeline in a checkpoint file. Raises BaseModelError for any other kind of file, and where it is damaged."""
    shapes = read_shapes(file)
    name = next((name for name, keys in _BY_DIFFUSERS.items() if _holds(shapes, keys)), None)
    if name is not None:
        return _by_diffusers(file, name, dtype)
    kind = family_of(file, shapes)
    with tempfile.TemporaryDirectory(prefix="loraloom-") as folder:
        try:
            write_configs(Path(folder), shapes, kind)
        except (KeyError, IndexError, StopIteration) as error:
            raise BaseModelError(f"base model: {file} is not whole: {error} is not in it") from error
        for part in ("tokenizer", "tokenizer_2")[: len(ENCODERS[kind])]:
            _write_tokenizer(Path(folder) / part, kind, part, file)
        pipeline = _load(file, pipeline_index(kind)["_class_name"], dtype, config=folder)
    if kind == "sd2" and predicts_v(pipeline.unet):
        config = {**pipeline.scheduler.config, "prediction_type": "v_prediction"}
        pipeline.scheduler = type(pipeline.scheduler).from_config(config)
        pipeline.unet.register_to_config(sample_size=96)
    return pipeline


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, from the header alone."""
    with safe_open(file, framework="pt") as stream:
        return {key: tuple(stream.get_slice(key).get_shape()) for key in stream.keys()}  # noqa: SIM118


def family_of(file: Path, shapes: Shapes) -> str:
    """ "sd1", "sd2" or "sdxl". Raises BaseModelError that says what else the file is."""
    for what, marks in _NOT_BASES.items():
        if any(mark in key for key in shapes for mark in marks) and not _holds(shapes, (f"{UNET}out.2.weight",)):
            raise BaseModelError(f"base model: {file} is {what}; give the base model's own file or folder here")
    first = shapes.get(f"{UNET}input_blocks.0.0.weight")
    if first is None:
        raise BaseModelError(f"base model: {file} is no checkpoint of Stable Diffusion: it has no tensor {UNET}…")
    if first[1] != 4:
        raise BaseModelError(
            f"base model: {file} takes {first[1]} channels (an inpainting or editing model); one that makes pictures "
            "from text alone takes 4"
        )
    kinds = {kind: list(prefixes.values()) for kind, prefixes in ENCODERS.items()}
    found = [kind for kind, prefixes in kinds.items() if all(_has_prefix(shapes, prefix) for prefix in prefixes)]
    missing = [] if found else [f"the text encoder ({kinds['sd1'][0]}… for SD 1.x)"]
    missing += [] if _has_prefix(shapes, VAE) else [f"the autoencoder ({VAE}…)"]
    if missing:
        raise BaseModelError(f"base model: {file} lacks {' and '.join(missing)}; take the whole checkpoint")
    return found[0]


def write_configs(folder: Path, shapes: Shapes, kind: str) -> None:
    """The configuration of the pipeline as a diffusers folder without weights and vocabularies."""
    prediction = "v_prediction" if "v_pred" in shapes else "epsilon"
    configs = {
        "model_index.json": pipeline_index(kind),
        "unet/config.json": unet_config(shapes, kind),
        "vae/config.json": vae_config(shapes, kind),
        "scheduler/scheduler_config.json": schedule_config(kind, prediction, "ztsnr" in shapes),
        **{f"{part}/config.json": text_config(shapes, kind, part) for part in ENCODERS[kind]},
    }
    for name, config in configs.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(config), "utf-8")


def find_vocabulary(file: Path) -> list[Path]:
    """The files of CLIP's tokenizer. Raises BaseModelError that says where they were looked for."""
    beside = [file.parent / place / "tokenizer" for place in (".", file.stem)]
    for folder in beside:
        for names in (VOCABULARY, WHOLE):
            if all((folder / name).is_file() for name in names):
                return [folder / name for name in names]
    for repository, place in _CACHED:
        found = [huggingface_hub.try_to_load_from_cache(repository, place + name) for name in VOCABULARY]
        if all(isinstance(one, str) for one in found):
            return [Path(str(one)) for one in found]
    reason = "HF_HUB_OFFLINE is set"
    if not hub_constants.HF_HUB_OFFLINE:
        try:
            return [Path(huggingface_hub.hf_hub_download(CLIP, name)) for name in VOCABULARY]
        except OSError as error:
            reason = f"the Hub did not give it ({' '.join(str(error).split())[:160]})"
    wanted = " and ".join(VOCABULARY)
    raise BaseModelError(
        f"base model: {file.name} holds no vocabulary for its text encoder, and {reason}; put {wanted} of {CLIP} into "
        f"{beside[0]}, or fetch them once with `hf download {CLIP} {' '.join(VOCABULARY)}`"
    )


def predicts_v(unet: Any) -> bool:
    """Whether a U-Net of SD 2.x predicts v rather than noise; nothing in the file says so.

    The web UI's test: at pure noise the noise is the input, and v is near its negative.
    """
    weight = next(unet.parameters())
    latents = torch.full((1, 4, 8, 8), 0.5, device=weight.device, dtype=weight.dtype)
    text = torch.full((1, 2, unet.config.cross_attention_dim), 0.5, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        out = unet(latents, torch.tensor([999]), encoder_hidden_states=text, return_dict=False)[0]
    return float((out.float() - latents.float()).mean()) < _V_THRESHOLD


def _write_tokenizer(folder: Path, kind: str, part: str, file: Path) -> None:
    folder.mkdir()
    for source in find_vocabulary(file):
        shutil.copyfile(source, folder / source.name)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(kind, part)), "utf-8")


def _by_diffusers(file: Path, name: str, dtype: torch.dtype) -> Any:
    try:
        return _load(file, name, dtype)
    except BaseModelError as error:
        raise BaseModelError(
            f"{error}; for {name.removesuffix('Pipeline')} diffusers takes the configuration, and what the file lacks, "
            "from the Hub: fetch the whole diffusers folder once and give that instead"
        ) from error


def _load(file: Path, name: str, dtype: torch.dtype, **settings: Any) -> Any:
    import diffusers

    try:
        local = hub_constants.HF_HUB_OFFLINE or bool(settings)
        return getattr(diffusers, name).from_single_file(str(file), dtype=dtype, local_files_only=local, **settings)
    except Exception as error:  # anything from KeyError to RuntimeError, by what is amiss in the file
        reason = " ".join(str(error).split())[:300]
        raise BaseModelError(f"base model: {file} cannot be loaded ({reason})") from error


def _holds(shapes: Shapes, keys: tuple[str, ...]) -> bool:
    return all(key in shapes or UNET + key in shapes for key in keys)


def _has_prefix(shapes: Shapes, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in shapes)
