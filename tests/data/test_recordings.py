"""Recordings of every odd kind, made here, and the filter between sample rates."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from loraloom.data.config import DataConfig
from loraloom.data.files import read_files
from loraloom.data.recordings import RECORDINGS, probe_recording, read_recording, resample
from loraloom.errors import DataError, MissingExtraError

RATE = 8000


def tone(seconds: float = 0.5, *, rate: int = RATE, pitch: float = 440.0, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize(
    ("name", "rate", "channels", "settings"),
    [
        ("plain.wav", 8000, 1, {"subtype": "PCM_16"}),
        ("stereo.wav", 44100, 2, {"subtype": "PCM_16"}),
        ("double.wav", 16000, 1, {"subtype": "DOUBLE"}),
        ("deep.wav", 48000, 1, {"subtype": "PCM_24"}),
        ("coarse.wav", 8000, 1, {"subtype": "PCM_U8"}),
        ("packed.flac", 22050, 2, {}),
        ("lossy.ogg", 44100, 1, {}),
        ("lossy.mp3", 16000, 1, {}),
    ],
)
def test_every_kind_of_file_is_read_at_the_rate_asked_for(
    tmp_path: Path, name: str, rate: int, channels: int, settings: dict[str, Any]
) -> None:
    wave = tone(rate=rate)
    sf.write(tmp_path / name, np.stack([wave] * channels, axis=1), rate, **settings)
    facts = probe_recording(tmp_path / name)
    assert (facts["rate"], facts["channels"]) == (rate, channels)
    assert facts["seconds"] == pytest.approx(0.5, abs=0.08)  # lossy formats pad
    assert facts["peak"] == pytest.approx(0.5, abs=0.04)
    assert facts["rms"] == pytest.approx(0.5 / np.sqrt(2), abs=0.03)
    assert not facts["silent"]
    assert facts["clipped"] == 0
    heard = read_recording(tmp_path / name, 16000)
    assert heard.samples.dtype == np.float32
    assert heard.samples.ndim == 1
    assert heard.rate == 16000
    assert heard.seconds == pytest.approx(facts["seconds"], abs=1e-3)
    strongest = np.abs(np.fft.rfft(heard.samples)).argmax() * 16000 / len(heard.samples)
    assert strongest == pytest.approx(440, abs=3)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = tone(level=0.4), tone(pitch=700, level=0.2)
    sf.write(tmp_path / "two.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    heard = read_recording(tmp_path / "two.wav")
    assert heard.rate == RATE
    np.testing.assert_allclose(heard.samples, (left + right) / 2, atol=1e-6)
    assert heard.facts["peak"] == pytest.approx(0.4, abs=0.01)  # of the loudest channel


def test_opposite_channels_are_silent_when_mixed(tmp_path: Path) -> None:
    sf.write(tmp_path / "two.wav", np.stack([tone(), -tone()], axis=1), RATE)
    assert probe_recording(tmp_path / "two.wav")["silent"]


def test_an_offset_is_left_alone_and_is_no_sound(tmp_path: Path) -> None:
    sf.write(tmp_path / "offset.wav", np.full(RATE, 0.25), RATE, subtype="FLOAT")
    heard = read_recording(tmp_path / "offset.wav", 16000)
    assert heard.facts["silent"]
    np.testing.assert_allclose(heard.samples, 0.25, atol=1e-4)  # at the ends too


@pytest.mark.parametrize(("level", "clipped"), [(0.9, False), (1.0, False), (1.6, True)])
def test_a_wave_that_was_cut_off_is_clipped_and_one_at_full_scale_is_not(
    tmp_path: Path, level: float, clipped: bool
) -> None:
    sf.write(tmp_path / "loud.wav", np.clip(tone(level=level), -1, 1), RATE)
    share = probe_recording(tmp_path / "loud.wav")["clipped"]
    assert (share > 0.3) == clipped
    assert clipped or share == 0


# --- files that cannot be used


def bad_files(folder: Path) -> dict[str, str]:
    """Files that are no recordings, and a part of what must be said of each."""
    wave = tone()
    sf.write(folder / "whole.wav", wave, RATE)
    whole = (folder / "whole.wav").read_bytes()
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("this is a note, not a sound\n" * 40)
    (folder / "head.wav").write_bytes(whole[:30])
    (folder / "body.wav").write_bytes(whole[: len(whole) // 2])
    sf.write(folder / "none.wav", np.zeros(0), RATE)
    spoilt = wave.copy()
    spoilt[100:103] = np.nan
    sf.write(folder / "nan.wav", spoilt, RATE, subtype="FLOAT")
    spoilt[100:103] = np.inf
    sf.write(folder / "inf.wav", spoilt, RATE, subtype="DOUBLE")
    sf.write(folder / "whole.flac", np.random.default_rng(0).normal(0, 0.1, 40_000), RATE)
    (folder / "half.flac").write_bytes((folder / "whole.flac").read_bytes()[:20_000])
    (folder / "folder.wav").mkdir()
    return {
        "missing.wav": "does not exist",
        "empty.wav": "is empty (zero bytes)",
        "text.wav": "is no recording that can be read",
        "head.wav": "",
        "body.wav": "is cut off",
        "none.wav": "holds no samples",
        "nan.wav": "3 samples that are no numbers, the first at sample 100",
        "inf.wav": "3 samples that are no numbers",
        "half.flac": "",
        "folder.wav": "is no file",
    }


def test_each_bad_file_is_refused_by_name(tmp_path: Path) -> None:
    for name, said in bad_files(tmp_path).items():
        with pytest.raises(DataError) as caught:
            probe_recording(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name)), name
        assert said in str(caught.value), (name, caught.value)
        assert "\n" not in str(caught.value)


def test_a_streamed_header_without_a_length_is_taken(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", tone(), RATE)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    start = data.index(b"data") + 4
    data[4:8] = data[start : start + 4] = b"\xff" * 4
    (tmp_path / "a.wav").write_bytes(data)
    assert probe_recording(tmp_path / "a.wav")["seconds"] == pytest.approx(0.5)


def test_bad_files_of_a_folder_are_left_out_when_asked(tmp_path: Path) -> None:
    bad_files(tmp_path)
    (tmp_path / "folder.wav").rmdir()
    with pytest.raises(DataError, match=r"8 recordings cannot be used"):
        read_files(str(tmp_path), RECORDINGS, (), data=DataConfig(train="x"))
    table = read_files(str(tmp_path), RECORDINGS, (), data=DataConfig(train="x", skip_bad=True))
    assert [Path(one.values["file"]).name for one in table.examples] == ["whole.flac", "whole.wav"]
    assert any("body.wav" in note and "and 3 more" in note for note in table.notes)


def test_without_the_library_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name == "soundfile":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"pip install \"loraloom\[speech\]\""):
        probe_recording(tmp_path / "a.wav")


# --- the filter


def gain(rate: int, target: int, pitch: float) -> float:
    """How strong a tone comes out of the filter, in dB, away from the ends."""
    wave = tone(1.0, rate=rate, pitch=pitch, level=1.0).astype(np.float32)
    heard = resample(wave, rate, target)[target // 4 : -target // 4]
    return float(20 * np.log10(max(1e-9, np.sqrt(2 * np.mean(heard.astype(np.float64) ** 2)))))


@pytest.mark.parametrize(("rate", "target"), [(44100, 16000), (48000, 16000), (22050, 8000), (8000, 16000)])
def test_what_fits_passes_unchanged_and_what_does_not_is_gone(rate: int, target: int) -> None:
    nyquist = min(rate, target) / 2
    for share in (0.02, 0.2, 0.5, 0.8, 0.9):
        assert gain(rate, target, share * nyquist) == pytest.approx(0, abs=0.01)
    if target < rate:
        for share in (1.0, 1.05, 1.2, 1.3):
            assert gain(rate, target, share * nyquist) < -85
        careless = tone(1.0, rate=rate, pitch=1.2 * nyquist, level=1.0)[:: rate // target]
        assert np.sqrt(2 * np.mean(careless**2)) > 0.9  # what leaving samples out would have let through


def test_a_resampled_tone_is_that_tone(tmp_path: Path) -> None:
    heard = resample(tone(rate=44100, pitch=1000).astype(np.float32), 44100, 16000)
    wanted = tone(rate=16000, pitch=1000)
    assert len(heard) == len(wanted)
    np.testing.assert_allclose(heard[400:-400], wanted[400:-400], atol=1e-4)  # no delay


def test_the_same_rate_changes_nothing() -> None:
    wave = tone().astype(np.float32)
    assert resample(wave, RATE, RATE) is wave
