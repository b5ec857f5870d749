"""Which evaluation clips a run was trained on: by key, by recording, and by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mavil.commands.assemble import CONFIG_FILE, read_recipe
from mavil.commands.inputs import open_split
from mavil.commands.packing import is_media, known_shards
from mavil.config import PretrainTask, Recipe
from mavil.data.sources.recordings import recording_of
from mavil.data.stream.shard_set import ShardSet
from mavil.recipe import change_recipe
from mavil.structs import UserError

MOST_QUICK = 200_000
"""Training clips whose records ``mavil evaluate`` reads, about 2 s; of more only the audit does [our choice]."""
NUM_NAMED = 5
PROBE_BYTES = 4096
"""From the middle of a media file: files of one size that differ there are not read as a whole."""


@dataclass(frozen=True)
class Overlap:
    """What the evaluation clips share with the training clips; pairs are (evaluation key, training key).

    Attributes:
        num_evaluation, num_train: clips of both sets.
        keys: evaluation keys that the training set has too.
        recordings: pairs of different keys of one recording, e.g. two segments of one YouTube video.
        contents: pairs of clips whose media files are the same, byte for byte; ``None`` where they were not compared.
        shards: evaluation shards that are, as whole files, also training shards.
        not_checked: why nothing is known of keys and recordings; empty where they were compared.
        where: the training clips, in words.
    """

    num_evaluation: int = 0
    num_train: int = 0
    keys: tuple[str, ...] = ()
    recordings: tuple[tuple[str, str], ...] = ()
    contents: tuple[tuple[str, str], ...] | None = None
    shards: tuple[str, ...] = ()
    not_checked: str = ""
    where: str = "data.train"

    @property
    def num_seen(self) -> int:
        """Evaluation clips that are training clips too, by key or by content."""
        return len({*self.keys, *(key for key, _ in self.contents or ())})

    def lines(self) -> list[str]:
        """For people: one line for each thing that is shared; a line too where nothing is, or where it is not known."""
        found = [f"overlap with {self.where} not checked: {self.not_checked}"] if self.not_checked else []
        if self.keys:
            share = f"{len(self.keys)} of {self.num_evaluation} ({100 * len(self.keys) / self.num_evaluation:.1f} %)"
            found.append(f"{share} evaluation clips are in {self.where} too: {_first(self.keys)}")
        if self.contents:
            pairs = [key if key == other else f"{key} = {other}" for key, other in self.contents]
            found.append(f"{len(pairs)} evaluation clips have the same media file as a training clip: {_first(pairs)}")
        if self.recordings:
            pairs = [f"{key} and {other}" for key, other in self.recordings]
            found.append(f"{len(pairs)} evaluation clips are of a recording that {self.where} has too: {_first(pairs)}")
        if self.shards:
            found.append(f"{len(self.shards)} evaluation shards are training shards: {_first(self.shards)}")
        how = "by key and recording" if self.contents is None else "by key, recording and content"
        return found or [
            f"none of {self.num_evaluation} evaluation clips is in {self.where} ({self.num_train} clips, {how})"
        ]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers, and the first names."""
        return {
            "num_evaluation": self.num_evaluation,
            "num_train": self.num_train,
            "not_checked": self.not_checked or None,
            "num_same_key": len(self.keys),
            "num_same_recording": len(self.recordings),
            "num_same_content": None if self.contents is None else len(self.contents),
            "num_same_shard": len(self.shards),
            "same_key": list(self.keys[:NUM_NAMED]),
            "same_recording": [list(pair) for pair in self.recordings[:NUM_NAMED]],
            "same_content": [list(pair) for pair in (self.contents or ())[:NUM_NAMED]],
        }


@dataclass(frozen=True)
class Overlaps:
    """What the evaluation clips share with what a run saw: its own training clips, and those of the runs it was begun from."""

    own: Overlap
    starts: Mapping[str, Overlap]

    def lines(self) -> list[str]:
        """For people."""
        return [line for one in (self.own, *self.starts.values()) for line in one.lines()]

    def facts(self) -> dict[str, Any]:
        """For JSON, beside the other facts of a protocol."""
        starts = {run: one.to_dict() for run, one in self.starts.items()}
        return {"overlap": self.own.to_dict(), "overlap_of_starts": starts}


def overlaps_of(recipe: Recipe, where: str = "data.train") -> Overlaps:
    """``data.evaluation`` compared with everything a run saw; ``where`` is what its own training clips are called."""
    return Overlaps(replace(overlap_with_training(recipe), where=where), overlap_with_starts(recipe))


