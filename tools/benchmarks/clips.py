"""Clips to measure with: seeded moving textures with sound, encoded as real ones are, packed into shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mavil.atomic_files import sha256_of
from mavil.data.media import DecodeError, cut_clip, encode_clip, probe
from mavil.data.media.encodings import TRAINING, SpanEncoding
from mavil.data.shards.clip_table import CLIPS, LABELS, ClipTable, write_table
from mavil.data.shards.index import ShardIndex, ShardInfo, write_index
from mavil.data.shards.tars import survey_shard, write_shard
from mavil.data.stream.shard_set import open_shards
from mavil.structs import SAMPLE_RATE, UserError

_OCTAVE_DECAY = 1.2  # of the amplitude of a texture over its frequency; natural pictures have about 1
PLAIN = SpanEncoding(quality=23, key_frame_every=250)
"""As files come from the net: x264's own distance of key frames, B frames that refer to each other, deblocking."""


@dataclass(frozen=True)
class ClipShape:
    """What the clips look like; ``frames_per_second`` are taken in turn. Our choice: AudioSet at a short side of 256."""

    seconds: float = 10.0
    height: int = 256
    width: int = 340
    frames_per_second: tuple[int, ...] = (25, 30)
    encoding: SpanEncoding = TRAINING


def make_clip(number: int, shape: ClipShape, seed: int = 0) -> bytes:
    """The bytes of an mp4: a texture that drifts, a disc of another one that circles, noise; tones and noise to hear."""
    generator = np.random.default_rng((seed, number))
    rate = shape.frames_per_second[number % len(shape.frames_per_second)]
    pictures = _pictures(generator, shape, rate)
    time = np.arange(round(shape.seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tones = [0.1 * np.sin(2 * np.pi * hz * time) for hz in generator.uniform(80, 4000, 5)]
    sound = sum(tones) * np.sin(np.pi * generator.uniform(0.3, 3) * time) + 0.02 * generator.standard_normal(len(time))
    waveform = torch.from_numpy(np.asarray(sound, np.float32))
    # As a source of high quality first, and from that as mavil shards make would.
    source = encode_clip(torch.from_numpy(pictures), rate, waveform, quality=12)
    return cut_clip(source, None, None, shape.encoding)


def _pictures(generator: np.random.Generator, shape: ClipShape, rate: int) -> np.ndarray:
    """``[T, 3, H, Wd]`` uint8."""
    height, width = shape.height, shape.width
    back, front = (_texture(generator, 2 * height, 2 * width) for _ in range(2))
    drift, circle = generator.uniform(-0.2, 0.2, 2), generator.uniform(0.1, 0.4, 2)
    rows, columns = np.ogrid[:height, :width]
    pictures = np.empty((round(shape.seconds * rate), 3, height, width), np.uint8)
    for number, picture in enumerate(pictures):
        time = number / rate
        image = np.roll(back, (int(drift[0] * height * time), int(drift[1] * width * time)), (0, 1))[:height, :width]
        y, x = height * (0.5 + circle[0] * np.sin(time)), width * (0.5 + circle[1] * np.cos(1.3 * time))
        is_disc = (rows - y) ** 2 + (columns - x) ** 2 < (height / 5) ** 2
        image = np.where(is_disc[..., None], front[:height, :width], image)
        image += generator.normal(0, 2, (height, width, 1)).astype(np.float32)
        picture[:] = image.clip(0, 255).transpose(2, 0, 1)
    return pictures


def _texture(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """``[H, Wd, 3]`` float32 whose details are weaker the finer they are, as in photographs; it tiles."""
    size = (height, width // 2 + 1, 3)
    waves = generator.standard_normal(size) + 1j * generator.standard_normal(size)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]).clip(1 / max(height, width))
    texture = np.fft.irfft2(waves / frequency[..., None] ** _OCTAVE_DECAY, s=(height, width), axes=(0, 1))
    return (128 + 50 * (texture - texture.mean()) / texture.std()).clip(0, 255).astype(np.float32)


def write_clips(folder: Path, clips: Sequence[bytes], seconds: float, num_shards: int, ending: str = "mp4") -> None:
    """Pack clips into a finished set of shards."""
    parts = [range(first, len(clips), num_shards) for first in range(num_shards)]
    record = {"labels": [], "metadata": {}, "duration_seconds": seconds, "has_audio": True, "has_video": True}
    infos, rows = [], []
    for number, part in enumerate(parts):
        path = folder / f"{number:06d}.tar"
        write_shard(path, [(f"clip{i:06d}", ending, clips[i], {"key": f"clip{i:06d}", **record}) for i in part])
        rows += [(*place, 1.0) for _, place in survey_shard(path)]
        infos.append(ShardInfo(path.name, len(part), path.stat().st_size, sha256_of(path)))
    write_table(folder, ClipTable.of(rows, [[]] * len(rows)))
    tables = {name: sha256_of(folder / name) for name in (CLIPS, LABELS)}
    write_index(ShardIndex(folder, len(clips), len(clips), len(clips), (), {}, {}, tuple(infos), tables))


def read_clips(folder: Path, num_clips: int) -> list[bytes]:
    """The media of about so many clips, spread evenly over a set of shards; only those with sound and picture.

    Raises:
        UserError: there is none, or no such set.
    """
    shards = open_shards(folder)
    rows = shards.rows()
    names = [shard.name for shard in shards.index.shards for _ in range(shard.num_clips)]
    clips = []
    for number in np.unique(np.linspace(0, len(rows) - 1, num_clips).round().astype(int)).tolist():
        row = rows[number]
        media = shards.storage.read(names[number], int(row["offset"] + row["media_at"]), int(row["media_bytes"]))
        try:
            info = probe(media)
        except DecodeError:
            continue
        if info.has_audio and info.has_video:
            clips.append(media)
    if not clips:
        raise UserError(f"{folder}: none of its clips that were tried has sound and picture; take other shards")
    return clips
