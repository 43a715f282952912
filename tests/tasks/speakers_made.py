"""Recordings in which every letter is a tone, and tiny speech models of real classes that can learn them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import tokenizers
import torch
import transformers

RATE = 2000
LETTER = 0.06
"""Seconds that each letter sounds; a space is a pause."""
PITCHES = {"a": 150.0, "b": 320.0, "c": 550.0, "d": 830.0}
TEXTS = ["ab cd", "ba dc", "ac bd", "ca db", "ad bc", "da cb", "a bcd", "dcb a"]

ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 4),
    "conv_stride": (5, 4),
    "conv_bias": True,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "initializer_range": 0.1,
    "layerdrop": 0.0,
}
LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2": ("Wav2Vec2", LAYER),
    "wav2vec2-group": ("Wav2Vec2", {"feat_extract_norm": "group"}),
    "hubert": ("Hubert", LAYER),
    "hubert-group": ("Hubert", {"feat_extract_norm": "group"}),
    "wavlm": ("WavLM", {**LAYER, "num_buckets": 16, "max_bucket_distance": 32}),
}
WHISPER = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_mel_bins": 16,
    "max_source_positions": 50,
    "max_target_positions": 24,
    "init_std": 0.2,
}
SPECTROGRAM = {"feature_size": 16, "sampling_rate": RATE, "hop_length": 20, "n_fft": 128, "chunk_length": 1}


def sound(text: str, *, pitch: float = 1.0, noise: float = 0.002) -> np.ndarray:
    """Samples (T,) of a text, each letter a tone of its own."""
    time = np.arange(round(LETTER * RATE)) / RATE
    parts = [0.4 * np.sin(2 * np.pi * pitch * PITCHES.get(letter, 0.0) * time) for letter in f" {text} "]
    wave = np.concatenate(parts)
    return wave + noise * np.random.default_rng(len(text)).normal(size=len(wave))


def write_set(folder: Path, texts: list[str] | None = None, **settings: Any) -> Path:
    """A folder of recordings with metadata.jsonl; every second one is another speaker's."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, text in enumerate(texts or TEXTS):
        sf.write(folder / f"{number}.wav", sound(text, **settings), RATE)
        rows.append({"file_name": f"{number}.wav", "text": text, "speaker": ("anna", "bert")[number % 2]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_config(folder: Path, family: str) -> Path:
    """A configuration without weights or vocabulary, and how its input is prepared."""
    folder.mkdir(parents=True, exist_ok=True)
    if family == "whisper":
        transformers.WhisperConfig(**WHISPER).save_pretrained(folder)
        transformers.WhisperFeatureExtractor(**SPECTROGRAM).save_pretrained(folder)
        return folder
    name, more = FAMILIES[family]
    getattr(transformers, f"{name}Config")(**ENCODER, **more).save_pretrained(folder)
    write_extractor(folder, masked=more["feat_extract_norm"] == "layer")
    return folder


def write_extractor(folder: Path, *, masked: bool = True) -> None:
    transformers.Wav2Vec2FeatureExtractor(
        feature_size=1, sampling_rate=RATE, padding_value=0.0, do_normalize=True, return_attention_mask=masked
    ).save_pretrained(folder)


def write_backbone(folder: Path, family: str) -> Path:
    """An encoder's weights without a head or a vocabulary, as pre-training publishes them."""
    name, more = FAMILIES[family]
    torch.manual_seed(5)
    config = getattr(transformers, f"{name}Config")(**ENCODER, **more)
    getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
    write_extractor(folder, masked=more["feat_extract_norm"] == "layer")
    return folder


def write_multilingual(folder: Path) -> Path:
    """A whole small Whisper with a tokenizer as OpenAI's: bytes, two languages, two tasks, timestamps."""
    bytes_ = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = transformers.WhisperTokenizer(vocab={piece: number for number, piece in enumerate(bytes_)}, merges=[])
    marks = ["<|startoftranscript|>", "<|en|>", "<|nl|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.add_tokens([f"<|{number * 0.02:.2f}|>" for number in range(51)])
    ids = tokenizer.get_vocab()
    end = ids["<|endoftext|>"]
    config = transformers.WhisperConfig(
        **{**WHISPER, "max_target_positions": 40},
        vocab_size=len(tokenizer),
        decoder_start_token_id=ids[marks[0]],
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(6)
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.lang_to_id = {mark: ids[mark] for mark in marks[1:3]}
    model.generation_config.task_to_id = {"translate": ids[marks[3]], "transcribe": ids[marks[4]]}
    model.generation_config.no_timestamps_token_id = ids[marks[5]]
    model.generation_config.is_multilingual = True
    model.generation_config.max_initial_timestamp_index = 50
    model.generation_config._from_model_config = False  # else its file is not read again
    model.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(**SPECTROGRAM).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
