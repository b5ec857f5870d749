"""Writing stored embeddings so that a killed job goes on where it was.

::

    OUT/about.json                      what the embeddings are made of and with, ``state`` ``unfinished``
    OUT/parts/000012.safetensors        what became of clips 12 k to 13 k - 1 of the inputs, k = ``clips_per_part``

A part appears when it is whole. What is left to do are the parts that are not there, whoever makes them: a job may go on with
another number of processes. When all are there they are put together, in their order, into the files of
:mod:`mavil.embedder.stored`; then ``about.json`` is replaced by one that says ``complete``, and the parts are removed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mavil.atomic_files import sync, write_text
from mavil.data.sources.listing import Reject, write_rejects
from mavil.embedder import stored_files
from mavil.embedder.stored import ABOUT, COMPLETE, FORMAT, UNFINISHED, described_files, read_about
from mavil.embedder.stored_files import Column, Piece, Rows
from mavil.structs import Modality, UserError

LEFT_OUT = "left_out.csv"
PARTS = "parts"
_COMPARED = {
    "weights_digest": "the model's weights",
    "inputs_digest": "the inputs, or a file among them that has changed",
    "modalities": "--modalities",
    "rows": "--windows or --mean",
    "hop_seconds": "--hop",
    "precision": "--precision",
    "file_format": "--format",
    "fused": "--fused",
    "window_seconds": "the model's windows",
    "clips_listed": "the number of clips",
    "clips_per_part": "the size of a part",
}
"""What must be the same for a job to go on, and what people call it."""
_WITHOUT_MEANING = ("lock.", ".")


@dataclass(frozen=True)
class Settings:
    """What stored embeddings are made of and with.

    Attributes:
        model: what ``mavil.load`` was given.
        checkpoint: of a run; likewise.
        weights_digest: of the model's tensors.
        modalities: Z by modality.
        rows: ``windows`` or ``clips``.
        window_seconds: length of one input by modality, s.
        hop_seconds: from one window to the next, s; ``None`` is the window's length.
        precision: of the model's matrix products.
        inputs: as the user named them.
        inputs_digest: changes with any clip of theirs.
        clips_listed: in all inputs.
        clips_per_part: clips between two commits.
        file_format: one of :data:`mavil.embedder.stored_files.FILE_FORMATS`.
        fused: widths of the halves of embeddings of both modalities together; empty: there are none.
    """

    model: str
    checkpoint: str
    weights_digest: str
    modalities: dict[Modality, int]
    rows: str
    window_seconds: dict[Modality, float]
    hop_seconds: float | None
    precision: str
    inputs: list[str]
    inputs_digest: str
    clips_listed: int
    clips_per_part: int
    file_format: stored_files.FileFormat
    fused: dict[Modality, int] = field(default_factory=dict)

    @property
    def widths(self) -> dict[Column, int]:
        """Z by column."""
        return stored_files.widths_of_columns(self.modalities, self.fused)

    @property
    def num_parts(self) -> int:
        """The last one may hold fewer clips."""
        return -(-self.clips_listed // self.clips_per_part)

    def clips_in(self, number: int) -> int:
        """Clips of one part."""
        return min(self.clips_per_part, self.clips_listed - number * self.clips_per_part)

    def about(self) -> dict[str, Any]:
        """As it stands in ``about.json`` from the beginning on."""
        named = {name: getattr(self, name) for name in (*_COMPARED, "inputs") if name != "weights_digest"}
        if not self.fused:
            del named["fused"]
        model = {"source": self.model, "checkpoint": self.checkpoint, "weights_digest": self.weights_digest}
        return {"format": FORMAT, "state": UNFINISHED, "model": model, **named}


def state_of(folder: Path, settings: Settings) -> str | None:
    """``complete`` or ``unfinished`` embeddings of these settings; ``None`` where a new folder can be begun. Only looks.

    Raises:
        UserError: the folder holds embeddings made otherwise, or something else.
    """
    about = read_about(folder)
    if about is None:
        try:
            others = [name for name in os.listdir(folder) if not name.startswith(_WITHOUT_MEANING)]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be a folder of embeddings ({error.strerror}): name another one"
            ) from None
        if others:
            raise UserError(f"{folder} holds something else ({sorted(others)[0]} ...): name an empty or a new folder")
        return None
    before, now = ({**a, "weights_digest": a.get("model", {}).get("weights_digest")} for a in (about, settings.about()))
    changed = [what for name, what in _COMPARED.items() if before.get(name) != json.loads(json.dumps(now.get(name)))]
    if changed:
        raise UserError(
            f"{folder} holds embeddings of other settings (other: {', '.join(changed)}): name another folder, or remove this one"
        )
    return str(about.get("state"))


class PartWriter:
    """The parts of one folder. Several processes may write different ones; :meth:`begin` and :meth:`finish` are for one."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder, self._settings = folder, settings
        self._parts = folder / PARTS

    def begin(self) -> None:
        """Make the folder, or find it; what cannot be read of its parts is removed, to be made again.

        Raises:
            UserError: it cannot be written.
        """
        with self._writing():
            self._parts.mkdir(parents=True, exist_ok=True)
            if not (self._folder / ABOUT).exists():
                write_text(self._folder / ABOUT, json.dumps(self._settings.about(), indent=1) + "\n")
            for number in sorted(self._there()):
                try:
                    with safe_open(self._path(number), framework="numpy") as file:
                        json.loads(file.metadata()["left_out"])
                except (OSError, ValueError, KeyError, TypeError, SafetensorError):
                    self._path(number).unlink()

    def missing(self) -> list[int]:
        """Numbers of the parts that are still to be made."""
        return sorted(set(range(self._settings.num_parts)) - self._there())

    def write(self, number: int, piece: Piece, left_out: Sequence[Reject]) -> None:
        """Commit a part.

        Raises:
            UserError: the disk is full, or something else keeps it from being written.
        """
        rows = piece.rows
        arrays = {"starts": rows.starts, "ends": rows.ends}
        for column in self._settings.widths:
            arrays[f"{column}.present"] = rows.present[column]
            arrays[f"{column}.values"] = piece.values[column]
        told = {"keys": rows.keys, "sources": rows.sources, "left_out": [astuple(reject) for reject in left_out]}
        data = save(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()},
            {name: json.dumps(value) for name, value in told.items()},
        )
        path = self._path(number)
        aside = path.with_name(f".{path.name}.partial")
        with self._writing():
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
            sync(self._parts)

    def left_out(self) -> list[Reject]:
        """Of all parts that are there."""
        return [reject for number in sorted(self._there()) for reject in self._read(number)[1]]

    def write_left_out(self, more: Sequence[Reject] = ()) -> None:
        """Write ``left_out.csv``; ``more`` are of parts that are not there."""
        aside = self._folder / f".{LEFT_OUT}.partial"
        with self._writing():
            write_rejects(aside, [*self.left_out(), *more])
            os.replace(aside, self._folder / LEFT_OUT)

    def finish(self) -> dict[str, Any]:
        """Put all parts together; what ``about.json`` then says.

        Raises:
            UserError: it cannot be written.
        """
        num_rows = 0
        causes: Counter[str] = Counter()
        for number in range(self._settings.num_parts):
            piece, left_out = self._read(number)
            num_rows += len(piece.rows.keys)
            causes.update(reject.cause for reject in left_out)
        settings = self._settings
        pieces = (self._read(number)[0] for number in range(settings.num_parts))
        with self._writing():
            names = stored_files.write(self._folder, settings.file_format, settings.widths, num_rows, pieces)
            self.write_left_out()
            files, digest = described_files(self._folder, names)
            about = settings.about() | {
                "state": COMPLETE,
                "clips": settings.clips_listed - causes.total(),
                "num_rows": num_rows,
                "left_out": dict(causes.most_common()),
                "files": files,
                "digest": digest,
            }
            sync(self._folder)
            write_text(self._folder / ABOUT, json.dumps(about, indent=1) + "\n")
            shutil.rmtree(self._parts, ignore_errors=True)
        return about

    def _there(self) -> set[int]:
        return {int(path.stem) for path in self._parts.glob("*.safetensors") if path.stem.isdecimal()}

    def _path(self, number: int) -> Path:
        return self._parts / f"{number:06d}.safetensors"

    def _read(self, number: int) -> tuple[Piece, list[Reject]]:
        with safe_open(self._path(number), framework="numpy") as file:
            told = {name: json.loads(text) for name, text in file.metadata().items()}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        columns = self._settings.widths
        present = {column: arrays[f"{column}.present"] for column in columns}
        rows = Rows(told["keys"], told["sources"], arrays["starts"], arrays["ends"], present)
        piece = Piece(rows, {column: arrays[f"{column}.values"] for column in columns})
        return piece, [Reject(*reject) for reject in told["left_out"]]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._folder}: cannot be written ({error.strerror or error}): make space, or name another folder; what is "
                "finished stays, and the same command goes on there"
            ) from None
