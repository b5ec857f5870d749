"""The three formats of stored embeddings, written piece by piece so that memory holds one piece, whatever the number of rows."""

from __future__ import annotations

import csv
import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from mavil.atomic_files import sync
from mavil.structs import MODALITIES, Modality, UserError

FileFormat = Literal["safetensors", "npy", "parquet"]
FILE_FORMATS: tuple[str, ...] = get_args(FileFormat)
Column = Literal["audio", "video", "fused"]
"""Embeddings of one kind: of a modality by itself, or of both together."""
FUSED: Column = "fused"
ROWS, SAFETENSORS, PARQUET = "rows.csv", "embeddings.safetensors", "embeddings.parquet"
_ALIGNMENT = 64
"""Of the first tensor in a file, bytes: what is mapped from disk is read in whole cache lines [our choice]."""


@dataclass(frozen=True)
class Rows:
    """What is known of each row beside its embeddings; see :class:`mavil.embedder.stored.EmbeddingSet`."""

    keys: list[str]
    sources: list[str]
    starts: np.ndarray
    ends: np.ndarray
    present: dict[Column, np.ndarray]


@dataclass(frozen=True)
class Piece:
    """Some rows with their embeddings ``[n, Z]`` float32 by column, zeros where a row lacks it."""

    rows: Rows
    values: dict[Column, np.ndarray]


def widths_of_columns(modalities: Mapping[Modality, int], halves: Mapping[Modality, int]) -> dict[Column, int]:
    """Z by column, in the order of the columns.

    Args:
        modalities: Z by modality.
        halves: widths of the halves of what is fused; empty where nothing is.
    """
    widths: dict[Column, int] = {m: modalities[m] for m in MODALITIES if m in modalities}
    return widths | ({FUSED: sum(halves.values())} if halves else {})


def check_installed(file_format: FileFormat) -> None:
    """See to it before the work begins that a format can be written.

    Raises:
        UserError: parquet without pyarrow.
    """
    if file_format == "parquet":
        _pyarrow()


def write(
    folder: Path, file_format: FileFormat, widths: Mapping[Column, int], num_rows: int, pieces: Iterable[Piece]
) -> list[str]:
    """Write all rows and force them to disk; the names of the files. Earlier files of these names are replaced at the end.

    Args:
        folder: where to.
        file_format: one of :data:`FILE_FORMATS`.
        widths: Z by column.
        num_rows: of all pieces together.
        pieces: in the order of the rows.
    """
    if file_format == "parquet":
        names = [PARQUET]
        _write_parquet(_aside(folder, PARQUET), widths, pieces)
    else:
        names = [ROWS, *([SAFETENSORS] if file_format == "safetensors" else [f"{column}.npy" for column in widths])]
        _write_mapped(folder, file_format, widths, num_rows, pieces)
    for name in names:
        sync(_aside(folder, name))
        os.replace(_aside(folder, name), folder / name)
    return names


def read(folder: Path, file_format: str, widths: Mapping[Column, int]) -> tuple[Rows, dict[Column, np.ndarray]]:
    """What :func:`write` wrote.

    Raises:
        UserError: parquet without pyarrow.
        ValueError, OSError, KeyError: something is not as it was written.
    """
    if file_format == "parquet":
        return _read_parquet(folder / PARQUET, widths)
    rows = _read_rows(folder / ROWS, widths)
    if file_format == "safetensors":
        return rows, _mapped_tensors(folder / SAFETENSORS, widths)
    if file_format == "npy":
        return rows, {c: np.load(folder / f"{c}.npy", mmap_mode="r", allow_pickle=False) for c in widths}
    raise ValueError(f"file_format {file_format!r} is none of {', '.join(FILE_FORMATS)}")


