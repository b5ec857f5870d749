"""A media file that somebody brings as a query, decoded in a process of its own with limits on time, memory and length."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import TimeoutError as TaskTimeout
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pebble import ProcessExpired, ProcessPool

from mavil.data.media import DecodeError, FrameWindow
from mavil.data.media.containers import open_media, read_packets, start_of, video_stream
from mavil.data.media.picture_track import read_frames, read_frames_of_all
from mavil.data.media.sound_track import read_waveform
from mavil.data.worker_processes import prepare_worker, worker_context
from mavil.structs import SAMPLE_RATE, Modality, UserError

TRACKS: dict[Modality, str] = {"audio": "sound", "video": "picture"}
"""What people call the modalities of a file."""
MOST_FRAME_BYTES = 2**28
"""Of decoded frames of one query; twenty minutes at 1 frame a second and 256 x 256."""
MEMORY_BYTES = 2**31
"""What the process may allocate beyond what it starts with. A film of 8K takes half a gibibyte to decode [our choice]."""
DEADLINE_SECONDS = 60.0
"""For decoding one query [our choice: ten times what minutes of a film take on one core]."""
QUERIES_PER_PROCESS = 200
"""After so many a process is replaced: decoders lose a little memory over damaged files."""
_STARTS = 3


@dataclass(frozen=True)
class Wanted:
    """What of a query to decode: the modalities, how many seconds from its beginning, and how its frames are taken."""

    modalities: tuple[Modality, ...]
    most_seconds: float
    frames_per_second: float
    short_side: int


@dataclass(frozen=True)
class DecodedQuery:
    """Sound ``[L]`` float32 mono at 16 kHz and frames ``[T, H, Wd, 3]`` uint8; ``None`` where there is none.

    ``problems`` says by modality why; ``cut`` after how many seconds what was longer was cut off.
    """

    sound: np.ndarray | None = None
    frames: np.ndarray | None = None
    problems: dict[Modality, str] = field(default_factory=dict)
    cut: dict[Modality, float] = field(default_factory=dict)

    def has(self, modality: Modality) -> bool:
        """Whether it was decoded."""
        return (self.sound if modality == "audio" else self.frames) is not None


def decode_query(path: str, wanted: Wanted) -> DecodedQuery:
    """Decode a file's beginning; what cannot be decoded is in ``problems``."""
    values: dict[Modality, np.ndarray] = {}
    problems: dict[Modality, str] = {}
    cut: dict[Modality, float] = {}
    for modality in wanted.modalities:
        try:
            read = _sound if modality == "audio" else _frames
            values[modality], seconds = read(path, wanted)
        except DecodeError as error:
            problems[modality] = _told(error, path)
            continue
        if seconds is not None:
            cut[modality] = seconds
    return DecodedQuery(values.get("audio"), values.get("video"), problems, cut)


def _told(error: DecodeError, path: str) -> str:
    """What was wrong, without where an upload lay for a moment."""
    return error.told(path).replace(path, "the file")


def _sound(path: str, wanted: Wanted) -> tuple[np.ndarray, float | None]:
    most = round(wanted.most_seconds * SAMPLE_RATE)
    with open_media(path) as container:
        # A little more shows whether there was more.
        sound = read_waveform(container, 0.0, wanted.most_seconds + 0.1)
    return np.ascontiguousarray(sound[:most]), wanted.most_seconds if len(sound) > most else None


def _frames(path: str, wanted: Wanted) -> tuple[np.ndarray, float | None]:
    with open_media(path) as container:
        seconds, size = _picture(container, wanted)
    frame_bytes = 3 * size[0] * size[1]
    most = max(1, min(round(wanted.most_seconds * wanted.frames_per_second), MOST_FRAME_BYTES // frame_bytes))
    available = max(1, math.floor(seconds * wanted.frames_per_second + 1e-3))
    window = FrameWindow(min(most, available), wanted.frames_per_second, wanted.short_side)
    with open_media(path) as container:
        frames = read_frames(container, window, 0.0)
    if frames is None:
        with open_media(path) as container:
            frames = read_frames_of_all(container, window, 0.0)
    is_cut = available > most
    return np.ascontiguousarray(frames.transpose(0, 2, 3, 1)), most / wanted.frames_per_second if is_cut else None


def _picture(container: object, wanted: Wanted) -> tuple[float, tuple[int, int]]:
    """How long the picture track is, s, told no further than it matters; and the size of its frames when shrunk, pixels."""
    stream = video_stream(container)  # type: ignore[arg-type]
    end = 0.0
    for packet in read_packets(container, stream):  # type: ignore[arg-type]
        if packet.size and packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * stream.time_base) - start_of(container))  # type: ignore[arg-type]
        if end > wanted.most_seconds + 1:
            break
    width, height = max(1, stream.codec_context.width), max(1, stream.codec_context.height)
    scale = min(1.0, wanted.short_side / min(width, height))
    return end, (max(1, round(width * scale)), max(1, round(height * scale)))


