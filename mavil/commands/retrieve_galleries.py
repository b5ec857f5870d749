"""Which clips a retrieval searches: all of them, some of every class, those of a list, or a test set by its own rules."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mavil.commands.embedding import Embedded
from mavil.data.sources.keys import plain_key, segment_key
from mavil.data.sources.list_files import read_json, read_rows
from mavil.data.sources.media_files import is_media
from mavil.data.sources.recordings import recording_of
from mavil.data.stream.shard_set import ShardSet
from mavil.seeds import sample_seed
from mavil.structs import MODALITIES, UserError

WHOLE = "whole gallery"
PROTOCOLS = "whole, per_class:N, list:FILE, msrvtt or youcook2"
TEST_SETS = {"msrvtt": ("MSR-VTT 1k test", 1000), "youcook2": ("YouCook2 validation", 3350)}
"""Name and clips of the sets that AVLnet's protocol is used on [source roudimit/AVLnet; lists: MIL-NCE]."""
NUM_NAMED = 5
_START = re.compile(r"_(\d+(?:[.-]\d+)?)(?:_|$)")
_ID_COLUMNS = ("key", "video_id", "id", "ytid", "youtube_id", "filename", "file", "clip")


@dataclass(frozen=True)
class Gallery:
    """The clips of a search.

    Attributes:
        name: for people and files.
        embedded: its clips; all have both modalities, unless ``keeps_silent``.
        lines: what there is to say about the choice.
        facts: the same as numbers.
        keeps_silent: clips without sound stay among the pictures, and count as not found [source AVLnet].
    """

    name: str
    embedded: Embedded
    lines: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    keeps_silent: bool = False


@dataclass(frozen=True)
class Notes:
    """What the shards say of their clips, by key: labels, and the seconds a clip lasts."""

    labels: dict[str, tuple[str, ...]]
    seconds: dict[str, float]

    @classmethod
    def of(cls, shards: ShardSet) -> Notes:
        """Read from the clips' records; no media is read from a local folder."""
        records = [json.loads(record) for record in shards.records()]
        return cls(
            {record["key"]: tuple(record.get("labels", ())) for record in records},
            {record["key"]: float(record.get("duration_seconds", 0)) for record in records},
        )


def choose_gallery(protocol: str, embedded: Embedded, notes: Notes) -> Gallery:
    """The gallery of a protocol: ``whole``, ``per_class:5``, ``list:FILE``, ``msrvtt``, ``youcook2``.

    Raises:
        UserError: there is no such protocol, or it leaves no clip or one.
    """
    kind, _, value = protocol.partition(":")
    if kind == "whole" and not value:
        found = Gallery(WHOLE, embedded.complete())
    elif kind == "per_class" and value.isdigit() and int(value):
        found = _per_class(int(value), embedded.complete(), notes)
    elif kind == "list" and value:
        found = _listed(Path(value), embedded)
    elif kind in TEST_SETS and not value:
        found = _test_set(kind, embedded)
    else:
        raise UserError(f"--protocol {protocol}: choose {PROTOCOLS}, e.g. per_class:5")
    number = len(found.embedded.keys)
    if number < 2:
        raise UserError(
            f"the gallery has 1 clip, {found.embedded.keys[0]}: whatever a model does, it is found; name more clips"
        )
    return found


def class_members(keys: Sequence[str], labels: Mapping[str, Sequence[str]], number: int) -> dict[str, list[str]]:
    """At most ``number`` keys of every class, each key for one class only.

    The choice follows a hash of the key, so that it is the same on every machine, in any order of the clips and beside any
    others, and does not follow the names. Classes are served from the rarest on, because a clip with several labels is spent on
    the first that takes it [our choice; CAV-MAE's lists were drawn once and are not rebuilt by this].
    """
    of_class: dict[str, list[str]] = defaultdict(list)
    for key in sorted(keys, key=lambda key: sample_seed("gallery", key)):
        for name in dict.fromkeys(labels.get(key, ())):
            of_class[name].append(key)
    taken: set[str] = set()
    members: dict[str, list[str]] = {}
    for name in sorted(of_class, key=lambda name: (len(of_class[name]), name)):
        members[name] = [key for key in of_class[name] if key not in taken][:number]
        taken.update(members[name])
    return members