def _write_mapped(
    folder: Path, file_format: FileFormat, widths: Mapping[Column, int], num_rows: int, pieces: Iterable[Piece]
) -> None:
    if file_format == "safetensors":
        arrays = _new_tensors(_aside(folder, SAFETENSORS), widths, num_rows)
    else:
        arrays = {
            column: np.lib.format.open_memmap(_aside(folder, f"{column}.npy"), "w+", np.float32, (num_rows, width))
            for column, width in widths.items()
        }
    first = 0
    with open(_aside(folder, ROWS), "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(["key", "source", "start", "end", *widths])
        for piece in pieces:
            rows = piece.rows
            flags = [rows.present[column].astype(int).tolist() for column in widths]
            table.writerows(
                zip(rows.keys, rows.sources, map(str, rows.starts), map(str, rows.ends), *flags, strict=True)
            )
            for column, array in arrays.items():
                array[first : first + len(rows.keys)] = piece.values[column]
            first += len(rows.keys)
    for array in arrays.values():
        if isinstance(array, np.memmap):
            array.flush()


def _read_rows(path: Path, widths: Mapping[Column, int]) -> Rows:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.reader(file, strict=True)
        header = ["key", "source", "start", "end", *widths]
        if next(table, None) != header:
            raise ValueError(f"{path.name} does not begin with {','.join(header)}")
        columns = [list(column) for column in zip(*table, strict=True)] or [[] for _ in header]
    keys, sources, starts, ends, *flags = columns
    present = {column: np.array(own, dtype=np.str_) == "1" for column, own in zip(widths, flags, strict=True)}
    return Rows(keys, sources, np.array(starts, np.float32), np.array(ends, np.float32), present)


def _new_tensors(path: Path, widths: Mapping[Column, int], num_rows: int) -> dict[Column, np.ndarray]:
    """A safetensors file of zeros, mapped for writing; the library itself writes only what is in memory as a whole."""
    header: dict[str, Any] = {}
    end = 0
    for column, width in widths.items():
        begin, end = end, end + 4 * num_rows * width
        header[column] = {"dtype": "F32", "shape": [num_rows, width], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return _mapped_tensors(path, widths, "r+")


def _mapped_tensors(
    path: Path, widths: Mapping[Column, int], mode: Literal["r", "r+"] = "r"
) -> dict[Column, np.ndarray]:
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        if size > path.stat().st_size:
            raise ValueError(f"{path.name} has a header of {size} bytes")
        header = json.loads(file.read(size))
    found: dict[Column, np.ndarray] = {}
    for column, width in widths.items():
        num_rows, stored_width = header[column]["shape"]
        if stored_width != width or header[column]["dtype"] != "F32":
            raise ValueError(f"{path.name} holds other embeddings of {column} than {width} float32 a row")
        offset = 8 + size + header[column]["data_offsets"][0]
        # Nothing can be mapped of an empty file.
        shape = (num_rows, width)
        found[column] = np.memmap(path, np.float32, mode, offset, shape) if num_rows else np.zeros(shape, np.float32)
    return found


def _write_parquet(path: Path, widths: Mapping[Column, int], pieces: Iterable[Piece]) -> None:
    arrow, parquet = _pyarrow()
    times = [(name, arrow.float32()) for name in ("start", "end")]
    vectors = [(column, arrow.list_(arrow.float32(), width)) for column, width in widths.items()]
    schema = arrow.schema([("key", arrow.string()), ("source", arrow.string()), *times, *vectors])
    with parquet.ParquetWriter(path, schema) as writer:
        for piece in pieces:
            rows = piece.rows
            columns = [_texts(rows.keys), _texts(rows.sources), rows.starts, rows.ends]
            for column, width in widths.items():
                flat = arrow.array(np.ascontiguousarray(piece.values[column], np.float32).ravel())
                absent = arrow.array(~rows.present[column])
                columns.append(arrow.FixedSizeListArray.from_arrays(flat, width, mask=absent))
            writer.write_table(arrow.table(columns, schema=schema))


def _read_parquet(path: Path, widths: Mapping[Column, int]) -> tuple[Rows, dict[Column, np.ndarray]]:
    """All of it in memory: a compressed file cannot be mapped."""
    arrow, parquet = _pyarrow()
    try:
        table = parquet.read_table(path)
    except arrow.ArrowInvalid as error:
        raise ValueError(str(error).partition("\n")[0]) from None
    values: dict[Column, np.ndarray] = {}
    present: dict[Column, np.ndarray] = {}
    for column, width in widths.items():
        held = table[column].combine_chunks()
        present[column] = held.is_valid().to_numpy(zero_copy_only=False)
        values[column] = np.zeros((len(held), width), np.float32)
        values[column][present[column]] = held.flatten().to_numpy().reshape(-1, width)
    starts, ends = (table[name].to_numpy().astype(np.float32) for name in ("start", "end"))
    return Rows(table["key"].to_pylist(), table["source"].to_pylist(), starts, ends, present), values


def _texts(texts: list[str]) -> list[str]:
    """Names of files are bytes; those that are no UTF-8 are shown with escapes, for parquet has no place for them."""
    return [text.encode("utf-8", "backslashreplace").decode() for text in texts]


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("parquet needs pyarrow: pip install 'mavil[parquet]', or take --format safetensors") from None
    return pyarrow, pyarrow.parquet


def _aside(folder: Path, name: str) -> Path:
    return folder / f".{name}.partial"
