"""The front door of the sources: the table of formats, and how ``auto`` tells them apart.

Nothing is opened here but lists (and the headers of tars); a source becomes :class:`~mavil.structs.Clip` objects in a
fixed order.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mavil.data.sources import voxceleb
from mavil.data.sources.ast_json import read_ast_json
from mavil.data.sources.audioset import read_audioset
from mavil.data.sources.csv_list import read_csv_list
from mavil.data.sources.esc50 import META, read_esc50
from mavil.data.sources.folder import read_folder
from mavil.data.sources.librispeech import read_librispeech
from mavil.data.sources.listing import Listing, SourceOptions
from mavil.data.sources.msrvtt import read_msrvtt
from mavil.data.sources.overlap import overlaps, read_ids
from mavil.data.sources.speech_commands import LISTS, read_speech_commands
from mavil.data.sources.vggsound import read_vggsound
from mavil.data.sources.web_tars import read_web_tars
from mavil.data.sources.youcook2 import read_youcook2
from mavil.structs import UserError

__all__ = ["FORMATS", "Listing", "SourceOptions", "overlaps", "read_ids", "read_source", "told_format"]


@dataclass(frozen=True)
class _Format:
    """``options`` are the fields of :class:`SourceOptions` that the reader reads; giving another is a mistake."""

    description: str
    read: Callable[[Path, SourceOptions], Listing]
    options: tuple[str, ...] = ()


_READERS = {
    "folder": _Format("a folder of media files, sub-folders are classes", read_folder),
    "csv": _Format("a CSV with a column path, and start, end, labels or others", read_csv_list),
    "audioset": _Format(
        "AudioSet segments: balanced, unbalanced or eval CSV", read_audioset, options=("media", "classes")
    ),
    "vggsound": _Format("VGGSound: vggsound.csv or a test list", read_vggsound, options=("media", "classes", "split")),
    "esc50": _Format("ESC-50: the folder with meta/ and audio/", read_esc50, options=("media", "classes", "split")),
    "speech_commands": _Format(
        "Speech Commands v1 or v2: the unpacked folder", read_speech_commands, options=("classes", "split")
    ),
    "voxceleb1": _Format(
        "VoxCeleb1 identification: iden_split.txt", voxceleb.read_voxceleb1, options=("media", "classes", "split")
    ),
    "librispeech": _Format("LibriSpeech: the folder of its splits", read_librispeech, options=("split",)),
    "msrvtt": _Format("MSR-VTT: 1k test CSV or captions JSON", read_msrvtt, options=("media", "split")),
    "youcook2": _Format("YouCook2: annotations JSON or MIL-NCE's CSV", read_youcook2, options=("media", "split")),
    "ast_json": _Format("JSON list of AST, SSAST or CAV-MAE", read_ast_json, options=("media", "classes", "weights")),
    "video2dataset": _Format("tars of video2dataset or another WebDataset", read_web_tars),
}
FORMATS: dict[str, str] = {
    "auto": "by what the source looks like",
    **{name: reader.description for name, reader in _READERS.items()},
}
"""What ``SourceOptions.format`` may be, with a description for people."""
DEFAULTS = SourceOptions()


def read_source(source: Path, options: SourceOptions = DEFAULTS) -> Listing:
    """The clips of a folder, a CSV or the list of a public dataset, in a fixed order, each with its own key.

    See :data:`FORMATS`, and the readers for what each gives. ``auto`` takes a list for a dataset's only where nothing
    else looks like it.

    Raises:
        UserError: nothing there, an unknown format, an option that the format does not have, or a mistake in the list.
    """
    if options.format not in FORMATS:
        raise UserError(f"{options.format!r} is no format of a source: choose one of {', '.join(FORMATS)}")
    if not source.exists():
        raise UserError(
            f"{source}: no such folder or CSV; give a folder of media files, a .csv with a column 'path', or a dataset's list"
        )
    name = told_format(source) if options.format == "auto" else options.format
    reader = _READERS[name]
    for option in ("media", "classes", "split", "weights"):
        if getattr(options, option) is not None and option not in reader.options:
            raise UserError(
                f"{source}: {option} has no meaning for the format {name}, which takes "
                f"{', '.join(reader.options) or 'no options'}; leave it out or name the format"
            )
    return reader.read(source, options)


def told_format(source: Path) -> str:
    """The format that a source looks like, which is what ``auto`` takes it for.

    Raises:
        UserError: a single file that is no list, or cannot be read.
    """
    if source.is_dir():
        return _told_folder(source)
    if source.suffix.lower() == ".tar":
        return "video2dataset"
    start = _first_text(source)
    for name, pattern in _STARTS.items():
        if pattern.match(start):
            return name
    if source.suffix.lower() == ".csv":
        return "csv"
    raise UserError(
        f"{source}: a source is a folder of media files or a .csv list, not a single {source.suffix or 'file'}; "
        "if it is a dataset's list, name its format"
    )


def _told_folder(source: Path) -> str:
    if (source / META).is_file() and (source / "audio").is_dir():
        return "esc50"
    if all((source / name).is_file() for name in LISTS.values()):
        return "speech_commands"
    if (source / voxceleb.LIST).is_file():
        return "voxceleb1"
    if (source / "SPEAKERS.TXT").is_file() and any(source.glob("*/*/*/*.trans.txt")):
        return "librispeech"
    # Only a folder of nothing but tars (and what is written beside them) is one of shards: media files come first.
    names = [path.suffix.lower() for path in source.iterdir() if not path.name.startswith(".")]
    return "video2dataset" if ".tar" in names and not set(names) - {".tar", ".parquet", ".json"} else "folder"


_STARTS = {
    name: re.compile(pattern)
    for name, pattern in {
        "audioset": r'(#[^\n]*\n)*(# ?YTID|[\w-]{11}, ?\d+(\.\d+)?, ?\d+(\.\d+)?, ?"?/[mtg]/)',
        "vggsound": r'[\w-]{11},\d+,("[^"\n]+"|[^",\n]+),(train|test)(\r?\n|$)|[\w-]{11}_\d{6}\.mp4,',
        "voxceleb1": r"[123] id\d{5}/",
        "msrvtt": r'key,vid_key,video_id,sentence\b|\s*{(?s:.)*"(videos|sentences)": *\[',
        "youcook2": r'end,start,task,text,video_id\b|\s*{\s*"database": *{',
        "ast_json": r'\s*{\s*"data": *\[',
    }.items()
}
"""How the lists of datasets begin. None of these is a CSV with a column path."""


def _first_text(path: Path, num_bytes: int = 4096) -> str:
    try:
        with path.open("rb") as file:
            return file.read(num_bytes).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