def _per_class(number: int, embedded: Embedded, notes: Notes) -> Gallery:
    members = class_members(embedded.keys, notes.labels, number)
    if not members:
        raise UserError(f"--protocol per_class:{number}: none of {len(embedded.keys)} clips has a label")
    short = [name for name, keys in members.items() if len(keys) < number]
    chosen = {key for keys in members.values() for key in keys}
    unlabelled = sum(not notes.labels.get(key) for key in embedded.keys)
    lines = [f"{len(chosen)} clips of {len(members)} classes, at most {number} each"]
    if short:
        lines[0] += f"; {len(short)} classes have fewer ({_first(short)})"
    if unlabelled:
        lines.append(f"{unlabelled} clips without a label are in no class")
    facts = {"num_classes": len(members), "num_classes_with_fewer": len(short), "num_unlabelled": unlabelled}
    return Gallery(f"{number} per class", _those(embedded, chosen), lines, facts)


def _listed(path: Path, embedded: Embedded) -> Gallery:
    wanted = read_list(path)
    found, absent, ambiguous = match_names(wanted, embedded.keys)
    has_both = embedded.audio_present & embedded.video_present
    silent = [key for row, key in enumerate(embedded.keys) if key in found and not has_both[row]]
    lines = [f"{len(found)} of {len(wanted)} clips of {path} are there"]
    if absent:
        lines.append(f"not there: {len(absent)} ({_first(absent)})")
    if ambiguous:
        lines.append(
            f"several clips of one recording, and the list has no start: {len(ambiguous)} ({_first(ambiguous)})"
        )
    if silent:
        lines.append(f"left out, because they lack sound or picture: {len(silent)} ({_first(silent)})")
    facts = {
        "num_listed": len(wanted),
        "not_found": absent,
        "ambiguous": ambiguous,
        "listed_without_a_modality": silent,
    }
    if not found:
        raise UserError(f"--protocol list:{path}: none of its {len(wanted)} clips is there, e.g. {_first(absent)}")
    return Gallery(f"list {path.name}", _those(embedded, found).complete(), lines, facts)


def _test_set(kind: str, embedded: Embedded) -> Gallery:
    name, expected = TEST_SETS[kind]
    pictures = embedded.complete(["video"])
    number, silent = len(pictures.keys), int((~pictures.audio_present).sum())
    if silent == number:
        raise UserError(f"--protocol {kind}: none of {number} clips has sound")
    lines = [f"{number - silent} of {number} clips have sound; the {silent} silent ones count as not found"]
    if number != expected:
        lines.append(f"{name} has {expected} clips, here are {number}: not the gallery of published numbers")
    blind = len(embedded.keys) - number
    if blind:
        lines.append(f"{blind} clips without picture are left out")
    facts = {"num_silent": silent, "num_without_picture": blind, "num_expected": expected}
    return Gallery(name, pictures, lines, facts, keeps_silent=True)


@dataclass(frozen=True)
class Wanted:
    """A clip as a list names it: ``name`` is a key, a file or a recording; ``start`` in seconds, where a column says it."""

    name: str
    start: float | None = None


