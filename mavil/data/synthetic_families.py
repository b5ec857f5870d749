"""The families of sounds and moving shapes that make up the classes of the synthetic clips.

A sound takes the seconds since the onset ``[n]`` and gives values ``[n]`` within about [-1, 1]. A shape takes coordinates
in radii from its centre (``u`` to the right, ``v`` down) and gives the signed distance to its outline in radii, positive
inside. A motion takes the turns since the onset ``[T]`` and gives one :class:`Pose` for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mavil.structs import SAMPLE_RATE


@dataclass(frozen=True)
class Factors:
    """Everything that makes one clip. Those without a unit in the name lie in [0, 1)."""

    onset_seconds: float
    pitch_hz: float
    loudness: float
    rate_hz: float
    hue: float
    background_hue: float
    background_light: float
    horizontal: float
    angle: float
    carrier_phase: float
    noise: float


class Pose(NamedTuple):
    """What a motion adds, each a number or one value per frame: shifts in frame sides, radians, a factor of the size."""

    right: Any = 0.0
    down: Any = 0.0
    angle: Any = 0.0
    scale: Any = 1.0


Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Family:
    """What the clips of one class have in common."""

    sound: Callable[[np.ndarray, Factors, np.random.Generator], np.ndarray]
    shape: Shape
    motion: Callable[[np.ndarray], Pose]


def _sine(cycles: np.ndarray, f: Factors) -> np.ndarray:
    return np.sin(2 * np.pi * (cycles + f.carrier_phase))


def _cycles(frequency_hz: np.ndarray) -> np.ndarray:
    return np.cumsum(frequency_hz, dtype=np.float64) / SAMPLE_RATE


def _tone(t: np.ndarray, f: Factors, noise: np.random.Generator) -> np.ndarray:
    return _sine(f.pitch_hz * t, f) * (0.3 + 0.7 * np.exp(-3 * (t * f.rate_hz % 1)))  # struck at each beat


def _chord(t: np.ndarray, f: Factors, noise: np.random.Generator) -> np.ndarray:
    cycles = _cycles(f.pitch_hz * np.where(t * f.rate_hz % 2 < 1, 1.0, 0.75))  # a fourth lower at every other beat
    # Four harmonics stay below half the sample rate at the highest pitch.
    return 0.6 * np.sum([_sine(harmonic * cycles, f) / harmonic for harmonic in range(1, 5)], axis=0)


def _bursts(t: np.ndarray, f: Factors, noise: np.random.Generator) -> np.ndarray:
    knots = t * (f.pitch_hz / 3)
    slow = noise.standard_normal(int(knots[-1]) + 2).clip(-2, 2) / 2
    band = _sine(f.pitch_hz * t, f) * np.interp(knots, np.arange(len(slow)), slow)
    return band * (t * f.rate_hz % 1 < 0.5)


def _chirp_up(t: np.ndarray, f: Factors, noise: np.random.Generator) -> np.ndarray:
    return _sine(_cycles(f.pitch_hz * 2 ** (t * f.rate_hz % 1 - 0.5)), f)


def _chirp_down(t: np.ndarray, f: Factors, noise: np.random.Generator) -> np.ndarray:
    return _sine(_cycles(f.pitch_hz * 2 ** (0.5 - t * f.rate_hz % 1)), f)


def _tremolo(t: np.ndarray, f: Factors, noise: np.random.Generator) -> np.ndarray:
    return _sine(f.pitch_hz * t, f) * (0.55 + 0.45 * np.cos(2 * np.pi * 3 * f.rate_hz * t))


def _clicks(t: np.ndarray, f: Factors, noise: np.random.Generator) -> np.ndarray:
    since_click = t % (0.5 / f.rate_hz)  # two a beat
    return np.cos(2 * np.pi * f.pitch_hz * since_click) * np.exp(-40 * since_click)


def _warble(t: np.ndarray, f: Factors, noise: np.random.Generator) -> np.ndarray:
    return _sine(_cycles(f.pitch_hz * 2 ** (0.35 * np.sin(2 * np.pi * f.rate_hz * t))), f)


def _disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return 1 - np.sqrt(u * u + v * v)


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return 0.85 - np.maximum(abs(u), abs(v))


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return 0.22 - abs(0.2 - _disc(u, v))


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.minimum(0.7 - v, 0.5 * v + 0.6 - abs(u))


def _triangle_down(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _triangle(u, -v)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.minimum(0.3 - np.minimum(abs(u), abs(v)), 1 - np.maximum(abs(u), abs(v)))


def _bar(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.minimum(1.1 - abs(u), 0.35 - abs(v))


def _crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.minimum(_disc(u, v), 0.25 - _disc(u - 0.5, v))


def _bounce(turns: np.ndarray) -> Pose:
    return Pose(right=0.16 * (abs(4 * (turns % 1) - 2) - 1))


def _rotate(turns: np.ndarray) -> Pose:
    return Pose(angle=np.pi / 2 * turns)  # to the next corner of a square


def _pulse(turns: np.ndarray) -> Pose:
    return Pose(scale=1 + 0.3 * np.sin(2 * np.pi * turns))


def _rise(turns: np.ndarray) -> Pose:
    return Pose(down=0.2 * (0.5 - turns % 1))


def _fall(turns: np.ndarray) -> Pose:
    return Pose(down=0.2 * (turns % 1 - 0.5))


def _sway(turns: np.ndarray) -> Pose:
    return Pose(angle=0.7 * np.sin(2 * np.pi * turns))


def _jump(turns: np.ndarray) -> Pose:
    return Pose(right=np.where(turns % 1 < 0.5, -0.14, 0.14))


def _orbit(turns: np.ndarray) -> Pose:
    return Pose(right=0.12 * np.cos(2 * np.pi * turns), down=0.12 * np.sin(2 * np.pi * turns))


FAMILIES: dict[str, Family] = {
    "tone": Family(_tone, _disc, _bounce),
    "chord": Family(_chord, _square, _rotate),
    "bursts": Family(_bursts, _ring, _pulse),
    "chirp_up": Family(_chirp_up, _triangle, _rise),
    "chirp_down": Family(_chirp_down, _triangle_down, _fall),
    "tremolo": Family(_tremolo, _cross, _sway),
    "clicks": Family(_clicks, _bar, _jump),
    "warble": Family(_warble, _crescent, _orbit),
}
"""Class name -> family. The order is part of the series: clip ``number`` has class ``number`` modulo their count."""
