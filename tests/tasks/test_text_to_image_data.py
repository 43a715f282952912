"""Pictures and captions as they come: tables, text files, one prompt for all; sizes; tensors kept on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loraloom.data.batches import length_batches
from loraloom.data.config import DataConfig
from loraloom.errors import ConfigError, DataError, FormatError, OutputError
from loraloom.tasks import create_task
from loraloom.tasks.diffusion.buckets import apply, bucket_lengths, fit, make_buckets, nearest_bucket
from loraloom.tasks.diffusion.cache import TensorCache, cache_folder, key_of
from loraloom.tasks.diffusion.captions import orders
from loraloom.tasks.diffusion.denoising import Denoised
from loraloom.tasks.text_to_image import TextToImage

from .painters import draw, draw_folder


def read(folder: Path, task: TextToImage | None = None, **data: Any) -> list[str]:
    """The captions of a folder, by the names of the pictures."""
    made = task or create_task("text-to-image")
    splits = made.read(DataConfig(train=str(folder), eval=str(folder), **data), seed=0)
    return [example.values["text"] for example in splits.train]


@pytest.mark.parametrize("table", [True, False])
def test_captions_stand_in_a_table_or_beside_the_pictures(tmp_path: Path, table: bool) -> None:
    captions = read(draw_folder(tmp_path / "pictures", 4, table=table))
    assert captions == ["a red house, in the sea, good", "a blue house, in the sea, good"] * 2


def test_a_table_of_csv_with_another_column_name_is_read(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "pictures", 2)
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text("file_name,what_is_seen\n0.png,a red one\n1.png,a blue one\n")
    assert read(folder) == ["a red one", "a blue one"]


def test_a_row_without_text_takes_the_file_beside_the_picture(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "pictures", 2)
    rows = [{"file_name": "0.png", "text": "from the table"}, {"file_name": "1.png", "text": None}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "1.txt").write_text("  from\nthe file ")
    assert read(folder) == ["from the table", "from the file"]


def test_an_instance_prompt_needs_no_captions_and_a_prefix_joins_them(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "pictures", 2)
    assert (
        read(folder, create_task("text-to-image", instance_prompt="a photo of sks dog")) == ["a photo of sks dog"] * 2
    )
    assert read(folder, create_task("text-to-image", caption_prefix="ink style,"))[0].startswith("ink style, a red")
    (folder / "metadata.jsonl").unlink()
    assert len(read(folder, create_task("text-to-image", instance_prompt="sks"))) == 2


def test_a_picture_without_a_caption_is_named_with_the_nearest_file(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "pictures", 3, table=False)
    (folder / "1.txt").rename(folder / "11.txt")
    with pytest.raises(DataError, match=r"1\.png has no caption: 1\.txt is not there; did you mean '11\.txt'"):
        read(folder)
    assert len(read(folder, skip_bad=True)) == 2


def test_without_any_caption_the_ways_to_give_them_are_told(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "pictures", 3, table=False)
    for path in folder.glob("*.txt"):
        path.unlink()
    with pytest.raises(DataError, match=r"none of its 3 pictures has a caption.*metadata\.jsonl.*instance_prompt"):
        read(folder)


def test_an_empty_caption_and_a_broken_picture_are_named(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "pictures", 3, table=False)
    (folder / "2.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"2\.txt is empty"):
        read(folder)
    (folder / "2.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"2\.txt:1: byte 0xe9 .* is not UTF-8"):
        read(folder)
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:200])
    with pytest.raises(DataError, match=r"0\.png"):
        read(folder, skip_bad=False)
    assert read(folder, skip_bad=True) == ["a blue house, in the sea, good"]


def test_an_empty_text_in_a_table_is_named(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "pictures", 2)
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a"}\n{"file_name": "1.png", "text": ""}\n')
    with pytest.raises(DataError, match=r"1\.png has no caption"):
        read(folder)


def test_a_new_word_must_stand_in_the_captions(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "pictures", 2)
    with pytest.raises(DataError, match=r"does not hold the new word '<mine>', nor do 3 others"):
        read(folder, create_task("text-to-image", train_embedding="<mine>"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"instance_prompt": " "}, "'instance_prompt' is empty"),
        ({"class_folder": "x"}, "'class_folder' needs 'class_prompt'"),
        ({"train_embedding": "<a>", "instance_prompt": "a dog"}, "does not hold the new word '<a>'"),
        ({"also": "koyha"}, "'also.0' is 'koyha': it must be 'kohya'"),
        ({"resolution": 8}, "resolution"),
        ({"min_snr": -1}, "min_snr"),
        ({"flipp": True}, "no option 'flipp'.*did you mean 'flip'"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        create_task("text-to-image", **options)


def test_settings_may_be_written_loosely() -> None:
    task = create_task("text-to-image", also="kohya", sample_prompts="a house", resolution=[96, 64])
    assert isinstance(task, TextToImage)
    assert (task.options.also, task.options.sample_prompts, task.options.size) == (["kohya"], ["a house"], (64, 96))


# --- sizes


@given(st.integers(1, 16), st.sampled_from([8, 16, 32, 64]), st.integers(20, 4000), st.integers(20, 4000))
def test_every_picture_fits_a_bucket_of_no_more_area(side: int, step: int, width: int, height: int) -> None:
    size = (side * step, side * step)
    buckets = make_buckets(size, step)
    assert size in buckets
    assert all(w % step == 0 and h % step == 0 and w * h <= math.prod(size) for w, h in buckets)
    assert {(h, w) for w, h in buckets} == set(buckets)
    how = fit((width, height), nearest_bucket((width, height), buckets))
    assert how.scaled[0] >= how.bucket[0] and how.scaled[1] >= how.bucket[1]
    assert 0 <= how.lost < 1


def test_the_nearest_shape_is_taken_and_the_middle_cut() -> None:
    buckets = make_buckets((64, 64), 16)
    assert buckets == [(32, 128), (48, 80), (64, 64), (80, 48), (128, 32)]
    assert nearest_bucket((300, 180), buckets) == (80, 48)
    assert nearest_bucket((70, 64), buckets) == (64, 64)
    picture = draw("red", 0, (200, 100))
    cut = apply(picture, fit(picture.size, (64, 64)))
    assert cut.size == (64, 64)
    wanted = picture.resize((128, 64), Image.Resampling.LANCZOS).crop((32, 0, 96, 64))
    assert cut.tobytes() == wanted.tobytes()


def test_batches_of_the_loop_keep_buckets_together() -> None:
    buckets = make_buckets((512, 512), 64)
    lengths = bucket_lengths(buckets)
    of_examples = [lengths[buckets[number % len(buckets)]] for number in range(400)]
    batches = length_batches(of_examples, 8, seed=3, epoch=1)
    mixed = [batch for batch in batches if len({of_examples[index] for index in batch}) > 1]
    assert len(mixed) < len(buckets)
    assert all(len({of_examples[index] for index in batch}) <= 2 for batch in mixed)


def test_orders_of_tags_are_always_the_same_ones() -> None:
    found = orders("a, b, c", 4)
    assert found[0] == "a, b, c" and len(set(found)) == 4
    assert all(sorted(text.split(", ")) == ["a", "b", "c"] for text in found)
    assert found == orders("a, b, c", 4)
    assert orders("one thing", 4) == ["one thing"]


# --- tensors kept


def test_tensors_come_back_bit_for_bit_and_damaged_ones_count_as_missing(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path / "cache")
    key = key_of(kind="x", number=1)
    assert not cache.has(key)
    cache.put(key, {"mean": torch.arange(6.0).view(2, 3)[:, 1:]})
    fresh = TensorCache(tmp_path / "cache", budget=0)
    assert torch.equal(fresh.get(key)["mean"], torch.tensor([[1.0, 2.0], [4.0, 5.0]]))
    assert fresh.used == 0 and cache.used == 16
    fresh.path(key).write_bytes(fresh.path(key).read_bytes()[:-3])
    assert not fresh.has(key) and cache.has(key)
    with pytest.raises(FormatError, match="gone or damaged"):
        fresh.get(key)
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [fresh.path(key).name]


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"options\.cache"):
        TensorCache(tmp_path / "file").put(key_of(kind="x"), {"a": torch.zeros(1)})


def test_the_folder_follows_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "loraloom" / "diffusion"
    assert cache_folder("~/x") == Path.home() / "x"


# --- scores


def test_the_score_is_a_mean_with_its_interval() -> None:
    task = create_task("text-to-image")
    scores = task.score([Denoised(loss, (loss,)) for loss in (1.0, 2.0, 3.0)], ["a", "b", "c"])
    assert scores["loss"] == 2.0 and scores["n"] == 3.0
    assert scores["loss_high"] - 2.0 == pytest.approx(1.959964 / math.sqrt(3))
    assert set(task.score([Denoised(1.0, (1.0,))], ["a"])) == {"loss", "n"}
    with pytest.raises(DataError, match="no pictures to score"):
        task.score([], [])


def test_state_comes_back_and_a_damaged_one_is_refused() -> None:
    task = create_task("text-to-image", resolution=96)
    again = create_task("text-to-image")
    again.restore(json.loads(json.dumps(task.state())))
    assert again.state() == task.state()
    with pytest.raises(FormatError, match="'size' is no width and height"):
        again.restore({"size": "64x64"})
