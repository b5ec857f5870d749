"""Whether a folder of shards is what its index and its tables say, and whether every clip in it can be decoded."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mavil.atomic_files import sha256_of
from mavil.data.deadline import HARD_LIMIT_FACTOR, TimeLimitExceeded, time_limit
from mavil.data.isolation import map_isolated
from mavil.data.media.containers import MEDIA_ENDINGS, DecodeError
from mavil.data.shards.clip_table import ClipTable, read_table
from mavil.data.shards.index import INDEX, ShardIndex, ShardInfo, read_index
from mavil.data.shards.plan import SECONDS_PER_CLIP, STAGING
from mavil.data.shards.reading import Source
from mavil.data.shards.screening import FAILURES, Rules, inspect_source
from mavil.data.shards.tars import RECORD_ENDING, survey_shard
from mavil.structs import MODALITIES, Modality, UserError


@dataclass(frozen=True)
class _Expected:
    """A shard's line of the index, and what the tables say of its clips: places, and labels by name."""

    info: ShardInfo
    places: tuple[tuple[int, ...], ...] = ()
    labels: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class _Member:
    """A media file inside a shard: ``at`` and ``size`` in bytes, and the tracks that its record promises."""

    shard: str
    name: str
    at: int
    size: int
    promised: tuple[Modality, ...]


def verify_shards(
    folder: Path,
    *,
    workers: int = 0,
    quick: bool = False,
    seconds_per_clip: float = SECONDS_PER_CLIP,
    show_progress: bool = True,
) -> list[str]:
    """Everything wrong with a folder of shards, one line each.

    Compared are: the sizes and checksums of shards and tables; every tar with the tables, clip by clip; the labels of
    the tables with those of the records; counts. Then every clip is decoded from beginning to end.

    Args:
        folder: the set.
        workers: processes; 0 works in this one, where a crash of a decoder ends everything.
        quick: decode nothing.
        seconds_per_clip: a clip that takes longer to decode is a problem.
        show_progress: draw progress bars.

    Raises:
        UserError: as :func:`read_index`.
    """
    index = read_index(folder)
    table, problems = _read_tables(index)
    problems += _compare_counts(index, table)
    members: list[_Member] = []
    shards = list(_expected(index, table))
    checking = map_isolated(
        partial(_check_shard, folder),
        shards,
        workers=workers,
        seconds_per_item=HARD_LIMIT_FACTOR * seconds_per_clip * max((s.info.num_clips for s in shards), default=1),
        description="comparing shards",
        show_progress=show_progress,
    )
    for checked in checking:
        if checked.value is None:
            problems.append(f"{checked.item.info.name}: reading it {FAILURES[checked.failure or '']}")
        else:
            problems += checked.value[0]
            members += checked.value[1]
    if quick:
        return problems
    decoding = map_isolated(
        partial(_decode_member, folder, seconds_per_clip),
        members,
        workers=workers,
        seconds_per_item=HARD_LIMIT_FACTOR * seconds_per_clip,
        description="decoding clips",
        show_progress=show_progress,
    )
    for decoded in decoding:
        problem = FAILURES[decoded.failure] if decoded.failure else decoded.value
        if problem:
            problems.append(f"{decoded.item.shard}: {decoded.item.name}: {problem}")
    return problems


def foreign_files(index: ShardIndex, known: tuple[str, ...]) -> list[str]:
    """What lies in the folder and belongs neither to the set nor to the ``known`` files beside it, by name."""
    own = {INDEX, *index.tables, *known, *(shard.name for shard in index.shards)}
    return sorted(path.name for path in index.folder.iterdir() if path.name not in own)


def _read_tables(index: ShardIndex) -> tuple[ClipTable | None, list[str]]:
    problems = [
        f"{name}: its checksum is not the one in the index"
        for name, checksum in index.tables.items()
        if (index.folder / name).is_file() and sha256_of(index.folder / name) != checksum
    ]
    try:
        return read_table(index.folder, index.num_clips), problems
    except UserError as error:
        return None, [*problems, str(error)]


def _compare_counts(index: ShardIndex, table: ClipTable | None) -> list[str]:
    problems = []
    total = sum(shard.num_clips for shard in index.shards)
    if total != index.num_clips:
        problems.append(f"{INDEX}: says {index.num_clips} clips, but its shards have {total}")
    if table is not None:
        numbers = Counter(table.label_ids.tolist())
        if any(not 0 <= number < len(index.classes) for number in numbers):
            problems.append(f"labels.npz: has label numbers that are none of the {len(index.classes)} classes")
        elif {index.classes[number]: count for number, count in numbers.items()} != index.label_counts:
            problems.append(f"{INDEX}: its label counts are not those of labels.npz")
    listed = {shard.name for shard in index.shards}
    problems += [
        f"{path.name}: a shard that the index does not know; move it elsewhere"
        for path in sorted(index.folder.glob("*.tar"))
        if path.name not in listed
    ]
    if (index.folder / STAGING).exists():
        problems.append(
            f"{STAGING}: what an interrupted mavil shards make has left; run it again, or remove the folder"
        )
    return problems


