"""Speech Commands, version 1 (30 words) and 2 (35 words): a folder per word, and lists of the validation and test files."""

from __future__ import annotations

from pathlib import Path

from mavil.data.sources.class_names import read_classes
from mavil.data.sources.keys import plain_key
from mavil.data.sources.list_files import read_lines
from mavil.data.sources.listing import Listing, ListingBuilder, SourceOptions
from mavil.data.sources.media_files import MediaFiles
from mavil.structs import Clip, UserError

LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
SPLITS = ("train", *LISTS)


def read_speech_commands(source: Path, options: SourceOptions) -> Listing:
    """Clips sorted by path; the folder is the label, metadata are ``split`` and ``speaker`` (the part before ``_nohash_``).

    Training is what neither list names. Folders that begin with ``_`` (``_background_noise_``) are no words and are left
    out. The classes are in alphabetical order: the set has no order of its own, and published recipes differ (SSAST's is that
    of a directory listing); a classes file gives another one.

    Raises:
        UserError: a list is not there, the split is unknown, or there is no clip.
    """
    if options.split is not None and options.split not in SPLITS:
        raise UserError(f"Speech Commands has no split {options.split!r}: choose one of {', '.join(SPLITS)}")
    classes = read_classes(options.classes)
    listed = {name: split for split, file in LISTS.items() for name in _names(source / file)}
    media = MediaFiles([source])
    present: dict[str, str] = {}
    for path in sorted(media.paths):
        name = path.removeprefix(f"{source.as_posix()}/").rpartition(".")[0]
        if name.count("/") == 1 and not name.startswith("_"):
            present.setdefault(name, path)
    found = ListingBuilder(source)
    for name in sorted(present.keys() | listed.keys()):
        split = listed.get(name, "train")
        if options.split not in (None, split):
            continue
        word, _, file = name.partition("/")
        key = plain_key(f"{name}.")  # the dot ends the name
        if name not in present:
            found.reject(key, "missing", f"no media file {name}, which {LISTS[split]} names")
            continue
        label = word if classes is None else classes.name_of(word, source)
        metadata = {"split": split, "speaker": file.partition("_nohash_")[0]}
        found.add(Clip(key, present[name], labels=(label,), metadata=metadata, source_id=name), name)
    words = sorted({name.partition("/")[0] for name in present})
    return found.listing(media, words if classes is None else classes.names)


def _names(path: Path) -> list[str]:
    """What a list names: word and file, without the ending."""
    lines = read_lines(path, "a list of Speech Commands (is its folder as it was unpacked?)")
    return [name.rpartition(".")[0] for _, name in lines]
