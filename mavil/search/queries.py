"""A query file, by its sound or its picture, against an index."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mavil.data.media import CONVERTED_ENDINGS, MEDIA_ENDINGS
from mavil.embedder.embedder import Embedder
from mavil.embedder.windows import Windowed
from mavil.search.decoding import TRACKS, DecodedQuery, QueryDecoder, Wanted
from mavil.search.index import Find, Match, SearchIndex
from mavil.structs import MODALITIES, SAMPLE_RATE, Modality, UserError

QUERY_ENDINGS = frozenset((*MEDIA_ENDINGS, *CONVERTED_ENDINGS))
"""What counts as a query in a folder."""
SILENT_PEAK = 1e-4
"""Sound whose samples are all below this is told as silent: -80 dB of full scale [our choice]."""


@dataclass(frozen=True)
class Answer:
    """What was found by one modality of a query in one or both modalities of the index."""

    by: Modality
    find: Find
    windows: int
    matches: list[Match]


@dataclass(frozen=True)
class Answered:
    """All answers to one query, and what must be said about it."""

    query: str
    answers: list[Answer]
    notes: list[str]

    def tree(self) -> dict[str, Any]:
        """For JSON."""
        answers = [
            {"by": a.by, "find": a.find, "windows": a.windows, "matches": [match.tree() for match in a.matches]}
            for a in self.answers
        ]
        return {"query": self.query, "notes": self.notes, "answers": answers}


class Searcher:
    """An index, the model that made it, and the processes that decode queries.

    :meth:`answer` may be called from several threads: files are decoded side by side, the model works on one at a time.

    Args:
        index: to search in.
        model: whose embeddings it holds.
        decoder: for queries.
        most_seconds: of a query that are looked at, from its beginning.

    Raises:
        UserError: another model made the index.
    """

    def __init__(
        self, index: SearchIndex, model: Embedder[np.ndarray], decoder: QueryDecoder, most_seconds: float
    ) -> None:
        index.check_model(model.source, model.weights_digest)
        self.index, self.model = index, model
        self._decoder, self.most_seconds = decoder, most_seconds
        self._model_lock = threading.Lock()

    def answer(self, path: Path, name: str, by: Modality | None, find: Find | None, top: int) -> Answered:
        """The best clips for one file.

        Args:
            path: the file.
            name: what to call it.
            by: what of the query is compared; ``None``: everything that it has, one answer each.
            find: what of the index; ``None``: the other modality.
            top: clips per answer.

        Raises:
            UserError: it is no media, or lacks what was asked for; or the index does.
        """
        modalities = self._usable(by, find)
        decoded = self._decoder.decode(path, self._wanted(modalities), name)
        answers = []
        for modality in modalities:
            if decoded.has(modality):
                answers.append(self._answer_by(modality, find, decoded, top))
        return Answered(name, answers, _notes(decoded, modalities, self.most_seconds))

    def _usable(self, by: Modality | None, find: Find | None) -> list[Modality]:
        """What of a query can be compared with what is asked for."""
        has, held = self.model.modalities, self.index.modalities
        if by is not None and by not in has:
            raise UserError(f"{self.model.source} has no {by} branch: search by {has[0]}")
        if find in MODALITIES and find not in held:
            raise UserError(
                f"{self.index.folder} has no embeddings of {find}: search for {held[0]} with --find {held[0]}"
            )
        usable = [m for m in ([by] if by else has) if find is not None or other(m) in held]
        if not usable:
            raise UserError(
                f"{self.index.folder} has embeddings of {held[0]} only, so nothing is found across modalities: search for "
                f"{held[0]} by {held[0]} with --find {held[0]}"
            )
        return usable

    def _wanted(self, modalities: Sequence[Modality]) -> Wanted:
        video = self.model.recipe.video
        rate, side = (video.frames_per_second, video.decode_short_side) if video is not None else (1.0, 1)
        return Wanted(tuple(modalities), self.most_seconds, rate, side)

    def _answer_by(self, by: Modality, find: Find | None, decoded: DecodedQuery, top: int) -> Answer:
        wanted: Find = find or other(by)
        places = self.index.modalities if wanted == "any" else [wanted]
        with self._model_lock:
            windowed = self._embed(by, decoded)
            times = windowed.starts.tolist(), windowed.ends.tolist()
            found = [match for place in places for match in self.index.search(windowed.values, *times, place, top)]
        return Answer(by, wanted, len(windowed.values), _ranked(found, top))

    def _embed(self, by: Modality, decoded: DecodedQuery) -> Windowed[np.ndarray]:
        if by == "audio":
            assert decoded.sound is not None
            return self.model.embed_audio(decoded.sound, SAMPLE_RATE, windows=True)
        assert decoded.frames is not None
        return self.model.embed_video(decoded.frames, self._wanted([by]).frames_per_second, windows=True)


def other(modality: Modality) -> Modality:
    """The other one."""
    return "video" if modality == "audio" else "audio"


def query_files(queries: Sequence[Path]) -> list[Path]:
    """Files as they are named, and those of folders (not of folders in them) by name.

    Raises:
        UserError: one does not exist, or a folder has no media file.
    """
    found: list[Path] = []
    for query in queries:
        if query.is_dir():
            files = sorted(_media_in(query))
            if not files:
                raise UserError(f"{query}: the folder has no media file ({', '.join(sorted(QUERY_ENDINGS))})")
            found += files
        elif query.exists():
            found.append(query)
        else:
            raise UserError(f"{query}: no such file; give a sound, a film or a folder of them")
    return found


class NewFiles:
    """Media files that appear in folders: each once, as soon as it has not grown between two looks.

    Args:
        folders: to look into.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._seen: dict[Path, tuple[int, int]] = {}
        self._told: dict[Path, tuple[int, int]] = {}

    def look(self) -> list[Path]:
        """Files that are new, or were written anew, since they were last told."""
        now = {path: state for folder in self._folders for path in _media_in(folder) if (state := _state(path))}
        ready = [p for p, state in now.items() if self._seen.get(p) == state and self._told.get(p) != state]
        self._seen = now
        self._told = {p: s for p, s in self._told.items() if p in now} | {p: now[p] for p in ready}
        return sorted(ready)


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:  # it has gone meanwhile
        return None
    return status.st_size, status.st_mtime_ns


def _media_in(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.suffix[1:].lower() in QUERY_ENDINGS and not path.name.startswith(".") and path.is_file():
            yield path


def _ranked(found: list[Match], top: int) -> list[Match]:
    """Matches in several modalities as one list, each clip once."""
    best: dict[int, Match] = {}
    for match in sorted(found, key=lambda match: -match.score):
        best.setdefault(match.clip, match)
    matches = list(best.values())[:top]
    return [Match(**{**match.tree(), "rank": rank}) for rank, match in enumerate(matches, start=1)]


def _notes(decoded: DecodedQuery, modalities: Sequence[Modality], most_seconds: float) -> list[str]:
    notes = [f"searched without its {TRACKS[m]}: {decoded.problems[m]}" for m in modalities if m in decoded.problems]
    for modality, seconds in decoded.cut.items():
        why = "" if seconds >= most_seconds else ", for the memory of more frames"
        notes.append(f"only the first {seconds:g} s of its {TRACKS[modality]} were searched{why}")
    if decoded.sound is not None and (not len(decoded.sound) or float(np.abs(decoded.sound).max()) < SILENT_PEAK):
        notes.append("its sound is silent: what comes back for it says little")
    return notes
