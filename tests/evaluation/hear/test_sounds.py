"""Reading WAV files: every number format the same sound, other rates the same tone, and damage told with the file."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from mavil.evaluation.hear.sounds import ahead, read_wav
from mavil.structs import UserError
from tests.evaluation.hear.task_folders import tone, write_wav


def test_number_formats_are_the_same_sound(tmp_path: Path) -> None:
    samples = tone(500.0, 0.1, 8000)
    formats = {
        "i2": np.round(samples * 2**15).astype(np.int16),
        "i4": np.round(samples * 2**31).astype(np.int32),
        "u1": np.round(samples * 2**7 + 128).astype(np.uint8),
        "f4": samples.astype(np.float32),
    }
    for name, values in formats.items():
        wavfile.write(tmp_path / f"{name}.wav", 8000, values)
        read = read_wav(tmp_path / f"{name}.wav", 8000, 8000)
        assert read.dtype == torch.float32
        np.testing.assert_allclose(read.numpy(), samples, atol=2**-7 if name == "u1" else 2**-14)


def test_resampling_keeps_the_tone(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", tone(500.0, 0.5, 48000), 48000)
    read = read_wav(tmp_path / "a.wav", 48000, 16000).numpy()
    assert len(read) == 8000
    middle = slice(500, -500)  # the filter rings at the ends
    np.testing.assert_allclose(read[middle], tone(500.0, 0.5, 16000)[middle], atol=2e-3)


def test_damage_is_told_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with pytest.raises(UserError, match=r"a\.wav: cannot be read"):
        read_wav(path, 16000, 16000)
    path.write_bytes(b"no sound at all")
    with pytest.raises(UserError, match=r"a\.wav: no WAV file"):
        read_wav(path, 16000, 16000)
    write_wav(path, tone(500.0, 0.1, 16000), 16000)
    with pytest.raises(UserError, match=r"a\.wav: has 16000 Hz, its folder says 48000"):
        read_wav(path, 48000, 16000)
    wavfile.write(path, 16000, np.zeros((100, 2), dtype=np.int16))
    with pytest.raises(UserError, match=r"shape \(100, 2\), one channel"):
        read_wav(path, 16000, 16000)
    wavfile.write(path, 16000, np.array([0.0, np.nan], dtype=np.float32))
    with pytest.raises(UserError, match="not finite"):
        read_wav(path, 16000, 16000)


def test_reading_ahead_keeps_the_order_and_stays_within_its_depth() -> None:
    begun, lock = [], threading.Lock()

    def double(value: int) -> int:
        with lock:
            begun.append(value)
        return 2 * value

    results = ahead(double, range(50), depth=3)
    assert next(results) == 0
    assert len(begun) <= 3
    assert [0, *results] == [2 * value for value in range(50)]