def overlap_with_training(recipe: Recipe, in_full: bool = False) -> Overlap:
    """Compare ``data.evaluation`` with ``data.train``. What cannot be read is said in the result and is no error.

    Without ``in_full`` no media file is read, nor the records of sets that lie elsewhere or are larger than
    :data:`MOST_QUICK`; their shards are compared by the checksums in the index.
    """
    try:
        if recipe.data.train and is_media(recipe.data.train) and known_shards(recipe.data.train) is None:
            # What a run was trained on is not packed anew only to be compared.
            return Overlap(not_checked=f"the shards of {recipe.data.train} are not here, or it has changed since")
        evaluation, train = open_split(recipe, "evaluation"), open_split(recipe, "train")
    except (UserError, OSError) as error:
        return Overlap(not_checked=str(error))
    numbers = (evaluation.index.num_clips, train.index.num_clips)
    sums = {shard.sha256 for shard in train.index.shards}
    shards = tuple(shard.name for shard in evaluation.index.shards if shard.sha256 in sums)
    if not in_full and (reason := _too_much(evaluation, train)):
        return Overlap(*numbers, shards=shards, not_checked=f"{reason}; mavil evaluate --audit reads all")
    try:
        keys, recordings = _by_name(evaluation, train)
        contents = tuple(_by_content(evaluation, train)) if in_full else None
    except (UserError, OSError) as error:
        return Overlap(*numbers, shards=shards, not_checked=str(error))
    return Overlap(*numbers, keys, recordings, contents, shards)


def overlap_with_starts(recipe: Recipe) -> dict[str, Overlap]:
    """The same for every earlier run that the weights come from (``task.weights``, ``task.teacher.run``, and theirs), by folder.

    They saw no labels of these clips if they were pre-training runs, but they saw the clips.
    """
    found: dict[str, Overlap] = {}
    waiting = _starts_of(recipe)
    while waiting:
        run = waiting.pop(0)
        if run in found:
            continue
        where = f"data.train of {run}"
        if not (Path(run) / CONFIG_FILE).is_file():
            found[run] = Overlap(not_checked=f"{run} is not here", where=where)
            continue
        try:
            before = read_recipe(Path(run), [])
        except UserError as error:
            found[run] = Overlap(not_checked=str(error), where=where)
            continue
        compared = change_recipe(recipe, f"data.train={'null' if before.data.train is None else before.data.train}")
        found[run] = replace(overlap_with_training(compared), where=where)
        waiting += _starts_of(before)
    return found


def _starts_of(recipe: Recipe) -> list[str]:
    teacher = recipe.task.teacher if isinstance(recipe.task, PretrainTask) else None
    return [run for run in (recipe.task.weights, teacher.run if teacher else None) if run]


def _too_much(evaluation: ShardSet, train: ShardSet) -> str:
    elsewhere = [one.storage.location for one in (evaluation, train) if not one.storage.is_local]
    if elsewhere:
        return f"{elsewhere[0]} lies elsewhere"
    if train.index.num_clips > MOST_QUICK:
        return f"{train.index.num_clips} training clips are many"
    return ""


def _by_name(evaluation: ShardSet, train: ShardSet) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Shared keys, and pairs of other keys of one recording, the first training key of each."""
    own = [key for key in _keys(evaluation) if key]
    wanted, recordings = set(own), {recording_of(key) for key in own}
    shared: set[str] = set()
    near: dict[str, str] = {}
    for key in _keys(train):  # never all at once: there may be millions
        if key in wanted:
            shared.add(key)
        elif (recording := recording_of(key)) in recordings:
            near.setdefault(recording, key)
    pairs = tuple((key, near[found]) for key in own if key not in shared and (found := recording_of(key)) in near)
    return tuple(key for key in own if key in shared), pairs


def _keys(shards: ShardSet) -> Iterator[str]:
    """Of all clips in order; a damaged record has an empty one, which is nobody's."""
    for text in shards.records():
        try:
            yield str(json.loads(text)["key"])
        except (ValueError, KeyError, TypeError):
            yield ""


def _by_content(evaluation: ShardSet, train: ShardSet) -> Iterator[tuple[str, str]]:
    """Pairs of clips with equal media files: of equal size first, then equal in the middle, then as a whole."""
    ours, theirs = evaluation.rows()["media_bytes"], train.rows()["media_bytes"]
    clips = np.flatnonzero(np.isin(ours, theirs) & (ours > 0))
    if not len(clips):
        return
    probes: dict[tuple[int, bytes], list[int]] = {}
    for clip in np.flatnonzero(np.isin(theirs, ours[clips])).tolist():
        probes.setdefault((int(theirs[clip]), _media(train, clip, PROBE_BYTES)), []).append(clip)
    keys = list(_keys(evaluation))
    names: list[str] = []
    for clip in clips.tolist():
        candidates = probes.get((int(ours[clip]), _media(evaluation, clip, PROBE_BYTES)), ())
        whole = _media(evaluation, clip) if candidates else b""
        for other in candidates:
            if whole and _media(train, other) == whole:
                names = names or list(_keys(train))
                yield keys[clip], names[other]
                break


def _media(shards: ShardSet, clip: int, middle: int | None = None) -> bytes:
    """A digest of the media file of a clip, or of so many bytes in the middle of it; empty where it cannot be read."""
    row = shards.rows()[clip]
    sizes = np.array([shard.num_clips for shard in shards.index.shards])
    shard = shards.index.shards[int(np.searchsorted(np.cumsum(sizes), clip, side="right"))]
    begin, size = int(row["offset"] + row["media_at"]), int(row["media_bytes"])
    if middle is not None:
        begin, size = begin + max(0, size - middle) // 2, min(size, middle)
    data = shards.storage.read(shard.name, begin, size)
    return hashlib.sha256(data).digest() if len(data) == size else b""


def _first(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:NUM_NAMED]) + (" ..." if len(names) > NUM_NAMED else "")