class QueryDecoder:
    """Processes that decode queries, at most ``workers`` at once; one that hangs, dies or wants too much memory is replaced.

    Its methods may be called from several threads.

    Args:
        workers: how many processes.
        deadline_seconds: the longest that one query may take.
        memory_bytes: what a process may allocate beyond what it starts with; Linux only.
        function: what runs there; another one only in tests.
    """

    def __init__(
        self,
        workers: int = 1,
        deadline_seconds: float = DEADLINE_SECONDS,
        memory_bytes: int = MEMORY_BYTES,
        function: Callable[[str, Wanted], DecodedQuery] = decode_query,
    ) -> None:
        self._workers, self._deadline, self._memory, self._function = workers, deadline_seconds, memory_bytes, function
        self._lock = threading.Lock()
        self._pool = self._new_pool()

    def warm_up(self) -> None:
        """Have the processes started, which takes a second or more, while the caller does something else."""
        pool = self._working_pool()
        for _ in range(self._workers):
            pool.schedule(_prepared)

    def decode(self, path: Path, wanted: Wanted, name: str) -> DecodedQuery:
        """What :func:`decode_query` gives; ``name`` is what messages call the file.

        Raises:
            UserError: nothing of it can be decoded, not in time, or not in the memory allowed.
        """
        for _ in range(_STARTS):
            pool = self._working_pool()
            try:
                decoded: DecodedQuery = pool.schedule(
                    self._function, args=(os.fspath(path), wanted), timeout=self._deadline
                ).result()
            except TaskTimeout:
                raise UserError(
                    f"{name}: decoding takes longer than {self._deadline:g} s, so it was stopped; cut out the part you mean"
                ) from None
            except MemoryError:
                raise UserError(f"{name}: decoding takes too much memory; cut out the part you mean") from None
            except ProcessExpired:
                raise UserError(f"{name}: its decoder crashed or ran out of memory; convert it, e.g. to MP4") from None
            except (BrokenProcessPool, RuntimeError):  # another query took the whole pool along
                continue
            if not any(decoded.has(modality) for modality in wanted.modalities):
                raise UserError(f"{name}: {_problem(decoded, wanted)}")
            return decoded
        raise RuntimeError("the processes that decode queries end before they have done anything")

    def close(self) -> None:
        """End the processes, whatever they are at."""
        with self._lock:
            self._pool.stop()
            self._pool.join()

    def __enter__(self) -> QueryDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _working_pool(self) -> ProcessPool:
        with self._lock:
            if not self._pool.active:
                with contextlib.suppress(Exception):
                    self._pool.stop()
                    self._pool.join()
                self._pool = self._new_pool()
            return self._pool

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(
            self._workers,
            max_tasks=QUERIES_PER_PROCESS,
            initializer=_prepare,
            initargs=(self._memory,),
            context=worker_context("mavil"),
        )


def _prepared() -> None:
    """What the first task of a process does."""


def _prepare(memory_bytes: int) -> None:
    prepare_worker()
    with contextlib.suppress(ImportError, OSError, ValueError):  # other systems have neither this limit nor this file
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[5])  # data and stack
        most = pages * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _problem(decoded: DecodedQuery, wanted: Wanted) -> str:
    """One sentence on a file of which nothing can be used."""
    problems = list(dict.fromkeys(decoded.problems.values()))
    if len(wanted.modalities) > 1 and len(problems) > 1:
        reasons = "; ".join(f"{TRACKS[m]}: {reason}" for m, reason in decoded.problems.items())
        return f"nothing in it can be decoded ({reasons}); give a file of sound or film"
    reason = problems[0] if problems else "it holds nothing"
    if reason.startswith("the file has no "):
        return f"{reason}, and only that was asked for; search by another modality, or give another file"
    return f"it cannot be decoded ({reason}); give a file of sound or film"
