"""Where every clip lies in its shard, and what weighted sampling must know of it, for all clips of a set.

Two files beside the shards: ``clips.npy`` has one row per clip, in the order of the shards; ``labels.npz`` the clips' labels
by number. Both are opened in no time however many clips there are, and any clip is read with one seek.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mavil.structs import UserError

CLIPS, LABELS = "clips.npy", "labels.npz"
ROW = np.dtype(
    [
        ("offset", "<i8"),
        ("media_at", "<i4"),
        ("media_bytes", "<i8"),
        ("record_at", "<i8"),
        ("record_bytes", "<i4"),
        ("weight", "<f4"),
    ]
)
"""``offset``: of the clip's first tar header in its shard, bytes. ``media_at``, ``record_at``: from there to the first byte of
the media file and of the JSON record, whose lengths are ``media_bytes`` and ``record_bytes``. ``weight``: the source's."""


@dataclass(frozen=True)
class ClipTable:
    """The rows of all clips of a set of shards.

    Attributes:
        rows: ``[clips]`` of :data:`ROW`.
        label_starts: ``[clips + 1]`` int64: clip i has labels ``label_ids[label_starts[i] : label_starts[i + 1]]``.
        label_ids: ``[labels]`` int32, numbering the index's ``classes``.
    """

    rows: np.ndarray
    label_starts: np.ndarray
    label_ids: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[tuple], labels: Sequence[Sequence[int]]) -> ClipTable:
        """A table from one tuple (in the order of :data:`ROW`) and one list of label numbers per clip."""
        starts = np.zeros(len(labels) + 1, dtype="<i8")
        np.cumsum([len(ids) for ids in labels], out=starts[1:])
        ids = np.array([number for clip in labels for number in clip], dtype="<i4")
        return cls(np.array(list(rows), dtype=ROW), starts, ids)

    def __len__(self) -> int:
        return len(self.rows)

    def labels_of(self, clip: int) -> np.ndarray:
        """``[labels]`` int32: the label numbers of one clip."""
        return self.label_ids[self.label_starts[clip] : self.label_starts[clip + 1]]


def write_table(folder: Path, table: ClipTable) -> None:
    """Write both files; the same table gives the same bytes."""
    np.save(folder / CLIPS, table.rows, allow_pickle=False)
    np.savez(folder / LABELS, label_starts=table.label_starts, label_ids=table.label_ids)


def read_rows(folder: Path, num_clips: int) -> np.ndarray:
    """``[clips]`` of :data:`ROW`, memory-mapped: nothing is read before it is looked at.

    Raises:
        UserError: the file is missing, damaged, or of another number of clips.
    """
    path = folder / CLIPS
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, str(error)) from None
    if rows.dtype != ROW or rows.shape != (num_clips,):
        raise _damaged(path, f"it has {rows.shape} rows of another kind than the {num_clips} clips of the index")
    return rows


def read_table(folder: Path, num_clips: int) -> ClipTable:
    """The whole table, with labels.

    Raises:
        UserError: as :func:`read_rows`, for either file.
    """
    rows, path = read_rows(folder, num_clips), folder / LABELS
    try:
        with np.load(path, allow_pickle=False) as arrays:
            table = ClipTable(rows, arrays["label_starts"], arrays["label_ids"])
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise _damaged(path, str(error)) from None
    if table.label_starts.shape != (num_clips + 1,):
        raise _damaged(path, f"it is not of the {num_clips} clips of the index")
    return table


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: missing or damaged ({what}); copy it again or make the shards again")
