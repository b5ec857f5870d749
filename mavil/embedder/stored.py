"""Embeddings of many clips on disk: what ``mavil embed`` writes and ``mavil search``, ``mavil serve`` and ``mavil index`` read.

::

    OUT/
        about.json              the model, the windows, the inputs, counts, size and SHA-256 of the files below
        rows.csv                key, source, start, end, audio, video and perhaps fused (1: the row has it), a line per row
        embeddings.safetensors  "audio", "video" and perhaps "fused", [n, Z] float32, a row per line of rows.csv, in its order
        left_out.csv            clips that could not be used, with the reason; only its header if there are none
        parts/                  only until all is there: finished parts of the work, see mavil/embedder/stored_parts.py

With ``--format npy`` there are ``audio.npy``, ``video.npy`` and perhaps ``fused.npy`` in place of ``embeddings.safetensors``;
with ``--format parquet`` one ``embeddings.parquet`` holds the rows and the embeddings (what a row lacks is null) and there is no
``rows.csv``. ``about.json`` is written last: a folder whose ``state`` is ``complete`` is whole.

A row is one window of one modality, or of both where their windows are the same; with ``--mean`` it is a whole clip.

``fused`` is there with ``--fused``: both modalities together, what ``m.embed`` gives for the same window. Windows of both are as
long as the longer input, so some rows have nothing else. The half of what the window lacks is zeros; ``fused`` in ``about.json``
says how wide the halves are, sound first.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mavil.atomic_files import sha256_of
from mavil.embedder import stored_files
from mavil.embedder.stored_files import Column
from mavil.structs import UserError

ABOUT = "about.json"
FORMAT = 1
UNFINISHED, COMPLETE = "unfinished", "complete"


@dataclass(frozen=True)
class EmbeddingSet:
    """Embeddings by row, in the order of the inputs and, within a clip, of time.

    Attributes:
        keys: of the clip, for each row.
        sources: the media file's path, or ``SHARD.tar::KEY`` with the shard's full path or address.
        starts, ends: ``[n]`` float32, s of the media file.
        values: ``[n, Z]`` float32 by column (``audio``, ``video``, ``fused``, if asked for), L2-normalised, mapped
            from disk where the format permits; zeros where absent.
        present: ``[n]`` bool by column: which rows have it.
        about: what ``about.json`` says. ``model.source`` and ``model.weights_digest`` say which model made them;
            ``rows`` is ``windows`` or ``clips``; ``window_seconds``, ``hop_seconds``, ``inputs``, ``clips`` (used),
            ``left_out`` (by cause), and ``digest``, which changes with any row or value.
    """

    keys: list[str]
    sources: list[str]
    starts: np.ndarray
    ends: np.ndarray
    values: dict[Column, np.ndarray]
    present: dict[Column, np.ndarray]
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.keys)


def read_embeddings(folder: str | Path) -> EmbeddingSet:
    """The embeddings in a folder that ``mavil embed`` has finished.

    Raises:
        UserError: there is no such folder, it is unfinished or damaged, or its format needs a package that is not there.
    """
    folder = Path(folder)
    about = read_about(folder)
    if about is None:
        raise UserError(f"{folder} holds no embeddings (no {ABOUT}): make them with mavil embed MODEL INPUTS {folder}")
    if about.get("state") != COMPLETE:
        raise UserError(f"{folder} is unfinished: run the same mavil embed again, it goes on where it stopped")
    try:
        for name, written in about["files"].items():
            if (folder / name).stat().st_size != written["bytes"]:
                raise ValueError(f"{name} has another size than it was written with")
            # All of it is read below anyway; of the embeddings only what is asked for.
            if name == stored_files.ROWS and sha256_of(folder / name) != written["sha256"]:
                raise ValueError(f"{name} is not what was written")
        widths = stored_files.widths_of_columns(about["modalities"], about.get("fused", {}))
        rows, values = stored_files.read(folder, about["file_format"], widths)
        if len(rows.keys) != about["num_rows"] or any(len(v) != about["num_rows"] for v in values.values()):
            raise ValueError(f"it does not hold the {about['num_rows']} rows that {ABOUT} states")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{folder}: the embeddings are damaged ({error}): copy the folder again, or run mavil embed into another one"
        ) from None
    return EmbeddingSet(rows.keys, rows.sources, rows.starts, rows.ends, values, rows.present, about)


def read_about(folder: Path) -> dict[str, Any] | None:
    """What ``about.json`` says; ``None`` where there is none.

    Raises:
        UserError: it cannot be read, or was written by another version.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / ABOUT}: cannot be read ({error}): copy the folder again") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(
            f"{folder / ABOUT}: was not written by this version of mavil embed (format {FORMAT}): make the embeddings anew"
        )
    return about


def described_files(folder: Path, names: list[str]) -> tuple[dict[str, dict[str, Any]], str]:
    """Size and SHA-256 of each file, and one digest of all of them."""
    files: dict[str, dict[str, Any]] = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names
    }
    return files, hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
