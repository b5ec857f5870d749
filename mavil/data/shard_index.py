"""What a folder of shards holds: its index, read, written and verified against the shards themselves."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mavil.data.media import MEDIA_ENDINGS, DecodeError, probe
from mavil.structs import UserError

INDEX = "index.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ShardInfo:
    """One line of the index: file ``name``, its number of clips, its size in bytes and its checksum."""

    name: str
    num_clips: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """What a folder of shards holds. ``rejected`` counts by cause the clips that were left out when it was made."""

    folder: Path
    num_clips: int
    num_with_audio: int
    num_with_video: int
    label_counts: dict[str, int]
    rejected: dict[str, int]
    shards: tuple[ShardInfo, ...]

    @property
    def shard_paths(self) -> list[Path]:
        """The tars, in order."""
        return [self.folder / shard.name for shard in self.shards]


def read_index(folder: Path) -> ShardIndex:
    """The index of a folder of shards.

    Raises:
        UserError: no such folder, no index, an index that cannot be read, or a shard it names is missing.
    """
    if not folder.is_dir():
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
        index = ShardIndex(folder=folder, shards=shards, **tree)
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: damaged ({error}); make the shards again") from None
    missing = [shard.name for shard in shards if not (folder / shard.name).is_file()]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} shards are missing, e.g. {missing[0]}; copy them there or make them again"
        )
    return index


def verify_shards(folder: Path) -> list[str]:
    """Everything wrong with a folder of shards, one line each: sizes, checksums, counts, members that cannot be read.

    Raises:
        UserError: as :func:`read_index`.
    """
    index = read_index(folder)
    problems = [problem for shard in index.shards for problem in _verify_shard(folder, shard)]
    total = sum(shard.num_clips for shard in index.shards)
    if total != index.num_clips:
        problems.append(f"{INDEX}: says {index.num_clips} clips, but its shards have {total}")
    return problems


def write_index(index: ShardIndex) -> None:
    """Write the index beside its shards, atomically; after this the folder counts as a finished set."""
    tree = {"format_version": FORMAT_VERSION, **asdict(index)}
    del tree["folder"]
    aside = index.folder / f"{INDEX}.tmp"
    aside.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sync(aside)
    os.replace(aside, index.folder / INDEX)
    sync(index.folder)


def sync(path: Path) -> None:
    """Have the operating system put a file, or a folder's list of names, on the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Checksum of a file, as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _verify_shard(folder: Path, shard: ShardInfo) -> Iterator[str]:
    path = folder / shard.name
    if path.stat().st_size != shard.bytes:
        yield f"{shard.name}: {path.stat().st_size} bytes, the index says {shard.bytes}"
    elif sha256_of(path) != shard.sha256:
        yield f"{shard.name}: its checksum is not the one in the index"
    members: Counter[str] = Counter()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, ending = member.name.rpartition(".")
                file = tar.extractfile(member)
                problem = _verify_member(ending, file.read() if file else b"")
                if problem:
                    yield f"{shard.name}: {member.name}: {problem}"
                members[key] += 1
    except (tarfile.TarError, OSError, EOFError) as error:
        yield f"{shard.name}: cannot be read to its end ({error})"
    yield from (
        f"{shard.name}: clip {key} has {count} members instead of 2" for key, count in members.items() if count != 2
    )
    if len(members) != shard.num_clips:
        yield f"{shard.name}: holds {len(members)} clips, the index says {shard.num_clips}"


def _verify_member(ending: str, data: bytes) -> str | None:
    try:
        if ending == "json":
            json.loads(data)
        elif ending in MEDIA_ENDINGS:
            probe(data)
        else:
            return f"no such member belongs into a shard; endings are json, {', '.join(MEDIA_ENDINGS)}"
    except (ValueError, DecodeError) as error:
        return f"cannot be read ({error})"
    return None