def read_list(path: Path) -> list[Wanted]:
    """One clip per line of a text or CSV (``KEY``, ``ID``, ``ID,START``), or the ``data`` of a JSON as CAV-MAE has it.

    A first line that names columns is followed: its column ``key``, ``video_id``, ``id`` or so.

    Raises:
        UserError: it cannot be read, or lists nothing.
    """
    if path.suffix.lower() == ".json":
        tree = read_json(path)
        entries = tree.get("data") if isinstance(tree, dict) else tree
        if not isinstance(entries, list):
            raise UserError(f"{path}: a JSON list of clips has an entry 'data', as CAV-MAE's, or is a list of names")
        names = [
            str(one.get("video_id") or one.get("wav") or "") if isinstance(one, dict) else str(one) for one in entries
        ]
        wanted = [Wanted(name) for name in names if name]
    else:
        wanted = _rows_of(path)
    if not wanted:
        raise UserError(f"{path}: lists no clip; one key or video id per line is expected")
    return list(dict.fromkeys(wanted))


def _rows_of(path: Path) -> list[Wanted]:
    rows = [[cell.strip() for cell in row] for _, row in read_rows(path)]
    column = 0
    if rows and (named := [i for i, cell in enumerate(rows[0]) if cell.lower() in _ID_COLUMNS]):
        column = named[0]
        rows = rows[1:]
    wanted = []
    for row in rows:
        if len(row) > column and row[column]:
            after = row[column + 1] if len(row) > column + 1 else ""
            wanted.append(Wanted(row[column], float(after) if re.fullmatch(r"\d+(\.\d+)?", after) else None))
    return wanted


def match_names(wanted: Sequence[Wanted], keys: Sequence[str]) -> tuple[set[str], list[str], list[str]]:
    """Keys that a list means, names that are not there, and names that several clips could be.

    A name is a key, a file of that name, or a recording with or without its start (``ID_000030``, ``ID_30``, ``ID,30``, ``ID``).
    """
    known, segments, recordings = set(keys), defaultdict(list), defaultdict(list)
    for key in keys:
        recording, start = _recording_and_start(key)
        segments[recording, start].append(key)
        recordings[recording].append(key)
    found: set[str] = set()
    absent: list[str] = []
    ambiguous: list[str] = []
    for one in wanted:
        recording, start = _recording_and_start(one.name)
        start = one.start if start is None else start
        exact = [one.name, plain_key(one.name), plain_key(one.name.rpartition("/")[2])]
        exact += [segment_key(recording, start)] if start is not None else []
        candidates = [key for key in exact if key in known][:1]
        if not candidates and start is not None:
            candidates = segments.get((recording, start)) or segments.get((recording, None)) or []
        elif not candidates:
            candidates = recordings.get(recording, [])
        name = one.name if one.start is None else f"{one.name},{one.start:g}"
        if len(candidates) == 1:
            found.add(candidates[0])
        else:
            (ambiguous if candidates else absent).append(name)
    return found, absent, ambiguous


def _recording_and_start(name: str) -> tuple[str, float | None]:
    stem = name.rpartition("/")[2]
    stem = stem.rpartition(".")[0] if is_media(stem) else stem
    recording = recording_of(name)
    start = _START.match(stem.partition(recording)[2])
    return recording, float(start.group(1).replace("-", ".")) if start else None


def repeated_labels(keys: Sequence[str], notes: Notes) -> list[tuple[str, ...]] | None:
    """Labels of each clip for the precision by class; ``None`` where no class has two of these clips: nothing to tell apart."""
    labels = [notes.labels.get(key, ()) for key in keys]
    counts = Counter(name for names in labels for name in names)
    return labels if any(number > 1 for number in counts.values()) else None


def silent_lines(embedded: Embedded) -> list[str]:
    """How many clips are in no gallery, because they lack a modality; empty where none is."""
    lacking = {m: int((~getattr(embedded, f"{m}_present")).sum()) for m in MODALITIES}
    total = sum(lacking.values())
    if not total:
        return []
    return [
        f"{total} of {len(embedded.keys)} clips left out of the gallery: {lacking['audio']} without sound, "
        f"{lacking['video']} without picture"
    ]


def _those(embedded: Embedded, chosen: set[str]) -> Embedded:
    return embedded.take([row for row, key in enumerate(embedded.keys) if key in chosen])


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")
