"""Seeded clips with a sound-picture link that can be learned in minutes, written as real H.264/AAC files.

Eight classes, each a family of sounds and a family of moving shapes. Within a class clips differ in four *shared* factors
that both modalities show - onset (the shape appears when the sound begins), pitch (higher sound, higher in the picture),
loudness (louder, larger) and rate (faster beat, faster motion) - and in *nuisance* factors drawn for each modality alone:
colours, horizontal position, start angle and texture; carrier phase and background noise. All of this is our choice.
"""

from __future__ import annotations

import colorsys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mavil.data.media import encode_clip
from mavil.data.shards.index import ShardIndex
from mavil.data.shards.pack import make_shards
from mavil.data.synthetic_families import FAMILIES, Factors, Shape
from mavil.seeds import sample_seed
from mavil.structs import SAMPLE_RATE, Clip, UserError

SECONDS = 4.0
SIZE = 96
"""Rows and columns of a frame, pixels."""
FRAMES_PER_SECOND = 8.0
PITCH_HZ = (220.0, 1760.0)
RATE_HZ = (1.0, 6.0)
"""Beats of the sound per second."""
LOUDNESS_DB = 16.0
"""Between the softest and the loudest clip."""
BEATS_PER_TURN = 8
"""The shape moves through one turn (swing, pulse ...) in so many beats: slow enough to be seen at 2 frames per second."""


class SyntheticClip(NamedTuple):
    """One rendered clip: ``frames`` ``[T, 3, H, Wd]`` uint8, ``waveform`` ``[L]`` float32, one label, factors as text."""

    frames: Tensor
    waveform: Tensor
    labels: tuple[str, ...]
    metadata: dict[str, str]


def draw_factors(seed: int, number: int) -> Factors:
    """The factors of one clip; they depend on nothing but ``seed`` and the clip's ``number``."""
    onset, pitch, loudness, rate, *nuisance = _generator(seed, number, "factors").random(11).tolist()
    # On the frame grid, so that the shape appears exactly when the sound begins.
    onset_seconds = round((0.2 + 2.3 * onset) * FRAMES_PER_SECOND) / FRAMES_PER_SECOND
    return Factors(onset_seconds, _between(PITCH_HZ, pitch), loudness, _between(RATE_HZ, rate), *nuisance)


def synthetic_clip(seed: int, number: int) -> SyntheticClip:
    """Render clip ``number`` of the endless series ``seed``; its class is ``number`` modulo the number of classes."""
    factors, name = draw_factors(seed, number), class_of(number)
    frames = torch.from_numpy(_render_frames(name, factors, _generator(seed, number, "picture"))).permute(0, 3, 1, 2)
    waveform = torch.from_numpy(_render_sound(name, factors, _generator(seed, number, "sound")))
    return SyntheticClip(frames, waveform, (name,), _describe(seed, number, factors))


def class_of(number: int) -> str:
    """The class of clip ``number``."""
    return list(FAMILIES)[number % len(FAMILIES)]


def list_synthetic(num_clips: int, seed: int, first: int = 0) -> list[Clip]:
    """Clips ``first .. first + num_clips - 1`` of series ``seed``, not yet rendered.

    Raises:
        UserError: fewer than one clip, or a negative number.
    """
    if num_clips < 1 or first < 0:
        raise UserError(
            f"{num_clips} synthetic clips from number {first}: write at least 1 clip, from number 0 or later"
        )
    numbers = range(first, first + num_clips)
    return [
        Clip(
            key=f"synthetic_{seed}_{number:06d}",
            path=f"synthetic clip {number} of seed {seed}",
            labels=(class_of(number),),
            metadata=_describe(seed, number, draw_factors(seed, number)),
        )
        for number in numbers
    ]


def read_synthetic(clip: Clip) -> bytes:
    """The media file of a clip from :func:`list_synthetic`."""
    rendered = synthetic_clip(int(clip.metadata["seed"]), int(clip.metadata["number"]))
    return encode_clip(rendered.frames, FRAMES_PER_SECOND, rendered.waveform)


def make_synthetic_shards(num_clips: int, out: Path, seed: int = 0, first: int = 0, **options: Any) -> ShardIndex:
    """Write clips ``first .. first + num_clips - 1`` of series ``seed`` as shards; two ranges share no clip.

    ``options`` are those of :func:`mavil.data.shards.pack.make_shards`; nothing is looked at twice, for clips are rendered
    anew each time they are read.

    Raises:
        UserError: as :func:`list_synthetic` and :func:`mavil.data.shards.pack.make_shards`.
    """
    clips = list_synthetic(num_clips, seed, first)
    return make_shards(clips, out, **{"read": read_synthetic, "seed": seed, "depth": "none", **options})


