"""Small voices: recordings of sentences in which every letter is a tone, and tiny models of both families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from transformers import SpeechT5Config, VitsConfig

RATE = 16_000
TEXTS = ("a bad cab", "dad fed a bee", "face a dead cab", "bad beef", "a faded cafe", "deaf bee")


def spell(text: str, *, pitch: float = 1.0, seconds: float = 0.07) -> NDArray[np.float32]:
    """A tone per letter, at 16 kHz."""
    times = np.arange(int(RATE * seconds)) / RATE
    tones = [
        0.3 * np.sin(2 * np.pi * pitch * (300 + 110 * (ord(letter) - 96)) * times) * (letter != " ") for letter in text
    ]
    return np.concatenate(tones).astype(np.float32)


def write_voice(
    folder: Path, texts: tuple[str, ...] = TEXTS, *, speakers: tuple[str, ...] = (), rate: int = RATE
) -> Path:
    """A folder with metadata.jsonl; with speakers, they take turns and differ in pitch."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        row: dict[str, Any] = {"file_name": f"{number}.wav", "text": text}
        place = number % len(speakers) if speakers else 0
        if speakers:
            row["speaker"] = speakers[place]
        soundfile.write(folder / row["file_name"], spell(text, pitch=1.0 + 0.5 * place), rate)
        rows.append(row)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def speecht5_config(**more: Any) -> SpeechT5Config:
    """SpeechT5 of two layers and 32 channels."""
    small: dict[str, Any] = {
        "hidden_size": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        "encoder_max_relative_position": 8,
        "num_mel_bins": 20,
        "speaker_embedding_dim": 12,
        "speech_decoder_prenet_units": 24,
        "speech_decoder_postnet_layers": 2,
        "speech_decoder_postnet_units": 24,
        "max_text_positions": 40,
        "max_speech_positions": 200,
        "conv_dim": [8],
        "conv_kernel": [10],
        "conv_stride": [5],
        "architectures": ["SpeechT5ForTextToSpeech"],
    }
    return SpeechT5Config(**{**small, **more})


def vits_config(**more: Any) -> VitsConfig:
    """VITS of one layer and 16 channels, 64 samples a frame."""
    small: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ffn_dim": 24,
        "layerdrop": 0.0,
        "flow_size": 16,
        "spectrogram_bins": 129,
        "upsample_initial_channel": 16,
        "upsample_rates": [8, 8],
        "upsample_kernel_sizes": [16, 16],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3]],
        "prior_encoder_num_flows": 2,
        "prior_encoder_num_wavenet_layers": 1,
        "posterior_encoder_num_wavenet_layers": 2,
        "duration_predictor_num_flows": 2,
        "duration_predictor_filter_channels": 16,
        "architectures": ["VitsModel"],
    }
    return VitsConfig(**{**small, **more})


def write_config(folder: Path, config: Any) -> Path:
    """A folder that holds a configuration alone."""
    config.save_pretrained(folder)
    return folder
