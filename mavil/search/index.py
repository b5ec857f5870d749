"""An index: a folder of stored embeddings, opened for search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mavil.embedder.stored import EmbeddingSet, read_embeddings
from mavil.evaluation.nearest import UnitRows, nearest
from mavil.search import faiss_files
from mavil.search.matching import Hit, Nearest, best_clips
from mavil.structs import MODALITIES, Modality, UserError

Find = Literal["audio", "video", "any"]
MOST_APPROXIMATE_ROWS = 4096
"""Rows that an approximate index is asked for at the most; it has no use for more."""


@dataclass(frozen=True)
class Clip:
    """One clip of an index: its key, where its media lies, and which modalities its rows have."""

    key: str
    source: str
    has_audio: bool
    has_video: bool


@dataclass(frozen=True)
class Match:
    """One clip found: ``start_seconds`` to ``end_seconds`` of it fit the query from ``query_start_seconds`` to
    ``query_end_seconds`` with the cosine ``score``. ``clip`` is its number in the index."""

    rank: int
    score: float
    modality: Modality
    clip: int
    key: str
    source: str
    start_seconds: float
    end_seconds: float
    query_start_seconds: float
    query_end_seconds: float

    def tree(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Gallery:
    """The rows of the index that have a modality, and how they are searched."""

    rows: np.ndarray
    clip_of_row: np.ndarray
    nearest: Nearest
    most_rows: int


class SearchIndex:
    """Stored embeddings, searched with FAISS where ``mavil index`` has added its files and it is installed, else exactly.

    Args:
        folder: written by ``mavil embed``.
        exact: leave FAISS's files alone.

    Attributes:
        clips: by number, in the order of the embeddings.
        how: how it is searched, for people.
        notices: lines to tell, e.g. that FAISS's files were built of other embeddings and are not used.

    Raises:
        UserError: no embeddings there, or none at all.
    """

    def __init__(self, folder: str | Path, exact: bool = False) -> None:
        self.folder = Path(folder)
        self.embeddings: EmbeddingSet = read_embeddings(folder)
        if not len(self.embeddings):
            raise UserError(f"{folder} holds no embeddings: embed at least one clip")
        self.notices: list[str] = []
        self._clip_of_row, self.clips = _clips(self.embeddings)
        note = None if exact else self._usable_note()
        self._galleries = {m: self._gallery(m, note) for m in MODALITIES if m in self.embeddings.values}
        kinds = "FAISS " + note.kind if note else "exact search"
        self.how = f"{kinds} over {self._num_rows()} rows of {len(self.clips)} clips"

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those of which it has embeddings, audio first."""
        return tuple(m for m in MODALITIES if self.embeddings.present.get(m, np.zeros(0)).any())

    @property
    def checkpoint(self) -> str:
        """Which of that model's, as it was named then."""
        return str(self.embeddings.about["model"].get("checkpoint", "newest"))

    @property
    def model(self) -> str:
        """The source of the model that made it, as it was named then."""
        return str(self.embeddings.about["model"]["source"])

    def check_model(self, source: str, weights_digest: str) -> None:
        """Refuse a model, loaded from ``source``, that did not make the index.

        Raises:
            UserError: its weights are others.
        """
        digest = str(self.embeddings.about["model"]["weights_digest"])
        if weights_digest != digest:
            raise UserError(
                f"{self.folder} is an index of another model: made by {self.model} (weights {digest[:12]}), but "
                f"{source} has weights {weights_digest[:12]}; name the first with --model, or embed anew"
            )

    def search(
        self, queries: np.ndarray, starts: Sequence[float], ends: Sequence[float], find: Modality, top: int
    ) -> list[Match]:
        """The best clips for a query's windows, each once, with the pair of windows that fits best.

        Args:
            queries: ``[q, Z]`` normalised embeddings of the windows.
            starts, ends: ``[q]`` s of the query.
            find: which embeddings of the index are compared.
            top: how many clips at the most.

        Raises:
            UserError: the index has none of that modality, or of another width.
        """
        if find not in self.modalities:
            has = " and ".join(self.modalities) or "nothing"
            raise UserError(
                f"{self.folder} has no embeddings of {find} (only {has}): search for what it has with --find"
            )
        gallery = self._galleries[find]
        if queries.shape[1] != self.embeddings.values[find].shape[1]:
            raise UserError(
                f"the query's embeddings have {queries.shape[1]} numbers, those of {find} in {self.folder} "
                f"{self.embeddings.values[find].shape[1]}: this model does not compare the two"
            )
        hits = best_clips(gallery.nearest, queries, gallery.clip_of_row, top, gallery.most_rows)
        return [self._match(rank, hit, gallery, starts, ends, find) for rank, hit in enumerate(hits, start=1)]

    def _match(
        self, rank: int, hit: Hit, gallery: _Gallery, starts: Sequence[float], ends: Sequence[float], find: Modality
    ) -> Match:
        row = int(gallery.rows[hit.row])
        number = int(self._clip_of_row[row])
        clip, held = self.clips[number], self.embeddings
        times = (held.starts[row], held.ends[row], starts[hit.query], ends[hit.query])
        return Match(
            rank, round(hit.score, 6), find, number, clip.key, clip.source, *(round(float(t), 3) for t in times)
        )

    def _num_rows(self) -> int:
        """Those that can be found: a row that has only sound and picture fused is compared with nothing."""
        return int(np.logical_or.reduce([self.embeddings.present[m] for m in self.modalities]).sum())

    def _usable_note(self) -> faiss_files.FaissNote | None:
        """What ``mavil index`` added, if it fits the embeddings and FAISS is there."""
        again = f"searching exactly; run mavil index {self.folder} again to use FAISS"
        try:
            note = faiss_files.read_note(self.folder)
            if note is None:
                return None
            if note.digest != self.embeddings.about["digest"]:
                self.notices.append(f"{self.folder}: its FAISS files were built of other embeddings: {again}")
                return None
            for modality in self.modalities:
                faiss_files.read(self.folder, note, modality)
        except UserError as error:
            self.notices.append(f"{error}; until then the search is exact")
            return None
        return note

    def _gallery(self, modality: Modality, note: faiss_files.FaissNote | None) -> _Gallery:
        held, values = self.embeddings.present[modality], self.embeddings.values[modality]
        rows = np.flatnonzero(held)
        clip_of_row = self._clip_of_row[rows]
        if note is not None and len(rows):
            index = faiss_files.read(self.folder, note, modality)
            most = len(rows) if faiss_files.is_exact(index) else min(len(rows), MOST_APPROXIMATE_ROWS)
            return _Gallery(rows, clip_of_row, partial(faiss_files.search, index), most)
        # Where every row has it the file stays mapped; else what is there is copied once.
        values = values if len(rows) == len(values) else values[rows]
        return _Gallery(rows, clip_of_row, _Exactly(values), len(rows))


class _Exactly:
    """Exact search in one gallery, which is measured once, when it is first asked for."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    @cached_property
    def _held(self) -> UnitRows:
        return UnitRows.of(self._values, "gallery", torch.device("cpu"))

    def __call__(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores, rows = nearest(queries, self._held, k)
        return scores.numpy(), rows.numpy()


def _clips(embeddings: EmbeddingSet) -> tuple[np.ndarray, list[Clip]]:
    """The number of each row's clip ``[n]``, and the clips by number."""
    numbers: dict[tuple[str, str], int] = {}
    pairs = zip(embeddings.keys, embeddings.sources, strict=True)
    clip_of_row = np.fromiter((numbers.setdefault(pair, len(numbers)) for pair in pairs), np.int64, len(embeddings))
    has = {m: np.zeros(len(numbers), bool) for m in MODALITIES}
    for modality in MODALITIES:
        if modality in embeddings.present:
            has[modality][clip_of_row[np.asarray(embeddings.present[modality])]] = True
    flags = zip(numbers, has["audio"].tolist(), has["video"].tolist(), strict=True)
    return clip_of_row, [Clip(key, source, sound, picture) for (key, source), sound, picture in flags]
