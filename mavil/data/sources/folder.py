"""A folder of media files; the first sub-folder's name is the class."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from mavil.data.sources.keys import plain_key, with_own_keys
from mavil.data.sources.listing import Listing, SourceOptions
from mavil.data.sources.media_files import ENDINGS, MediaFiles
from mavil.data.sources.recordings import recording_of
from mavil.structs import Clip, UserError


def read_folder(source: Path, _options: SourceOptions) -> Listing:
    """Every media file below a folder, sorted by path; files directly in the folder have no label.

    Raises:
        UserError: it is no folder, or holds no media file.
    """
    if not source.is_dir():
        raise UserError(f"{source}: is no folder of media files")
    files = sorted(PurePosixPath(path).relative_to(source.as_posix()) for path in MediaFiles([source]).paths)
    if not files:
        raise UserError(f"{source}: no media files in this folder; known endings are {', '.join(ENDINGS)}")
    names = [file.as_posix() for file in files]
    clips = [
        Clip(
            key=plain_key(name),
            path=str(source / name),
            labels=file.parts[:1] if len(file.parts) > 1 else (),
            source_id=recording_of(name),
        )
        for file, name in zip(files, names, strict=True)
    ]
    return Listing(tuple(with_own_keys(clips, names)))
