"""LibriSpeech: SPLIT/SPEAKER/CHAPTER/*.flac, with the words of a chapter in ``SPEAKER-CHAPTER.trans.txt``."""

from __future__ import annotations

from pathlib import Path

from mavil.data.sources.list_files import read_lines
from mavil.data.sources.listing import Listing, ListingBuilder, SourceOptions
from mavil.data.sources.media_files import MediaFiles
from mavil.structs import Clip, UserError


def read_librispeech(source: Path, options: SourceOptions) -> Listing:
    """Clips without labels, sorted by split and name; metadata ``transcript``, ``speaker``, ``chapter`` and ``split``.

    ``source`` is the folder with the splits, or one of them; the split names the sub-folders to take, with commas between
    them (``dev-clean,dev-other``). The key is the utterance's own name (``84-121123-0000``).

    Raises:
        UserError: a split is not there, there is no clip, or a transcript cannot be read.
    """
    source = source.absolute()  # the names of its folders count, also where it is given as "."
    roots = [source]
    if options.split is not None:
        roots = [source / name.strip() for name in options.split.split(",") if name.strip()]
    for root in roots:
        if not root.is_dir():
            inside = sorted(path.name for path in source.glob("*") if path.is_dir())
            raise UserError(f"{root}: no such folder of LibriSpeech; {source} has {', '.join(inside) or 'no folders'}")
    media = MediaFiles(roots)
    chapters: dict[Path, dict[str, Path]] = {}
    for path in map(Path, media.by_name(4).values()):
        speaker, _, rest = path.stem.partition("-")
        if path.parent.parent.name == speaker and path.parent.name == rest.partition("-")[0]:
            chapters.setdefault(path.parent, {})[path.stem] = path
    found = ListingBuilder(source)
    for chapter in sorted(chapters, key=lambda folder: (folder.parts[-3], folder.parts)):
        files = chapters[chapter]
        speaker, split = chapter.parent.name, chapter.parents[1].name
        words = _transcripts(chapter / f"{speaker}-{chapter.name}.trans.txt")
        for name in sorted(files.keys() | words.keys()):
            if not found.is_new(name):
                continue
            if name not in files:
                found.reject(name, "missing", f"no media file {name} in {chapter}, which has its words")
                continue
            metadata = {"transcript": words.get(name, ""), "speaker": speaker, "chapter": chapter.name, "split": split}
            found.add(Clip(name, str(files[name]), metadata=metadata, source_id=name))
    if not chapters:
        raise UserError(f"{source}: no files like train-clean-100/84/121123/84-121123-0000.flac; is it LibriSpeech?")
    return found.listing(media)


def _transcripts(path: Path) -> dict[str, str]:
    """Utterance to words; empty where a chapter has no such file."""
    if not path.exists():
        return {}
    lines = [text.split(maxsplit=1) for _, text in read_lines(path, "a list of transcripts")]
    return {words[0]: words[1] if len(words) > 1 else "" for words in lines}
