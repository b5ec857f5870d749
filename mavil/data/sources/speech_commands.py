"""Speech Commands, version 1 (30 words) and 2 (35 words): a folder per word, and lists of the validation and test files."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path

from mavil.data.sources.class_names import read_classes
from mavil.data.sources.keys import plain_key
from mavil.data.sources.list_files import read_lines
from mavil.data.sources.listing import Listing, ListingBuilder, SourceOptions
from mavil.data.sources.media_files import MediaFiles
from mavil.structs import Clip, UserError

LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
SPLITS = ("train", *LISTS)
TWELVE = "12"
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE = "_unknown_", "_silence_"
NOISE = "_background_noise_"
SECONDS_OF_SPLITS = 8 * ("train",) + ("validation", "test")
"""Which split the first ten seconds of a noise belong to, and every ten after them [our choice: shares as of the words]."""


def read_speech_commands(source: Path, options: SourceOptions) -> Listing:
    """Clips sorted by path; the folder is the label, metadata are ``split`` and ``speaker`` (the part before ``_nohash_``).

    Training is what neither list names. Folders that begin with ``_`` (``_background_noise_``) are no words and are left
    out. The classes are in alphabetical order: the set has no order of its own, and published recipes differ (SSAST's is that
    of a directory listing); a classes file gives another one.

    The split may begin with ``12,`` (or be ``12``): SUPERB's keyword spotting, with ten words, ``_unknown_`` for the others
    (metadata ``word``) and ``_silence_``, single seconds of the background noise, in this order. SUPERB draws its seconds at
    random, and tests on an archive of its own, which is a plain folder with the same twelve names.

    Raises:
        UserError: a list is not there, the split is unknown, a noise is no WAV file, or there is no clip.
    """
    split, is_twelve = _split(options.split)
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
        own_split = listed.get(name, "train")
        if split not in (None, own_split):
            continue
        word, _, file = name.partition("/")
        key = plain_key(f"{name}.")  # the dot ends the name
        if name not in present:
            found.reject(key, "missing", f"no media file {name}, which {LISTS[own_split]} names")
            continue
        metadata = {"split": own_split, "speaker": file.partition("_nohash_")[0]}
        label = word
        if is_twelve:
            label, metadata["word"] = word if word in WORDS else UNKNOWN, word
        label = label if classes is None else classes.name_of(label, source)
        found.add(Clip(key, present[name], labels=(label,), metadata=metadata, source_id=name), name)
    for clip in _silence(source) if is_twelve else ():
        if split in (None, clip.metadata["split"]):
            found.add(clip)
    if classes is not None:
        return found.listing(media, classes.names)
    words = sorted({name.partition("/")[0] for name in present})
    return found.listing(media, (*WORDS, UNKNOWN, SILENCE) if is_twelve else words)


def _split(text: str | None) -> tuple[str | None, bool]:
    """(split, the twelve classes)."""
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    is_twelve = TWELVE in words
    splits = [word for word in words if word != TWELVE]
    if len(splits) > 1 or any(word not in SPLITS for word in splits):
        raise UserError(
            f"Speech Commands has no split {text!r}: choose one of {', '.join(SPLITS)}, or {TWELVE},train and so on for "
            "SUPERB's twelve classes"
        )
    return splits[0] if splits else None, is_twelve


def _silence(source: Path) -> Iterator[Clip]:
    """Every whole second of the background noise, for the split it belongs to."""
    noises = sorted((source / NOISE).glob("*.wav"))
    if not noises:
        raise UserError(
            f"{source / NOISE}: no WAV file of noise here, which is what {SILENCE} is cut from; unpack again"
        )
    for path in noises:
        try:
            with wave.open(str(path)) as file:
                seconds = file.getnframes() // file.getframerate()
        except (OSError, EOFError, wave.Error) as error:
            raise UserError(f"{path}: cannot be read as a WAV file: {error}; unpack it again") from None
        for second in range(seconds):
            split = SECONDS_OF_SPLITS[second % len(SECONDS_OF_SPLITS)]
            metadata = {"split": split, "speaker": "", "word": SILENCE}
            name = f"{NOISE}/{path.stem}/{second:03d}"
            key = plain_key(f"{name}.")
            yield Clip(key, str(path), float(second), second + 1.0, (SILENCE,), metadata, source_id=name)


def _names(path: Path) -> list[str]:
    """What a list names: word and file, without the ending."""
    lines = read_lines(path, "a list of Speech Commands (is its folder as it was unpacked?)")
    return [name.rpartition(".")[0] for _, name in lines]
