"""ESC-50: a folder with ``meta/esc50.csv`` and ``audio/``."""

from __future__ import annotations

from pathlib import Path

from mavil.data.sources.class_names import read_classes
from mavil.data.sources.keys import plain_key
from mavil.data.sources.list_files import read_table
from mavil.data.sources.listing import Listing, ListingBuilder, SourceOptions
from mavil.data.sources.media_files import MediaFiles, media_roots
from mavil.structs import Clip, UserError

META = Path("meta") / "esc50.csv"
SUBSET, FOLDS = "esc10", ("fold1", "fold2", "fold3", "fold4", "fold5")
WITHOUT = "without_"


def read_esc50(source: Path, options: SourceOptions) -> Listing:
    """Clips in the list's order, classes in the order of ``target``; metadata ``fold``, ``esc10`` and ``take``.

    The split is a comma list: ``esc10`` is the ten-class subset, ``fold1`` .. ``fold5`` are joined (``esc10,fold1,fold2``),
    and ``without_fold1`` is the other four, to train on what ``fold1`` is evaluated on. ``source_id`` is the freesound
    recording. The media folder may hold the files in another format (``audio_16k/*.flac``).

    Raises:
        UserError: the list is not there, the split is unknown, or none of the clips has a file.
    """
    table = source / META if source.is_dir() else source
    folds, is_subset = _split(options.split)
    classes = read_classes(options.classes)
    rows = read_table(table, "filename", "fold", "target", "category", "esc10", "src_file", "take")
    if is_subset:
        rows = [(line, row) for line, row in rows if row["esc10"].strip().lower() == "true"]
    names = {row["category"]: row["target"] for _, row in rows}
    if not all(target.isdecimal() for target in names.values()):
        raise UserError(f"{table}: column 'target' must hold numbers")
    media = MediaFiles(media_roots(options.media, table.parent.parent / "audio"))
    found = ListingBuilder(table)
    for line, row in rows:
        key, stem = plain_key(row["filename"]), row["filename"].rpartition(".")[0]
        if f"fold{row['fold']}" not in folds or not found.is_new(stem, line):
            continue
        path = media.named(stem)
        if path is None:
            found.reject(key, "missing", f"no media file {stem}", line)
            continue
        label = row["category"] if classes is None else classes.name_of(row["category"], table, line)
        metadata = {name: row[name] for name in ("fold", "esc10", "take")}
        found.add(Clip(key, path, labels=(label,), metadata=metadata, source_id=row["src_file"]), stem)
    order = sorted(names, key=lambda name: int(names[name]))
    return found.listing(media, order if classes is None else classes.names)


def _split(split: str | None) -> tuple[tuple[str, ...], bool]:
    """(folds, only ESC-10)."""
    words = [word.strip() for word in (split or "").split(",") if word.strip()]
    for word in words:
        if word != SUBSET and word.removeprefix(WITHOUT) not in FOLDS:
            raise UserError(
                f"ESC-50 has no split {word!r}: write {SUBSET}, {', '.join(FOLDS)}, {WITHOUT}{FOLDS[0]} ..., or several with "
                "commas between them"
            )
    left_out = [word.removeprefix(WITHOUT) for word in words if word.startswith(WITHOUT)]
    named = [word for word in words if word in FOLDS]
    if left_out and named:
        raise UserError(
            f"--split {split} names folds to take and folds to leave out: write either {named[0]} or {WITHOUT}{left_out[0]}"
        )
    return tuple(fold for fold in FOLDS if fold not in left_out and (fold in named or not named)), SUBSET in words