def _expected(index: ShardIndex, table: ClipTable | None) -> Iterator[_Expected]:
    first = 0
    for shard in index.shards:
        numbers = range(first, first + shard.num_clips)
        first += shard.num_clips
        if table is None or first > len(table):
            yield _Expected(shard)
            continue
        places = tuple(tuple(row.tolist())[:-1] for row in table.rows[numbers.start : numbers.stop])
        known = range(len(index.classes))
        labels = (table.labels_of(number).tolist() for number in numbers)
        yield _Expected(shard, places, tuple(tuple(index.classes[n] for n in ids if n in known) for ids in labels))


def _check_shard(folder: Path, expected: _Expected) -> tuple[list[str], list[_Member]]:
    path, shard = folder / expected.info.name, expected.info
    problems: list[str] = []
    if path.stat().st_size != shard.bytes:
        problems.append(f"{shard.name}: {path.stat().st_size} bytes, the index says {shard.bytes}")
    elif sha256_of(path) != shard.sha256:
        problems.append(f"{shard.name}: its checksum is not the one in the index")
    members: dict[str, dict[str, tarfile.TarInfo]] = {}
    places: list[tuple[int, ...]] = []
    records: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, ending = member.name.rpartition(".")
                members.setdefault(key, {})[ending] = member
                if ending == RECORD_ENDING:
                    file = tar.extractfile(member)
                    records[key] = file.read() if file else b""
        places = [place for _, place in survey_shard(path)]
    except (tarfile.TarError, OSError, EOFError) as error:
        problems.append(f"{shard.name}: cannot be read to its end ({error})")
    if len(members) != shard.num_clips:
        problems.append(f"{shard.name}: holds {len(members)} clips, the index says {shard.num_clips}")
    if expected.places and tuple(places) != expected.places:
        pairs = enumerate(zip_longest(places, expected.places))
        wrong = next(number for number, (place, said) in pairs if place != said)
        problems.append(f"{shard.name}: clip {wrong} does not lie where clips.npy says")
    found: list[_Member] = []
    for number, (key, files) in enumerate(members.items()):
        record, unreadable = _parse(records.get(key, b"{}"))
        labels = expected.labels[number] if number < len(expected.labels) else None
        mistakes = unreadable or list(_check_record(key, files, record, labels))
        problems += [f"{shard.name}: {key}.{RECORD_ENDING}: {what}" for what in mistakes]
        problems += [f"{shard.name}: {what}" for what in _check_files(key, files)]
        promised = tuple(modality for modality in MODALITIES if record.get(f"has_{modality}"))
        media = (member for ending, member in files.items() if ending in MEDIA_ENDINGS)
        found += [_Member(shard.name, member.name, member.offset_data, member.size, promised) for member in media]
    return problems, found


def _parse(record: bytes) -> tuple[dict[str, Any], list[str]]:
    """A record, and what hinders reading it."""
    try:
        tree = json.loads(record)
    except ValueError as error:
        return {}, [f"cannot be read ({error})"]
    return (tree, []) if isinstance(tree, dict) else ({}, ["cannot be read (it is no JSON object)"])


def _check_record(
    key: str, files: dict[str, tarfile.TarInfo], record: dict[str, Any], labels: tuple[str, ...] | None
) -> Iterator[str]:
    """What a clip's record says otherwise than its name and the tables."""
    if RECORD_ENDING not in files:
        return
    if record.get("key") != key:
        yield f"is of clip {record.get('key')}"
    said = record.get("labels")
    if labels is not None and (not isinstance(said, list) or tuple(said) != labels):
        yield f"has labels {said}, labels.npz says {list(labels)}"


def _check_files(key: str, files: dict[str, tarfile.TarInfo]) -> Iterator[str]:
    if len(files) != 2:
        yield f"clip {key} has {len(files)} members instead of 2"
    for ending, member in files.items():
        if ending != RECORD_ENDING and ending not in MEDIA_ENDINGS:
            yield f"{member.name}: no such member belongs into a shard; endings are json, {', '.join(MEDIA_ENDINGS)}"


def _decode_member(folder: Path, seconds: float, member: _Member) -> str | None:
    """What hinders decoding all of a media file."""
    try:
        with time_limit(seconds, ends_process=False), (folder / member.shard).open("rb") as file:
            file.seek(member.at)
            inspect_source(Source(file.read(member.size), None, None), Rules(member.promised, min_seconds=0.0))
    except (DecodeError, OSError) as error:
        return f"cannot be read ({error})"
    except TimeLimitExceeded:
        return FAILURES["timeout"]
    return None
