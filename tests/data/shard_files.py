"""Small real shards for tests: tars with sound files (WAV) and their JSON records."""

from __future__ import annotations

import io
import json
import tarfile
import wave
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from mavil.atomic_files import sha256_of
from mavil.data.media import encode_clip
from mavil.data.shards.clip_table import CLIPS, LABELS, ClipTable, write_table
from mavil.data.shards.index import ShardIndex, ShardInfo, write_index
from mavil.data.shards.tars import survey_shard
from mavil.seeds import sample_seed
from mavil.structs import SAMPLE_RATE

Members = Mapping[str, bytes]
KINDS = ("has_audio", "has_video")


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


def media_clip(
    key: str,
    seconds: float = 0.5,
    *,
    sound: bool = True,
    picture: bool = True,
    is_told: bool = True,
    labels: Sequence[str] = (),
) -> Members:
    """A clip with sound, picture (32 x 48, 8 Hz) or both; its record says which, or (``is_told`` False) that it has both."""
    generator = torch.Generator().manual_seed(sample_seed(key) % 2**31)
    blocks = torch.randint(0, 256, (int(8 * seconds), 3, 4, 6), generator=generator, dtype=torch.uint8)
    waveform = torch.randn(int(SAMPLE_RATE * seconds), generator=generator) * 0.1
    media = encode_clip(
        blocks.repeat_interleave(8, 2).repeat_interleave(8, 3) if picture else None, 8.0, waveform if sound else None
    )
    flags = {"has_audio": sound or not is_told, "has_video": picture or not is_told}
    record = {"key": key, "labels": list(labels), "metadata": {}, "duration_seconds": seconds, **flags}
    return {"mp4" if picture else "m4a": media, "json": json.dumps(record).encode()}


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
    infos = tuple(_info_of(folder / f"{number:06d}.tar", len(clips)) for number, clips in enumerate(shards))
    num_clips = sum(info.num_clips for info in infos)
    surveys = [survey_shard(folder / info.name) for info in infos]
    rows = [(*place, 1.0) for survey in surveys for _, place in survey]
    labels = [_labels(members.get("json", b"{}")) for clips in shards for members in clips.values()]
    classes = tuple(sorted({label for clip in labels for label in clip}))
    write_table(folder, ClipTable.of(rows, [[classes.index(label) for label in clip] for clip in labels]))
    tables = {name: sha256_of(folder / name) for name in (CLIPS, LABELS)}
    counts = dict(Counter(label for clip in labels for label in clip))
    having = [
        sum(_has(members.get("json", b"{}"), kind) for clips in shards for members in clips.values()) for kind in KINDS
    ]
    write_index(ShardIndex(folder, num_clips, having[0], having[1], classes, counts, {}, infos, tables))
    return folder


def _info_of(path: Path, num_clips: int) -> ShardInfo:
    return ShardInfo(path.name, num_clips, path.stat().st_size, sha256_of(path))


def _has(record: bytes, kind: str) -> bool:
    """What a record says of sound or picture; nothing where a test has damaged it."""
    try:
        return bool(json.loads(record).get(kind))
    except (ValueError, AttributeError):
        return False


def _labels(record: bytes) -> tuple[str, ...]:
    """The labels of a record; none where a test has damaged it."""
    try:
        return tuple(json.loads(record).get("labels", ()))
    except (ValueError, TypeError, AttributeError):
        return ()
