"""Pictures as they come (phones, scanners, the web), read as plain upright RGB, or refused by file name.

probe_picture → is it whole, and how large;  open_picture → RGB, 8 bit
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.Image import Transpose

from loraloom.data.files import Media
from loraloom.errors import DataError

# of what Pillow can open (MPO comes with JPEG), only what decodes by itself: EPS, for one, would start another program
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_ANIMATED = ("GIF", "PNG", "WEBP", "TIFF")  # not MPO, whose further pictures are previews or a second view
_SIGNS = {
    b"\xff\xd8": "JPEG",
    b"\x89PNG": "PNG",
    b"RIFF": "WebP",
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_DEEP = ("I", "F")  # and "I;16" in its byte orders


def open_picture(path: str | Path) -> Image.Image:
    """The picture in a file as RGB with 8 bits a channel, turned upright as its EXIF data ask.

    CMYK and other colour spaces are converted; what is transparent is laid on white; of an animation the
    first frame is taken. 16-bit grey is scaled from 0–65535; 32-bit and floating-point grey from 0–1, 0–255 or
    0–65535 when that holds all its values (0–1 for floating point only), else from its own least to its own
    largest value. Raises DataError that names the file and says what is wrong with it.
    """
    return _upright_rgb(_decode(Path(path))[0], Path(path))


def probe_picture(path: str | Path) -> dict[str, int]:
    """Decode a picture whole and tell its upright "width" and "height" in pixels.

    "frames" is there as well when the file is animated or has several pages. Raises DataError as
    `open_picture` does.
    """
    image, frames = _decode(Path(path))
    width, height = _upright_rgb(image, Path(path)).size
    return {"width": width, "height": height} | ({"frames": frames} if frames > 1 else {})


def frames_note(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence on the files, by name with what `probe_picture` told, of which only the first frame is used."""
    moving = [name for name, known in facts.items() if known.get("frames", 1) > 1]
    if not moving:
        return []
    shown = ", ".join(moving[:3]) + (", …" if len(moving) > 3 else "")
    return [f"{len(moving)} pictures have several frames ({shown}): the first one of each is used"]


def _decode(path: Path) -> tuple[Image.Image, int]:
    """The first frame, decoded whole, and the number of frames."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None
    if path.is_dir():
        raise DataError(f"{path} is a folder; a picture is expected")
    if not size:
        raise DataError(f"{path} is empty, 0 bytes; a picture is expected")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on size or odd metadata: what matters of it raises
            with Image.open(path, formats=_FORMATS) as image:
                return _load(image, path)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(_not_a_picture(path)) from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large to be a picture for training ({_reason(error)})") from None
    except Exception as error:  # decoders raise anything from OSError to SyntaxError and struct.error
        raise DataError(f"{path} is damaged or cut off and cannot be decoded whole ({_reason(error)})") from None


def _load(image: Image.Image, path: Path) -> tuple[Image.Image, int]:
    if not image.width or not image.height:
        raise DataError(f"{path} has no pixels, it is {image.width} x {image.height}")
    frames = _frame_count(image)
    image.load()
    return image, frames


def _frame_count(image: Image.Image) -> int:
    """How many frames or pages there are; damage beyond the first is no concern of ours."""
    if image.format not in _ANIMATED:
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:
        image.seek(0)
        return 1


def _not_a_picture(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(16)
    kind = next((name for sign, name in _SIGNS.items() if start.startswith(sign)), None)
    if kind is not None:
        return f"{path} begins as a {kind} picture, but is cut off within its header, damaged there, or has no pixels"
    return f"{path} is no JPEG, PNG, WebP, BMP, GIF or TIFF picture; it begins with {start!r}"


def _upright_rgb(image: Image.Image, path: Path) -> Image.Image:
    try:
        turn = _UPRIGHT.get(_orientation(image))
        flat = _rgb(image)
    except Exception as error:
        raise DataError(f"{path}: its pixels ({image.mode}) cannot be made RGB ({_reason(error)})") from None
    return flat if turn is None else flat.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, when there is none or the EXIF data are damaged."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return found if isinstance(found, int) else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _DEEP or image.mode.startswith("I;16"):
        return _scaled(np.asarray(image))
    if image.has_transparency_data:
        cover = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, cover).convert("RGB")
    if image.mode == "LAB":
        return _from_lab(image)
    return image.convert("RGB")


def _from_lab(image: Image.Image) -> Image.Image:
    """CIE L*a*b*, which only colour management converts."""
    transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # None is for a conversion in place
    return converted


def _scaled(grey: NDArray[Any]) -> Image.Image:
    """Grey values (H, W) of more than 8 bits as RGB."""
    values = np.nan_to_num(grey.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = _value_range(values, grey.dtype)
    scaled = np.clip((values - low) * (255 / (high - low)), 0, 255)
    return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")


def _value_range(values: NDArray[np.float64], kind: np.dtype[Any]) -> tuple[float, float]:
    """Which values stand for black and white."""
    if kind.itemsize == 2:
        return 0.0, 65535.0
    least, most = float(values.min()), float(values.max())
    nominal = (1.0, 255.0, 65535.0) if kind.kind == "f" else (255.0, 65535.0)
    fits = [white for white in nominal if least >= 0 and most <= white]
    return (0.0, fits[0]) if fits else (least, max(most, least + 1))


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__


PICTURES = Media(
    kind="picture",
    suffixes=frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}),
    candidates=("file", "file_name", "filename", "image", "picture", "image_path", "path", "img", "photo"),
    probe=probe_picture,
)
"""Files that hold one picture each."""
