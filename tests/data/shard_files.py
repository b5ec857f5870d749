"""Small real shards for tests: tars with sound files (WAV) and their JSON records."""

from __future__ import annotations

import io
import json
import tarfile
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mavil.data.shard_index import ShardIndex, ShardInfo, write_index
from mavil.structs import SAMPLE_RATE, sample_seed

Members = Mapping[str, bytes]


def wav_bytes(key: str, seconds: float = 0.05) -> bytes:
    """Noise that depends on the key only, as a 16-bit mono WAV file at 16 kHz."""
    samples = np.random.default_rng(sample_seed(key)).integers(-9000, 9000, int(seconds * SAMPLE_RATE)).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes(samples.tobytes())
    return file.getvalue()


def record_bytes(key: str, seconds: float = 0.05, labels: Sequence[str] = (), **metadata: str) -> bytes:
    """A clip's JSON member."""
    record = {"key": key, "labels": list(labels), "metadata": metadata, "duration_seconds": seconds}
    return json.dumps({**record, "has_audio": True, "has_video": False}).encode()


def sound_clip(key: str, seconds: float = 0.05, labels: Sequence[str] = (), **metadata: str) -> Members:
    """A usable clip without picture."""
    return {"wav": wav_bytes(key, seconds), "json": record_bytes(key, seconds, labels, **metadata)}


def write_tar(path: Path, clips: Mapping[str, Members]) -> Path:
    """One shard; clips and members in the order given."""
    with tarfile.open(path, "w") as tar:
        for key, members in clips.items():
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def write_folder(folder: Path, shards: Sequence[Mapping[str, Members]]) -> Path:
    """A folder of shards with its index."""
    for number, clips in enumerate(shards):
        write_tar(folder / f"{number:06d}.tar", clips)
    infos = tuple(ShardInfo(f"{number:06d}.tar", len(clips), 0, "") for number, clips in enumerate(shards))
    num_clips = sum(info.num_clips for info in infos)
    write_index(ShardIndex(folder, num_clips, num_clips, 0, label_counts={}, rejected={}, shards=infos))
    return folder