def _render_sound(name: str, factors: Factors, noise: np.random.Generator) -> np.ndarray:
    """``[L]`` float32: background noise throughout, the class's sound from the onset on."""
    length, onset = round(SECONDS * SAMPLE_RATE), round(factors.onset_seconds * SAMPLE_RATE)
    waveform = (0.002 + 0.008 * factors.noise) * noise.standard_normal(length, dtype=np.float32)
    peak = 0.6 * 10 ** (-LOUDNESS_DB / 20 * (1 - factors.loudness))
    sound = FAMILIES[name].sound(np.arange(length - onset, dtype=np.float32) / SAMPLE_RATE, factors, noise)
    waveform[onset:] += (peak * sound).astype(np.float32)
    return waveform


def _render_frames(name: str, factors: Factors, texture: np.random.Generator) -> np.ndarray:
    """``[T, SIZE, SIZE, 3]`` uint8: a dark textured background, the class's shape from the onset on."""
    family, num_frames = FAMILIES[name], round(SECONDS * FRAMES_PER_SECOND)
    frames = np.repeat(_background(factors, texture)[None], num_frames, axis=0)
    shown = frames[round(factors.onset_seconds * FRAMES_PER_SECOND) :]
    turns = np.arange(len(shown)) / FRAMES_PER_SECOND * factors.rate_hz / BEATS_PER_TURN
    pose = family.motion(turns)
    octaves = np.log(factors.pitch_hz / PITCH_HZ[0]) / np.log(PITCH_HZ[1] / PITCH_HZ[0])
    rows = [
        0.32 + 0.36 * factors.horizontal + pose.right,
        0.74 - 0.48 * octaves + pose.down,
        0.8 * (factors.angle - 0.5) + pose.angle,
        (0.15 + 0.15 * factors.loudness) * pose.scale,
    ]
    colour = 255 * np.array(colorsys.hsv_to_rgb(factors.hue, 0.4, 1.0), np.float32)
    for frame, right, down, angle, radius in zip(shown, *(row + 0 * turns for row in rows), strict=True):
        _draw(frame, family.shape, right * SIZE, down * SIZE, angle, radius * SIZE, colour)
    return frames


def _draw(
    frame: np.ndarray, shape: Shape, right: float, down: float, angle: float, radius: float, colour: np.ndarray
) -> None:
    """Draw a shape with soft edges into ``[H, Wd, 3]`` uint8; place and size in pixels."""
    reach = 1.2 * radius + 1  # no shape is wider
    top, left = (max(0, int(centre - reach)) for centre in (down, right))
    box = frame[top : int(down + reach) + 1, left : int(right + reach) + 1]
    x = (np.arange(box.shape[1], dtype=np.float32) + np.float32(left + 0.5 - right)) / np.float32(radius)
    y = (np.arange(box.shape[0], dtype=np.float32) + np.float32(top + 0.5 - down))[:, None] / np.float32(radius)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    inside = (shape(x * cos + y * sin, y * cos - x * sin) * np.float32(radius) + 0.5).clip(0, 1)[..., None]
    box[:] = box + inside * (colour - box)


def _background(factors: Factors, texture: np.random.Generator) -> np.ndarray:
    """``[SIZE, SIZE, 3]`` uint8: one dark hue under clouds of eight pixels."""
    base = 255 * np.array(colorsys.hsv_to_rgb(factors.background_hue, 0.4, 0.06 + 0.12 * factors.background_light))
    clouds = np.kron(0.75 + 0.5 * texture.random((SIZE // 8, SIZE // 8)), np.ones((8, 8)))
    return (clouds[..., None] * base).astype(np.uint8)


def _describe(seed: int, number: int, factors: Factors) -> dict[str, str]:
    values = {name: f"{value:.6g}" for name, value in asdict(factors).items()}
    return {"seed": str(seed), "number": str(number), **values}


def _generator(seed: int, number: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng(sample_seed("synthetic", seed, number, purpose))


def _between(limits: tuple[float, float], share: float) -> float:
    """The point at that share of the way from the lower to the upper limit, on a logarithmic scale."""
    return float(limits[0] * (limits[1] / limits[0]) ** share)
