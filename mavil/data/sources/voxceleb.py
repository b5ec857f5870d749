"""VoxCeleb1 speaker identification: ``iden_split.txt`` and the wav files of both its parts."""

from __future__ import annotations

import re
from pathlib import Path

from mavil.data.sources.class_names import read_classes
from mavil.data.sources.list_files import read_lines
from mavil.data.sources.listing import Listing, ListingBuilder, SourceOptions
from mavil.data.sources.media_files import MediaFiles, media_roots
from mavil.structs import Clip, UserError

SPLITS = {"1": "train", "2": "validation", "3": "test"}
LIST = "iden_split.txt"
LINE = re.compile(r"([123])\s+((id\d+)/([A-Za-z0-9_-]{11})/(\d+))\.\w+\s*")


def read_voxceleb1(source: Path, options: SourceOptions) -> Listing:
    """One clip per line ``1 id10001/VIDEO/00001.wav`` (1 train, 2 validation, 3 test); the speaker is the label.

    The classes are all speakers of the list, sorted (1,251), whatever the split. ``source_id`` is the YouTube id. The media
    folder is searched for ``id10001/VIDEO/00001``, so that the development and test archives may lie side by side.

    Raises:
        UserError: the file is no such list, the split is unknown, or none of the clips has a file.
    """
    if options.split is not None and options.split not in SPLITS.values():
        raise UserError(
            f"VoxCeleb1 identification has no split {options.split!r}: choose one of {', '.join(SPLITS.values())}"
        )
    path = source / LIST if source.is_dir() else source
    lines = read_lines(path, LIST)
    classes = read_classes(options.classes)
    media = MediaFiles(media_roots(options.media, path.parent))
    found = ListingBuilder(path)
    speakers = set()
    for number, text in lines:
        match = LINE.fullmatch(text)
        if match is None:
            raise UserError(
                f"{path}, line {number}: {text[:80]!r} is not like '1 id10001/1zcIwhmdeo4/00001.wav' of {LIST}"
            )
        split, name, speaker, youtube_id, _ = match.groups()
        speakers.add(speaker)
        key = name.replace("/", "_")
        if options.split not in (None, SPLITS[split]) or not found.is_new(key, number):
            continue
        file = media.named(name)
        if file is None:
            found.reject(key, "missing", f"no media file {name}", number)
            continue
        label = speaker if classes is None else classes.name_of(speaker, path, number)
        found.add(Clip(key, file, labels=(label,), metadata={"split": SPLITS[split]}, source_id=youtube_id))
    return found.listing(media, sorted(speakers) if classes is None else classes.names)
