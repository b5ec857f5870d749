"""What is to be made of which clips, and the staging folder in which an interrupted run finds out how far it was.

While a set is made, ``OUT/.incomplete`` holds::

    plan.json        digest of the clips and of the options that shape the result
    verdicts.jsonl   the first look at every clip, one line each
    NNNNNN.tar       finished shards, each with NNNNNN.json: what lies where in it
    index.json       once everything is complete and only has to be moved
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mavil.atomic_files import sync
from mavil.data.shards.index import INDEX
from mavil.data.shards.reading import Target, read_clip, target_of
from mavil.data.shards.screening import MIN_SECONDS, Depth, Rules
from mavil.structs import MODALITIES, Clip, Modality, UserError

CLIPS_PER_SHARD = 256
"""About 50 MB of 10-s clips; small sets need smaller shards, at least one per loader worker."""
SECONDS_PER_CLIP = 120.0
"""The longest that decoding one clip may take [our choice]: enough for half an hour of film."""
STAGING, PLAN, LOCK = ".incomplete", "plan.json", "lock"
PLAN_FORMAT = 1
"""Of the staging folder and of what is written; another one cannot be continued."""


@dataclass(frozen=True)
class PackOptions:
    """How clips are made into shards.

    Attributes:
        read: gives a clip's media file in place of its path (synthetic clips), or raises DecodeError; importable where
            there are workers.
        encode: a preset of :data:`mavil.data.shards.reading.ENCODES`.
        seconds: the most that is kept of a clip; ``None`` is the preset's own.
        clips_per_shard: the most in a shard; all have this many or fewer, and differ by one at most.
        seed: of the order in which clips are dealt to shards, so that a shard mixes classes.
        keep_order: deal them in the order given instead.
        require: a clip without one of these modalities is rejected.
        reject_silent: so is one without a sample above :data:`mavil.data.shards.screening.SILENCE_DBFS`.
        min_seconds: so is a shorter one.
        keep_duplicates: do not reject clips with the content of an earlier one.
        depth: of the first look, see :class:`mavil.data.shards.screening.Rules`.
        seconds_per_clip: a clip that takes longer to decode is rejected.
        workers: processes; 0 works in this one, where a crash of a decoder ends everything.
        overwrite: replace the shards that the folder already holds.
        restart: throw away what an interrupted run has left.
        show_progress: draw progress bars and say what is continued.
    """

    read: Callable[[Clip], bytes] | None = None
    encode: str = "copy"
    seconds: float | None = None
    clips_per_shard: int = CLIPS_PER_SHARD
    seed: int = 0
    keep_order: bool = False
    require: Sequence[Modality] = MODALITIES
    reject_silent: bool = False
    min_seconds: float = MIN_SECONDS
    keep_duplicates: bool = False
    depth: Depth = "all"
    seconds_per_clip: float = SECONDS_PER_CLIP
    workers: int = 0
    overwrite: bool = False
    restart: bool = False
    show_progress: bool = True

    def check(self) -> None:
        """Whether the values make sense.

        Raises:
            UserError: one does not.
        """
        if self.clips_per_shard < 1:
            raise UserError(f"{self.clips_per_shard} clips per shard: choose 1 or more")
        if self.workers < 0:
            raise UserError(f"{self.workers} workers: choose 0 (no process of their own) or more")
        if self.min_seconds < 0 or self.seconds_per_clip <= 0:
            raise UserError(
                f"at least {self.min_seconds:g} s and at most {self.seconds_per_clip:g} s to decode a clip: "
                "the first must not be negative, the second must be positive"
            )
        _ = self.target

    @property
    def target(self) -> Target:
        """What clips become."""
        return target_of(self.encode, self.seconds)

    @property
    def rules(self) -> Rules:
        """What clips must be."""
        return Rules(tuple(self.require), self.min_seconds, self.reject_silent, self.depth)

    @property
    def reader(self) -> Callable[[Clip], bytes]:
        """Gives a clip's media file as it goes into a shard."""
        return self.read or partial(read_clip, target=self.target)

    def shaping(self) -> dict[str, Any]:
        """The options that the result depends on, as JSON; with others an interrupted run cannot be continued."""
        read = self.read and f"{self.read.__module__}.{self.read.__qualname__}"
        rules = {**asdict(self.rules), "require": list(self.require), "keep_duplicates": self.keep_duplicates}
        order = {"seed": self.seed, "keep_order": self.keep_order, "clips_per_shard": self.clips_per_shard}
        return {**order, **rules, "encode": self.encode, "seconds": self.target.seconds, "read": read}


def check_folder(out: Path, overwrite: bool) -> None:
    """Whether shards may be written there; not for a set that is complete in its staging folder.

    Raises:
        UserError: a file, or shards that must not be replaced.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder for the shards")
    is_being_moved = (out / STAGING / INDEX).exists()
    if not overwrite and not is_being_moved and ((out / INDEX).exists() or any(out.glob("*.tar"))):
        raise UserError(f"{out}: already holds shards; choose another folder, or pass --overwrite to replace them")


@contextmanager
def open_staging(out: Path, clips: Sequence[Clip], options: PackOptions) -> Iterator[Path]:
    """The staging folder of exactly these clips and options, new or continued; nobody else works in it meanwhile.

    Raises:
        UserError: it belongs to other clips or options, or another program is at work there.
    """
    staging = out / STAGING
    staging.mkdir(parents=True, exist_ok=True)
    with (staging / LOCK).open("w") as lock:
        _lock(lock.fileno(), out)
        if options.restart:
            _empty(staging)
        plan = {"format": PLAN_FORMAT, "clips": digest_of_clips(clips), "options": options.shaping()}
        before = _read_plan(staging)
        if before is None:
            _empty(staging)
            write_json(staging / PLAN, plan)
        elif before != plan:
            raise UserError(
                f"{out}: an unfinished set lies there, made with {_difference(before, plan)}; use the same again to go "
                "on with it, or pass --restart to throw it away"
            )
        yield staging


def close_staging(staging: Path) -> None:
    """Remove the staging folder with everything in it."""
    shutil.rmtree(staging)


def digest_of_clips(clips: Sequence[Clip]) -> str:
    """Of everything that is known of the clips, and of their order."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(repr(clip).encode())
    return digest.hexdigest()


def write_json(path: Path, tree: Any) -> None:
    """Write a JSON file that is there whole or not at all."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(tree, ensure_ascii=False), encoding="utf-8")
    sync(aside)
    os.replace(aside, path)


def _read_plan(staging: Path) -> dict[str, Any] | None:
    try:
        plan: dict[str, Any] = json.loads((staging / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return plan


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    if before.get("format") != now["format"]:
        return "another version of this program"
    old, new = before["options"], now["options"]
    changed = [f"{name} {old.get(name)} instead of {new[name]}" for name in new if old.get(name) != new[name]]
    if before["clips"] != now["clips"]:
        changed.append("other clips (another list, range or exclusion, or files that came or went)")
    return "; ".join(changed) or "other options"


def _lock(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{out}: another program is making shards there; wait for it or choose another folder"
        ) from None
    except OSError:
        return  # a file system without locks: nobody can know


def _empty(staging: Path) -> None:
    for entry in staging.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()
