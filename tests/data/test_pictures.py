"""Every kind of odd or broken picture: read as upright RGB, or refused by file name."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loraloom.data.config import DataConfig
from loraloom.data.files import read_files
from loraloom.data.pictures import PICTURES, frames_note, open_picture, probe_picture
from loraloom.errors import DataError

WIDTH, HEIGHT = 40, 30
# each corner another colour, so that any turn or mirroring shows
CORNERS = ((200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0))


def corners_picture() -> Image.Image:
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    half_y, half_x = HEIGHT // 2, WIDTH // 2
    for number, colour in enumerate(CORNERS):
        y, x = divmod(number, 2)
        pixels[y * half_y : (y + 1) * half_y, x * half_x : (x + 1) * half_x] = colour
    return Image.fromarray(pixels)


def grey_ramp() -> np.ndarray:
    return np.linspace(0, 65535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.uint16)


def means(path: Path) -> np.ndarray:
    return np.asarray(open_picture(path)).reshape(-1, 3).mean(0)


# --- kinds of pictures


@pytest.mark.parametrize("suffix", sorted(PICTURES.suffixes))
def test_every_suffix_is_read(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"picture{suffix}"
    corners_picture().save(file)
    picture = open_picture(file)
    assert (picture.mode, picture.size) == ("RGB", (WIDTH, HEIGHT))
    assert np.abs(means(file) - np.mean(CORNERS, axis=0)).max() < 4
    assert probe_picture(file) == {"width": WIDTH, "height": HEIGHT}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_orientation_is_undone(orientation: int, suffix: str, tmp_path: Path) -> None:
    undo: dict[int, Callable[[Image.Image], Image.Image]] = {
        1: lambda picture: picture,
        2: lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda picture: picture.rotate(180),
        4: lambda picture: picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda picture: picture.transpose(Image.Transpose.TRANSPOSE),
        6: lambda picture: picture.rotate(90, expand=True),  # stored so that 90° clockwise puts it right
        7: lambda picture: picture.transpose(Image.Transpose.TRANSVERSE),
        8: lambda picture: picture.rotate(-90, expand=True),
    }
    stored, exif = undo[orientation](corners_picture()), Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"turned{suffix}"
    stored.save(file, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    picture = np.asarray(open_picture(file)).astype(int)
    assert picture.shape == (HEIGHT, WIDTH, 3)
    for place, colour in zip(((5, 5), (5, -6), (-6, 5), (-6, -6)), CORNERS, strict=True):
        assert np.abs(picture[place] - colour).max() < 12, f"corner {place}"
    assert probe_picture(file) == {"width": WIDTH, "height": HEIGHT}


def test_damaged_exif_data_mean_no_turn(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "a.jpg"
    corners_picture().save(file, exif=exif)
    content = file.read_bytes()
    at = content.index(b"Exif") + 6
    file.write_bytes(content[:at] + b"XXXXXXXX" + content[at + 8 :])
    assert open_picture(file).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", ".jpg"), ("CMYK", ".tif"), ("YCbCr", ".tif")])
def test_other_colour_spaces_become_rgb(mode: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a{suffix}"
    # Pillow 12 cannot read the uncompressed YCbCr that it writes.
    corners_picture().convert(mode).save(file, **({"compression": "tiff_lzw"} if suffix == ".tif" else {}))
    assert np.abs(means(file) - np.mean(CORNERS, axis=0)).max() < 4


def test_lab_becomes_rgb(tmp_path: Path) -> None:
    neutral = Image.new("L", (8, 8), 128)
    file = tmp_path / "a.tif"
    Image.merge("LAB", [Image.new("L", (8, 8), 255), neutral, neutral]).save(file)
    assert means(file).min() > 200


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    black = Image.new("RGB", (8, 8), "black")
    clear, half = Image.new("L", (8, 8), 0), Image.new("L", (8, 8), 128)
    palette = black.quantize(4)
    cases = {
        "rgba.png": (Image.merge("RGBA", [*black.split(), clear]), {}, 255),
        "half.png": (Image.merge("RGBA", [*black.split(), half]), {}, 127),
        "half.webp": (Image.merge("RGBA", [*black.split(), half]), {"lossless": True}, 127),
        "la.png": (Image.merge("LA", [black.convert("L"), clear]), {}, 255),
        "palette.png": (palette, {"transparency": palette.getpixel((0, 0))}, 255),
        "palette.gif": (palette, {"transparency": palette.getpixel((0, 0))}, 255),
        "colour.png": (black, {"transparency": (0, 0, 0)}, 255),
        "grey.png": (black.convert("L"), {"transparency": 0}, 255),
        "opaque.png": (palette, {}, 0),
    }
    for name, (picture, settings, expected) in cases.items():
        picture.save(tmp_path / name, **settings)
        assert np.abs(means(tmp_path / name) - expected).max() <= 1, name


def test_bilevel_is_black_and_white(tmp_path: Path) -> None:
    corners_picture().convert("1").save(tmp_path / "a.png")
    assert set(np.unique(np.asarray(open_picture(tmp_path / "a.png")))) == {0, 255}


@pytest.mark.parametrize("name", ["a.png", "a.tif", "big-endian.tif"])
def test_sixteen_bits_are_scaled_not_clipped(name: str, tmp_path: Path) -> None:
    values = grey_ramp()
    picture = Image.fromarray(values)
    if name == "big-endian.tif":
        picture = Image.frombytes("I;16B", (WIDTH, HEIGHT), values.astype(">u2").tobytes())
    picture.save(tmp_path / name)
    found = np.asarray(open_picture(tmp_path / name))[..., 0]
    assert np.abs(found - values / 257).max() <= 0.5
    assert len(np.unique(found)) == 256


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (grey_ramp().astype(np.int32), grey_ramp() / 257),
        (grey_ramp().astype(np.int32) * 1000, grey_ramp() / 257),
        (grey_ramp().astype(np.int32) // 257, grey_ramp() // 257),
        (grey_ramp().astype(np.int32) - 30_000, grey_ramp() / 257),
        (grey_ramp().astype(np.float32) / 65535, grey_ramp() / 257),
        (grey_ramp().astype(np.float32) / 257, grey_ramp() / 257),
        (np.full((HEIGHT, WIDTH), -5, np.int32), np.zeros((HEIGHT, WIDTH))),
    ],
    ids=["16 in 32", "32", "8 in 32", "negative", "0 to 1", "0 to 255", "constant"],
)
def test_deep_grey_is_scaled_by_its_range(values: np.ndarray, expected: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    found = np.asarray(open_picture(tmp_path / "a.tif"))[..., 0]
    assert np.abs(found - expected).max() <= 0.51


def test_what_is_not_finite_is_black(tmp_path: Path) -> None:
    values = np.full((4, 4), 0.5, np.float32)
    values[0, 0], values[0, 1] = np.nan, np.inf
    Image.fromarray(values).save(tmp_path / "a.tif")
    found = np.asarray(open_picture(tmp_path / "a.tif"))[..., 0]
    assert found[0, 0] == found[0, 1] == 0 and found[1, 1] == 128


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_first_frame_of_an_animation(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (10, 8), colour) for colour in ("red", "green", "blue")]
    file = tmp_path / f"moving{suffix}"
    frames[0].save(file, save_all=True, append_images=frames[1:])
    assert np.abs(means(file) - (255, 0, 0)).max() < 3
    assert probe_picture(file) == {"width": 10, "height": 8, "frames": 3}
    note = frames_note({"moving": probe_picture(file), "still": {"width": 1, "height": 1}})
    assert note == ["1 pictures have several frames (moving): the first one of each is used"]


def test_damage_beyond_the_first_frame_does_not_matter(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (10, 8), colour) for colour in ("red", "green", "blue")]
    file = tmp_path / "moving.gif"
    frames[0].save(file, save_all=True, append_images=frames[1:])
    file.write_bytes(file.read_bytes()[:-30])
    assert np.abs(means(file) - (255, 0, 0)).max() < 3


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000)])
def test_extreme_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size, "red").save(tmp_path / "a.png")
    assert open_picture(tmp_path / "a.png").size == size


def test_reading_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    corners_picture().save(tmp_path / "a.jpg")
    assert open_picture(tmp_path / "a.jpg").tobytes() == open_picture(tmp_path / "a.jpg").tobytes()


# --- pictures that cannot be used


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


BROKEN = {
    "empty.jpg": (b"", "is empty"),
    "text.jpg": (b"label,text\n1,hello\n", "is no JPEG.*begins with b'label,text"),
    "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no JPEG"),
    "no_pixels.png": (png(0, 5), "begins as a PNG picture.*no pixels"),
    "bomb.png": (png(60_000, 60_000), "is too large.*3600000000 pixels"),
    "hollow.png": (png(50, 50), "is damaged or cut off"),
    "header.gif": (b"GIF89a\x05", "begins as a GIF picture"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pictures_are_refused_by_name(name: str, tmp_path: Path) -> None:
    content, told = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    for read in (open_picture, probe_picture):
        with pytest.raises(DataError, match=f"{name} {told}"):
            read(tmp_path / name)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".gif", ".tif"])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_truncated_pictures_are_refused(suffix: str, share: float, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    file = tmp_path / f"cut{suffix}"
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(DataError, match=f"cut{suffix} (is damaged|begins as)"):
        probe_picture(file)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent.png cannot be read"):
        open_picture(tmp_path / "absent.png")
    with pytest.raises(DataError, match="is a folder"):
        open_picture(tmp_path)


def test_bad_files_of_a_folder_are_named_or_left_out(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        corners_picture().save(tmp_path / label / "good.png")
    (tmp_path / "cat" / "empty.jpg").write_bytes(b"")
    (tmp_path / "dog" / "text.jpg").write_text("no picture", "utf-8")
    with pytest.raises(DataError, match=r"2 pictures cannot be used.*empty\.jpg.*text\.jpg"):
        read_files(str(tmp_path), PICTURES, (), data=DataConfig(train=str(tmp_path)))
    table = read_files(str(tmp_path), PICTURES, (), data=DataConfig(train=str(tmp_path), skip_bad=True))
    assert [Path(example.values["file"]).name for example in table.examples] == ["good.png", "good.png"]
    assert any("empty.jpg" in note and "text.jpg" in note for note in table.notes)
