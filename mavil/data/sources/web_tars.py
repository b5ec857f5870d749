"""Tars of video2dataset, or of any WebDataset: a clip is ``KEY.mp4`` with ``KEY.json`` and ``KEY.txt`` beside it."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mavil.data.sources.keys import plain_key, with_own_keys
from mavil.data.sources.listing import Listing, Reject, SourceOptions
from mavil.data.sources.media_files import is_media, is_sound
from mavil.data.sources.recordings import recording_of, youtube_id_of_url
from mavil.structs import Clip, UserError

MAX_TEXT_BYTES = 1 << 20
"""A larger json or txt is damage: it would be read into memory whole [our choice]."""
ID_FIELDS = ("youtube_id", "videoID", "videoid", "video_id", "yt_id")
LABEL_FIELDS = ("labels", "label")
BLOCK = tarfile.BLOCKSIZE


@dataclass
class _Entry:
    """One clip of a tar as its members say: where its media files lie, its texts by ending (``None``: too large)."""

    media: dict[str, tuple[int, int]] = field(default_factory=dict)
    texts: dict[str, bytes | None] = field(default_factory=dict)


def read_web_tars(source: Path, _options: SourceOptions) -> Listing:
    """The clips of every tar below a folder (or of one tar), in the order of the tars and their members.

    ``byte_range`` is the media file inside the tar. Metadata are the texts, numbers and truth values of ``KEY.json``, and
    ``caption`` from ``KEY.txt``; labels its ``labels`` or ``label``. ``source_id`` is the YouTube id of its ``url`` or of a
    field like ``video_id``, otherwise the key. Nothing is unpacked, and nothing but json and txt is read.

    A tar that ends too early gives the clips before the damage, and a reject ``damaged_tar`` that says where.

    Raises:
        UserError: there is no tar, or no clip in any.
    """
    tars = [source] if source.is_file() else sorted(path for path in source.rglob("*.tar") if path.is_file())
    if not tars:
        raise UserError(f"{source}: no tars here; give the folder with video2dataset's 00000.tar, 00001.tar ...")
    clips: list[Clip] = []
    names: list[str] = []
    rejects: list[Reject] = []
    for tar in tars:
        entries, damage = _entries(tar)
        for name, entry in entries.items():
            made = _clip(tar, name, entry)
            if isinstance(made, Reject):
                rejects.append(made)
            else:
                clips.append(made)
                names.append(f"{tar.relative_to(source)}/{name}")
        if damage:
            rejects.append(Reject(plain_key(tar.name), str(tar), "damaged_tar", damage))
    if not clips:
        cause = f"e.g. {rejects[0].path}: {rejects[0].detail}" if rejects else "they are empty"
        raise UserError(f"{source}: no clip in {len(tars)} tars; {cause}")
    return Listing(tuple(with_own_keys(clips, names)), tuple(rejects))


def _entries(path: Path) -> tuple[dict[str, _Entry], str]:
    """The members by clip, and what is wrong with the tar (empty if nothing)."""
    entries: dict[str, _Entry] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in _whole_members(tar, path.stat().st_size):
                folder, slash, name = member.name.rpartition("/")
                key, dot, ending = name.partition(".")
                ending = ending.lower()
                if not dot or not key:
                    continue
                entry = entries.setdefault(folder + slash + key, _Entry())
                if is_media(f".{ending}"):
                    entry.media.setdefault(ending, (member.offset_data, member.size))
                elif ending in ("json", "txt"):
                    file = tar.extractfile(member) if member.size <= MAX_TEXT_BYTES else None
                    entry.texts[ending] = file.read() if file else None
            damage = _end_damage(path, tar.offset)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        damage = str(error)
    num_clips = sum(bool(entry.media) for entry in entries.values())
    return entries, damage and f"{damage}; {num_clips} clips before the damage"


def _whole_members(tar: tarfile.TarFile, size: int) -> Iterator[tarfile.TarInfo]:
    """Plain files whose bytes are all there, one after the other."""
    for member in tar:
        if member.isreg() and not member.issparse():
            if member.offset_data + member.size > size:
                raise tarfile.ReadError(
                    f"{member.name} needs {member.offset_data + member.size} bytes, the tar has {size}"
                )
            yield member


def _end_damage(path: Path, offset: int) -> str:
    """tarfile takes a damaged header for the end; a whole tar ends with a block of zeros."""
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(BLOCK)
    if block == bytes(BLOCK):
        return ""
    what = "ends without its end mark" if not block else "has a damaged header"
    return f"{what} at byte {offset} of {os.path.getsize(path)}"


def _clip(tar: Path, name: str, entry: _Entry) -> Clip | Reject:
    key = plain_key(f"{name}.")
    if not entry.media:
        members = ", ".join(sorted(entry.texts)) or "nothing known"
        return Reject(key, str(tar), "missing", f"no media file among the members of {name}, only {members}")
    try:
        record, caption = _texts(entry)
    except (ValueError, RecursionError) as error:
        return Reject(key, str(tar), "damaged_record", f"the json or txt of {name} cannot be read: {error}")
    metadata = {field: _text(value) for field, value in record.items() if _text(value) and field not in LABEL_FIELDS}
    if caption:
        metadata["caption"] = caption
    ending = min(entry.media, key=lambda ending: (is_sound(f".{ending}"), ending))
    return Clip(
        key,
        str(tar),
        labels=_labels(record),
        metadata=metadata,
        source_id=_source_id(record, name),
        byte_range=entry.media[ending],
    )


def _texts(entry: _Entry) -> tuple[dict[str, Any], str]:
    """(record, caption), empty where the clip has none."""
    record, caption = entry.texts.get("json", b"{}"), entry.texts.get("txt", b"")
    if record is None or caption is None:
        raise ValueError(f"over {MAX_TEXT_BYTES} bytes")
    fields = json.loads(record)
    if not isinstance(fields, dict):
        raise ValueError("it is no table of fields")
    return fields, caption.decode("utf-8").strip()


def _text(value: Any) -> str:
    """A plain value as text; empty for lists, tables and nothing, which have no place in flat metadata."""
    return str(value) if isinstance(value, (str, int, float)) else ""


def _labels(record: dict[str, Any]) -> tuple[str, ...]:
    for name in LABEL_FIELDS:
        value = record.get(name)
        if value not in (None, "", []):
            values = value if isinstance(value, list) else [value]
            return tuple(dict.fromkeys(text for text in map(_text, values) if text))
    return ()


def _source_id(record: dict[str, Any], name: str) -> str:
    found = youtube_id_of_url(_text(record.get("url")))
    if found:
        return found
    for field_name in ID_FIELDS:
        if _text(record.get(field_name)):
            return recording_of(_text(record[field_name]))
    return recording_of(name)
