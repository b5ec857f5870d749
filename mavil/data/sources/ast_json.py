"""The JSON lists of AST, SSAST, CAV-MAE and their descendants: ``{"data": [{"video_id", "wav", "video_path", "labels"}]}``."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from mavil.data.sources.class_names import labels_in, read_classes
from mavil.data.sources.keys import plain_key
from mavil.data.sources.list_files import read_json
from mavil.data.sources.listing import Listing, ListingBuilder, SourceOptions
from mavil.data.sources.media_files import MediaFiles, is_media, is_sound, media_roots
from mavil.data.sources.recordings import recording_of
from mavil.structs import Clip, UserError

FIRST_FRAME, FRAMES, STILL_ENDING = "frame_0", "frame_*", ".jpg"


def read_ast_json(source: Path, options: SourceOptions) -> Listing:
    """Clips in the JSON's order; labels by the classes file or else the mids; weights from the weight CSV of those projects.

    What a clip is read from, the first that is there: a video ``video_path/ID.mp4``; the ``wav``, with the pictures
    ``video_path/frame_*/ID.jpg`` as stills if they are there; without them the sound alone. Paths may be relative to the
    JSON. Where a path does not exist (another machine's, or a placeholder as ``<YOUR_VGGS_PATH>``), the file's name is
    looked for below the media folder, and ``frame_0`` too.

    Raises:
        UserError: the file is no such list, a class is unknown, the weights are not one per row, or no clip has a file.
    """
    rows = _rows(source)
    classes = read_classes(options.classes)
    weights = [1.0] * len(rows) if options.weights is None else _weights(options.weights, len(rows))
    media = MediaFiles(media_roots(options.media, source.parent))
    places = _Places(source.parent, media, is_named=options.media is not None)
    found = ListingBuilder(source)
    for number, (row, weight) in enumerate(zip(rows, weights, strict=True), start=1):
        wav, folder, name, mids = (str(row.get(field) or "") for field in ("wav", "video_path", "video_id", "labels"))
        name = name or _stem(wav)
        if not name:
            raise UserError(
                f"{source}, entry {number}: has neither 'video_id' nor 'wav'; is the list of another format?"
            )
        if not found.is_new(name, number):
            continue
        key = plain_key(f"{name}.")  # the dot ends the name: what follows one inside it is no file ending
        path = places.media_of(wav, folder, name)
        if path is None:
            found.reject(key, "missing", f"no file {wav or name}, and no media file {name}", number)
            continue
        stills = places.stills(folder, name) if is_sound(path) else None
        labels = labels_in(mids, classes, source, number)
        found.add(Clip(key, path, labels=labels, source_id=recording_of(name), weight=weight, stills=stills), name)
    return found.listing(media, classes.names if classes else ())


class _Places:
    """Finds files where the list says, or by their name below the media folder. One listing per folder, no look at a file.

    ``is_named``: the user named the media folder, so that it is searched first for what the list does not give, a video.
    """

    def __init__(self, base: Path, media: MediaFiles, *, is_named: bool) -> None:
        self.base = base
        self.media = media
        self.is_named = is_named
        self._names: dict[Path, dict[str, list[str]]] = {}

    def media_of(self, wav: str, folder: str, name: str) -> str | None:
        """The clip's video if there is one, otherwise its sound, otherwise ``None``."""
        for file in self._names_in(self.base / folder).get(name, ()) if folder else ():
            if is_media(file) and not is_sound(file):
                return str(self.base / folder / file)
        video = self.media.named(name) if self.is_named else None
        if video is not None and not is_sound(video):
            return video
        sound = self.base / wav
        if wav and sound.name in self._names_in(sound.parent).get(_stem(wav), ()):
            return str(sound)
        return self.media.named(_stem(wav)) or self.media.named(name)

    def stills(self, folder: str, name: str) -> str | None:
        """The pattern of the clip's pictures, ``*`` for the frame number, if it has any."""
        if not folder:
            return None
        picture = name + STILL_ENDING
        for root in (self.base / folder, *map(Path, self.media.frame_folders if self.is_named else ())):
            if picture in self._names_in(root / FIRST_FRAME).get(name, ()):
                return str(root / FRAMES / picture)
        return None

    def _names_in(self, folder: Path) -> dict[str, list[str]]:
        """The names in a folder by their stem, sorted; empty if it is not there."""
        if folder not in self._names:
            try:
                names = sorted(os.listdir(folder))
            except OSError:
                names = []
            self._names[folder] = {}
            for name in names:
                self._names[folder].setdefault(_stem(name), []).append(name)
        return self._names[folder]


def _rows(source: Path) -> list[dict[str, Any]]:
    data = read_json(source)
    rows = data.get("data") if isinstance(data, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{source}: no list 'data' of entries as in AST's and CAV-MAE's JSON; is it of another format?")
    return rows


def _weights(path: Path, num_rows: int) -> list[float]:
    try:
        weights = [float(text) for text in path.read_text(encoding="utf-8").replace(",", " ").split()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as one number per line: {error}") from None
    if len(weights) != num_rows:
        raise UserError(f"{path}: {len(weights)} weights for {num_rows} clips; give the weights made from this JSON")
    if not all(0 <= weight < math.inf for weight in weights):
        raise UserError(f"{path}: weights must be numbers of 0 or more; {min(weights):g} is among them")
    return weights


def _stem(path: str) -> str:
    name = path[path.rfind("/") + 1 :]
    return name.rpartition(".")[0] or name
