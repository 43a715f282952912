"""Spectrograms and back, recordings as they are taken, and files as they are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tests.tasks.voices import RATE, spell
from transformers import SpeechT5FeatureExtractor, SpeechT5HifiGan, SpeechT5HifiGanConfig

from loraloom.errors import BaseModelError, ConfigError, DataError, OutputError
from loraloom.tasks.speech.mel import MelBank
from loraloom.tasks.speech.sound import Shelf, Take, guard_peak, read_take, trim_silence, write_wav
from loraloom.tasks.speech.vocoder import GriffinLim, linear_from_mel, load_vocoder

BANK = MelBank.of(SpeechT5FeatureExtractor())


def mixture(seconds: float = 1.0) -> torch.Tensor:
    """Three tones that come one after the other and stay."""
    times = torch.arange(int(RATE * seconds)) / RATE
    tones = [
        (times > place * seconds / 4) * torch.sin(2 * torch.pi * pitch * times)
        for place, pitch in enumerate((440.0, 1250.0, 3100.0))
    ]
    return 0.2 * torch.stack(tones).sum(0)


def test_spectrograms_are_those_of_the_feature_extractor() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 16_123).astype(np.float32)
    wanted = SpeechT5FeatureExtractor()(audio_target=samples, sampling_rate=RATE)["input_values"][0]
    found = BANK.log10(torch.from_numpy(samples)).numpy()
    assert found.shape == wanted.shape == (BANK.frames(len(samples)), 80)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_signal_shorter_than_a_window_has_frames() -> None:
    assert BANK.log10(torch.zeros(10)).shape == (1, 80)


def test_a_bank_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="high <= 4000"):
        MelBank(8000, window=512, hop=128, n_fft=512)


def test_amplitudes_are_found_again_from_their_mel_bands() -> None:
    mel = BANK.amplitudes(mixture())
    linear = linear_from_mel(mel, BANK)
    assert (linear >= 0).all()
    assert ((linear @ BANK.filters) - mel).abs().mean() < 0.01 * mel.abs().mean()


def test_griffin_lim_makes_a_mixture_of_tones_again() -> None:
    samples = mixture()
    log_mel = BANK.log10(samples)
    made = GriffinLim(BANK)(log_mel)
    assert made.abs().max() < 1.0
    heard = log_mel > log_mel.max() - 2.5
    frames = min(len(log_mel), BANK.frames(len(made)))
    distance = (BANK.log10(made)[:frames] - log_mel[:frames]).abs()[heard[:frames]].mean()
    noise = torch.randn(len(samples), generator=torch.Generator().manual_seed(0)) * samples.std()
    assert distance < 0.12 < 0.3 * (BANK.log10(noise) - log_mel).abs()[heard].mean()


def test_griffin_lim_gives_the_same_bytes_and_takes_what_is_short() -> None:
    log_mel = BANK.log10(mixture(0.2))
    assert torch.equal(GriffinLim(BANK)(log_mel), GriffinLim(BANK)(log_mel))
    assert len(GriffinLim(BANK)(log_mel[:1])) == 0
    assert len(GriffinLim(BANK)(log_mel[:3])) == 2 * BANK.hop
    assert torch.isfinite(GriffinLim(BANK)(torch.full((5, 80), 1e4))).all()


def test_a_hifi_gan_is_loaded_and_one_for_other_spectrograms_refused(tmp_path: Path) -> None:
    config = SpeechT5HifiGanConfig(
        upsample_initial_channel=32, resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]]
    )
    SpeechT5HifiGan(config).save_pretrained(tmp_path / "gan")
    vocoder = load_vocoder(str(tmp_path / "gan"), BANK)
    assert vocoder(torch.zeros(7, 80)).shape == (7 * 256,)
    with pytest.raises(BaseModelError, match="makes 256 samples at 16000 Hz of a frame of 80 mel bands"):
        load_vocoder(str(tmp_path / "gan"), MelBank(RATE, window=1024, hop=200, n_fft=1024))


def test_silence_at_the_ends_is_cut_to_50_ms() -> None:
    tone = spell("abc")
    around = np.concatenate([np.zeros(RATE, np.float32), tone, np.zeros(RATE // 2, np.float32)])
    cut = trim_silence(around, RATE)
    assert len(tone) <= len(cut) <= len(tone) + RATE * 0.05 * 2 + RATE * 0.02 * 2
    assert trim_silence(tone, RATE).shape == tone.shape
    assert len(trim_silence(np.zeros(100, np.float32), RATE)) == 100


def test_a_take_is_resampled_and_levelled(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 0.1 * spell("abc"), 8000)
    taken = read_take(str(tmp_path / "a.wav"), Take(RATE, trim=False, normalise=True))
    assert len(taken) == 2 * len(spell("abc"))
    assert np.abs(taken).max() == pytest.approx(0.95)


def test_a_silent_recording_is_refused_by_name(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "quiet.wav", np.zeros(4000), RATE)
    with pytest.raises(DataError, match=r"quiet\.wav is silent"):
        Shelf().read(str(tmp_path / "quiet.wav"), Take(RATE))


def test_the_shelf_reads_a_file_once(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    soundfile.write(file, spell("abc"), RATE)
    shelf = Shelf()
    first = shelf.read(str(file), Take(RATE))
    file.unlink()
    assert shelf.read(str(file), Take(RATE)) is first


def test_a_written_file_holds_the_samples_and_does_not_clip(tmp_path: Path) -> None:
    loud = 6.0 * spell("abc")
    written = write_wav(tmp_path / "new" / "a.wav", loud, RATE)
    found, rate = soundfile.read(written)
    assert rate == RATE and soundfile.info(written).subtype == "PCM_16"
    assert np.abs(found).max() == pytest.approx(0.99, abs=1e-3)
    np.testing.assert_allclose(found, loud * 0.99 / np.abs(loud).max(), atol=1e-4)
    np.testing.assert_array_equal(guard_peak(loud / 6), loud / 6)


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.wav").mkdir()
    (tmp_path / "a.wav" / "inside").touch()
    with pytest.raises(OutputError, match=r"a\.wav cannot be written"):
        write_wav(tmp_path / "a.wav", spell("abc"), RATE)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.wav"]
