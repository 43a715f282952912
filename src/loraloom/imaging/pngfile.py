"""Picture files that carry a text: the PNG chunk `parameters`, or what other programs put into JPEG and WebP."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from loraloom.errors import DataError
from loraloom.training.files import replace_bytes, writing

CHUNK = "parameters"
_USER_COMMENT, _EXIF_FOLDER = 0x9286, 0x8769
_CODES = {b"UNICODE\0": "utf-16-be", b"ASCII\0\0\0": "utf-8"}
_MAX_PIXELS = 1 << 27
_FOREIGN = {"workflow": "ComfyUI", "prompt": "ComfyUI", "invokeai_metadata": "InvokeAI", "sd-metadata": "InvokeAI"}
"""Chunks of programs whose recipes are not read here."""


def write_png(path: Path, image: Image.Image, text: str) -> None:
    """Write a PNG with its recipe, whole or not at all. The same picture gives the same bytes. Raises OutputError."""
    data = png_bytes(image, text)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(path, data)


def png_bytes(image: Image.Image, text: str) -> bytes:
    """A PNG file as bytes, with the text chunk."""
    info = PngInfo()
    info.add_text(CHUNK, text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def read_text(path: Path) -> str:
    """The recipe text of a picture file. Raises DataError where it is no picture, damaged, or carries none."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise DataError(f"{path} has {image.width} × {image.height} pixels; that is more than is read here")
            image.load()
            text, chunks = image.info.get(CHUNK), set(map(str, image.info))
            found = text if isinstance(text, str) else _comment(image)
    except FileNotFoundError:
        raise DataError(f"there is no picture {str(path)!r}") from None
    except UnidentifiedImageError:
        raise DataError(f"{path} is no picture that can be read here; a PNG is expected") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is a damaged picture ({error}); take another copy of it") from error
    if not found:
        raise DataError(_without_recipe(path, chunks))
    return found


def _without_recipe(path: Path, chunks: set[str]) -> str:
    program = next((program for chunk, program in _FOREIGN.items() if chunk in chunks), None)
    of = f"; it holds a workflow of {program}, which is not read here" if program else ""
    return f"{path} carries no recipe: it has no text chunk named {CHUNK!r}{of}"


def _comment(image: Image.Image) -> str | None:
    """The user comment of a JPEG or WebP, where the web UI keeps the same text."""
    raw = image.getexif().get_ifd(_EXIF_FOLDER).get(_USER_COMMENT)
    if isinstance(raw, bytes) and raw[:8] in _CODES:
        return raw[8:].decode(_CODES[raw[:8]], errors="replace").strip("\0") or None
    return raw if isinstance(raw, str) and raw else None


def read_image(path: str | Path) -> Image.Image:
    """A picture to start from, in RGB, the right way up; what is transparent becomes white. Raises DataError."""
    try:
        with Image.open(path) as file:
            if file.width * file.height > _MAX_PIXELS:
                raise DataError(f"image: {path} has {file.width} × {file.height} pixels; take a smaller copy")
            image = ImageOps.exif_transpose(file)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"image: there is no file {str(path)!r}") from None
    except UnidentifiedImageError:
        raise DataError(f"image: {path} is no picture that can be read here") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"image: {path} is a damaged picture ({error})") from error
