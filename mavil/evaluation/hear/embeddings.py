"""Embeddings of every clip of a task, once per checkpoint, kept on disk.

    SPLIT.npy     [rows, D] float32: a row per clip (scenes) or per frame (events), files in the order of the table
    SPLIT.json    which model and task they are of, and file, number of rows and timestamps in ms of each file

Both appear when the split is complete. Until then ``SPLIT.npy.partial`` and ``SPLIT.jsonl.partial`` grow clip by clip, and
whoever comes after an interruption goes on behind the last whole line.
"""

from __future__ import annotations

import functools
import io
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
import torch
from torch import Tensor

from mavil.evaluation.hear.models import Embedder
from mavil.evaluation.hear.sounds import ahead, read_wav
from mavil.evaluation.hear.stored import digest, read_json, write_json
from mavil.evaluation.hear.tasks import HearTask, sounds_of
from mavil.structs import UserError

Progress = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and of how much."""
_HEADER_BYTES = 128
"""Of a ``.npy`` with a table of two axes: the header can be written last, when the number of rows is known."""
_PROBE_TOLERANCE = 1e-2
"""Of the probe's largest number. CPU and GPU, or one and several threads, differ by less; another pooling by much more."""


@dataclass(frozen=True)
class SplitEmbeddings:
    """``embeddings`` ``[rows, D]`` float32, mapped from disk; ``num_rows`` of each of ``files``.

    ``timestamps_ms`` ``[rows]`` only for events. ``digest`` changes when the model, the clips or their order do.
    """

    embeddings: np.ndarray
    files: list[str]
    num_rows: list[int]
    timestamps_ms: np.ndarray | None
    digest: str

    def per_file(self) -> Iterator[tuple[str, slice]]:
        """Each file and its rows."""
        start = 0
        for name, count in zip(self.files, self.num_rows, strict=True):
            yield name, slice(start, start + count)
            start += count


def file_orders(task: HearTask) -> dict[str, list[str]]:
    """The order in which each split's files are stored: shuffled once, as heareval does with seed 0 [source heareval].

    It matters to those who train without shuffling, whose batches are the same in every epoch.
    """
    generator = random.Random(0)
    orders = {}
    for split in task.splits:
        files = list(task.truth[split])
        generator.shuffle(files)
        orders[split] = files
    return orders


def embed_task(task: HearTask, embedder: Embedder, folder: Path, progress: Progress) -> dict[str, SplitEmbeddings]:
    """Embeddings of all splits; those that ``folder`` has already, from this model and these clips, are not made again.

    Raises:
        UserError: a sound file is missing or damaged, or the model refuses it; the message names the file.
    """
    sounds, rate = sounds_of(task, embedder.sample_rate_hz)
    folder.mkdir(parents=True, exist_ok=True)
    identity = embedder.identity()
    splits = {}
    for split, files in file_orders(task).items():
        key = digest(identity, task.is_event, files, rate)
        stored = _Store(folder, split, key)
        if not stored.is_complete():
            reader = _Reader(sounds / split, rate, embedder.sample_rate_hz)
            stored.fill(task, files, embedder, reader, functools.partial(progress, split))
        splits[split] = stored.read()
    return splits


def batch_clips(task: HearTask, sample_rate_hz: int) -> int:
    """Clips per call of the model: 84 s of sound at 16 kHz, fewer at higher rates; one where lengths vary [source heareval]."""
    if not task.duration_seconds:
        return 1
    return max(1, int(0.7 * (120 / task.duration_seconds) * (16000 / sample_rate_hz)))


def same_probe(before: Sequence[float], now: Sequence[float]) -> bool:
    """Whether two embeddings of the probe are of one model."""
    if len(before) != len(now):
        return False
    largest = max(map(abs, (*before, *now)), default=0.0)
    return all(abs(x - y) <= _PROBE_TOLERANCE * largest for x, y in zip(before, now, strict=True))


@dataclass(frozen=True)
class _Reader:
    folder: Path
    stored_hz: int
    wanted_hz: int

    def batch(self, files: Sequence[str]) -> list[tuple[list[str], Tensor]]:
        """The clips ``[n, samples]`` with their names, together as long as neighbours have one length."""
        groups: list[tuple[list[str], list[Tensor]]] = []
        for name in files:
            waveform = read_wav(self.folder / name, self.stored_hz, self.wanted_hz)
            if not groups or len(groups[-1][1][0]) != len(waveform):
                groups.append(([], []))
            groups[-1][0].append(name)
            groups[-1][1].append(waveform)
        return [(names, torch.stack(waveforms)) for names, waveforms in groups]


