"""What a folder of shards holds: its index, read, written and verified against the shards themselves."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from mavil.atomic_files import sync
from mavil.structs import UserError

INDEX = "index.json"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class ShardInfo:
    """One line of the index: file ``name``, its number of clips, its size in bytes and its checksum."""

    name: str
    num_clips: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """What a folder of shards holds, beside the table of its clips (:mod:`mavil.data.shards.clip_table`).

    ``classes`` are all class names: in the official order of the dataset, clips or not, else those of the clips in
    alphabetical order. ``rejected`` counts by cause the clips that were left out when it was made; ``tables`` has the
    checksums of the table's files. ``num_silent`` clips are in it although they are silent; ``None`` is not known.
    """

    folder: Path
    num_clips: int
    num_with_audio: int
    num_with_video: int
    classes: tuple[str, ...]
    label_counts: dict[str, int]
    rejected: dict[str, int]
    shards: tuple[ShardInfo, ...]
    tables: dict[str, str]
    num_silent: int | None = None

    @property
    def shard_paths(self) -> list[Path]:
        """The tars, in order."""
        return [self.folder / shard.name for shard in self.shards]


def read_index(folder: Path, shards_are_here: bool = True) -> ShardIndex:
    """The index of a folder of shards; of one that lies elsewhere if not ``shards_are_here``.

    Raises:
        UserError: no such folder, no index, an index that cannot be read, or a shard it names is missing.
    """
    if not folder.is_dir():
        if re.match(r"[a-z0-9+.-]+:/", str(folder)):
            raise UserError(f"{folder}: an address, where a folder is needed; do this where the shards lie")
        raise UserError(f"{folder}: no such folder of shards; make one with mavil shards make")
    path = folder / INDEX
    if not path.is_file():
        raise UserError(
            f"{folder}: holds no {INDEX}, so it is no finished set of shards; make it with mavil shards make"
        )
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree.pop("format_version") != FORMAT_VERSION:
            raise UserError(f"{path}: written by another version of this program; make the shards again")
        shards = tuple(ShardInfo(**shard) for shard in tree.pop("shards"))
        index = ShardIndex(folder=folder, shards=shards, classes=tuple(tree.pop("classes")), **tree)
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: damaged ({error}); make the shards again") from None
    present = {entry.name for entry in os.scandir(folder)} if shards_are_here else {shard.name for shard in shards}
    missing = [shard.name for shard in shards if shard.name not in present]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} shards are missing, e.g. {missing[0]}; copy them there or make them again"
        )
    return index


def write_index(index: ShardIndex) -> None:
    """Write the index beside its shards, atomically; after this the folder counts as a finished set."""
    tree = {"format_version": FORMAT_VERSION, **asdict(index)}
    del tree["folder"]
    aside = index.folder / f"{INDEX}.tmp"
    aside.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sync(aside)
    os.replace(aside, index.folder / INDEX)
    sync(index.folder)