@dataclass
class _Store:
    """The files of one split."""

    folder: Path
    split: str
    key: str
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _width: int = 0

    def is_complete(self) -> bool:
        """Whether the split is there, of this model and these clips."""
        stored = read_json(self._path(".json"))
        return stored is not None and stored.get("key") == self.key and self._path(".npy").is_file()

    def read(self) -> SplitEmbeddings:
        stored = read_json(self._path(".json"))
        assert stored is not None
        times = [entry["timestamps_ms"] for entry in stored["files"] if "timestamps_ms" in entry]
        return SplitEmbeddings(
            np.load(self._path(".npy"), mmap_mode="r"),
            [entry["file"] for entry in stored["files"]],
            [entry["rows"] for entry in stored["files"]],
            np.concatenate([np.asarray(entry, dtype=np.float64) for entry in times]) if times else None,
            self.key,
        )

    def fill(
        self,
        task: HearTask,
        files: list[str],
        embedder: Embedder,
        reader: _Reader,
        progress: Callable[[int, int], None],
    ) -> None:
        """Embed what is missing, then give both files their names."""
        self._path(".json").unlink(missing_ok=True)
        self._resume(files)
        left, size = files[len(self._rows) :], batch_clips(task, embedder.sample_rate_hz)
        batches = [left[start : start + size] for start in range(0, len(left), size)]
        with open(self._path(".npy.partial"), "r+b") as data, open(self._path(".jsonl.partial"), "a") as table:
            progress(len(self._rows), len(files))
            for groups in ahead(reader.batch, batches):
                for names, audio in groups:
                    self._append(names, _embedded(names, audio, embedder, task.is_event), data, table)
                progress(len(self._rows), len(files))
            self._write_header(data)
        os.replace(self._path(".npy.partial"), self._path(".npy"))
        write_json(self._path(".json"), {"key": self.key, "split": self.split, "files": self._rows})
        self._path(".jsonl.partial").unlink()

    def _path(self, suffix: str) -> Path:
        return self.folder / f"{self.split}{suffix}"

    def _resume(self, files: list[str]) -> None:
        """Take over what an interrupted run left, as far as it is whole and of the same model and clips."""
        data, table = self._path(".npy.partial"), self._path(".jsonl.partial")
        try:
            lines = [json.loads(line) for line in table.read_text().splitlines(keepends=True) if line.endswith("\n")]
            first, *entries = lines
            is_ours = first == {"key": self.key} and [e["file"] for e in entries] == files[: len(entries)]
            width = entries[0]["width"] if entries else 0
            end = _HEADER_BYTES + 4 * width * sum(entry["rows"] for entry in entries)
            if not is_ours or data.stat().st_size < end:
                raise ValueError("of another model, or data that never reached the disk")
        except (OSError, ValueError, KeyError, TypeError):
            entries, width, end = [], 0, _HEADER_BYTES
            data.write_bytes(b"\0" * _HEADER_BYTES)
        os.truncate(data, end)
        kept = [json.dumps(entry) + "\n" for entry in ({"key": self.key}, *entries)]
        table.write_text("".join(kept))
        self._rows, self._width = entries, width

    def _append(self, names: list[str], values: list[_Embedded], data: BinaryIO, table: TextIO) -> None:
        data.seek(0, os.SEEK_END)
        for name, value in zip(names, values, strict=True):
            count, width = value.rows.shape
            if self._width and width != self._width:
                raise UserError(
                    f"{self.split}/{name}: embedding of {width} numbers, the clips before had {self._width}"
                )
            self._width = width
            data.write(np.ascontiguousarray(value.rows).tobytes())
            entry: dict[str, Any] = {"file": name, "rows": count, "width": width}
            if value.timestamps_ms is not None:
                entry["timestamps_ms"] = value.timestamps_ms.tolist()
            self._rows.append(entry)
        # First the numbers, then the lines that speak of them.
        data.flush()
        table.writelines(json.dumps(entry) + "\n" for entry in self._rows[-len(names) :])
        table.flush()

    def _write_header(self, data: BinaryIO) -> None:
        shape = (sum(entry["rows"] for entry in self._rows), self._width)
        header = io.BytesIO()
        description = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, description)
        assert header.tell() == _HEADER_BYTES
        data.seek(0)
        data.write(header.getvalue())
        data.flush()
        os.fsync(data.fileno())


@dataclass(frozen=True)
class _Embedded:
    """``rows`` ``[r, D]`` of one clip and, of frames, ``timestamps_ms`` ``[r]``."""

    rows: np.ndarray
    timestamps_ms: np.ndarray | None = None


def _embedded(names: list[str], audio: Tensor, embedder: Embedder, is_event: bool) -> list[_Embedded]:
    try:
        if not is_event:
            return [_Embedded(row[None]) for row in embedder.scenes(audio)]
        values, times = embedder.frames(audio)
    except UserError as error:
        raise UserError(f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {error}") from None
    return [_Embedded(rows, at) for rows, at in zip(values, times, strict=True)]
