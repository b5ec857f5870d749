"""Clips given as they are: a CSV or a folder as ``data.train`` or ``data.evaluation`` is packed once, then found again.

::

    shards/auto/
        clips-1a2b3c4d/     the shards of clips.csv; the digits are a digest of what it lists and of its files
        .clips-1a2b3c4d.lock

The digest covers every row (path, span, labels, metadata) and every file's size and time of change. What changes gets
shards of its own; what does not is found again. Nothing old is removed: ``shards/auto`` may be deleted at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from rich.console import Console

from mavil import distributed
from mavil.commands.shard_tables import show_counts, show_index
from mavil.config import Recipe
from mavil.data.shards.index import INDEX, ShardIndex, read_index
from mavil.data.shards.measure import measure_statistics
from mavil.data.shards.pack import make_shards
from mavil.data.shards.plan import STAGING
from mavil.data.shards.publish import REJECTS
from mavil.data.shards.statistics import read_statistics
from mavil.data.sources.read import Listing, SourceOptions, read_source, told_format
from mavil.data.stream.addresses import kind_of
from mavil.engine.process.stopping import Interrupted
from mavil.recipe import change_recipe
from mavil.structs import Clip, UserError

AUTO = Path("shards/auto")
"""Where shards of lists and folders go, below the working directory, as ``runs/`` does."""
OWN_FORMATS = ("csv", "folder")
"""Lists of public datasets have splits, and files in other places: ``mavil shards make`` asks for both."""
MEASURED_CLIPS = 10_000
"""At most so many are measured for the log-mel statistics [our choice]; the mean is then known to a hundredth."""
DIGEST_DIGITS = 8
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_LISTED_TWICE = "duplicate"


class Packed(NamedTuple):
    """``folder`` has the shards of ``listing``."""

    folder: Path
    listing: Listing


def is_media(location: str) -> bool:
    """Whether a location is a list or a folder of media files: neither an address, nor shards, finished or not."""
    if kind_of(location) != "folder":
        return False
    path = Path(location)
    if path.is_file() or path.suffix.lower() == ".csv":
        return True
    if not path.is_dir() or (path / INDEX).exists() or (path / STAGING).exists():
        return False
    return not any(path.glob("*.tar"))


def shards_at(location: str, max_skip_ratio: float) -> str:
    """The folder or address of the shards of a location; media are packed now, where they are not packed yet.

    Raises:
        UserError: as :func:`pack_once`.
    """
    return str(pack_once(location, max_skip_ratio).folder) if is_media(location) else location


def known_shards(location: str) -> Path | None:
    """The folder of the shards of a location if they are on this machine already; nothing is packed.

    Raises:
        UserError: a list cannot be read.
    """
    if not is_media(location):
        return Path(location) if Path(location).is_dir() else None
    folder = _place(Path(location), _listing(Path(location)))
    return folder if (folder / INDEX).is_file() else None


def with_packed_clips(recipe: Recipe, remarks: list[str]) -> Recipe:
    """The recipe with shards for ``data.train`` and ``data.evaluation``, of which the first have log-mel statistics.

    Collective: the first rank packs, the others wait for its lock, not in an exchange that would time out. What people
    should know is added to ``remarks``.

    Raises:
        UserError: as :func:`pack_once`; on every rank, also where only one of them does not find the files.
    """
    complete, problem = recipe, None
    try:
        complete = _with_packed_clips(recipe, remarks)
    except UserError as error:
        problem = str(error)
    problems = [text for text in distributed.gather_objects(problem) if text is not None]
    if problems:
        raise UserError(problems[0])
    return complete


def _with_packed_clips(recipe: Recipe, remarks: list[str]) -> Recipe:
    found: dict[str, Packed] = {}
    for split in ("train", "evaluation"):
        location = getattr(recipe.data, split)
        if location is not None and is_media(location):
            found[split] = pack_once(location, recipe.data.max_skip_ratio)
            remarks.append(f"data.{split}: {location} is packed in {found[split].folder}")
    if "train" in found:
        _measure_once(recipe, found["train"].folder)
    if len(found) == 2:
        remarks += _shared(found["train"].listing, found["evaluation"].listing)
    return change_recipe(recipe, *(f"data.{split}={packed.folder}" for split, packed in found.items()))


def pack_once(location: str, max_skip_ratio: float) -> Packed:
    """Pack a CSV or a folder of media files, unless that was done before; clips with one modality are packed too.

    Args:
        location: the CSV or the folder.
        max_skip_ratio: the share of clips that may be unusable; the same content listed twice is not among them.

    Raises:
        UserError: the list cannot be read, is one of a public dataset, or too many of its clips cannot be used.
    """
    source = Path(location)
    listing = _listing(source)
    _refuse_missing(source, listing.clips, max_skip_ratio)
    folder = _place(source, listing)
    with _stopped_at_once(), _alone(folder):
        if not (folder / INDEX).is_file():
            console = Console()
            console.print(f"{source}: packing {len(listing.clips)} clips, once, in {folder}", highlight=False)
            made = make_shards(listing, folder, require=(), workers=_num_workers())
            show_counts(made.num_clips, made.rejected, console)
            show_index(made, console)
    _refuse_unusable(source, read_index(folder), max_skip_ratio)
    return Packed(folder, listing)


def _listing(source: Path) -> Listing:
    if not source.exists():
        raise UserError(f"{source}: no such CSV; name a list with a column 'path', a folder of media files, or shards")
    told = told_format(source)
    if told not in OWN_FORMATS:
        raise UserError(
            f"{source}: looks like {told}, a public dataset with splits and names of its own: pack the part that is meant "
            "with mavil shards make, and name the shards"
        )
    return read_source(source, SourceOptions(format=told))


def _place(source: Path, listing: Listing) -> Path:
    root = source if source.is_dir() else source.parent
    digest = hashlib.sha256()
    for clip in listing.clips:
        digest.update(repr((replace(clip, path=os.path.relpath(clip.path, root)), _size_and_time(clip.path))).encode())
    name = re.sub(r"[^\w.-]", "_", source.resolve().stem)
    return AUTO / f"{name}-{digest.hexdigest()[:DIGEST_DIGITS]}"


def _size_and_time(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _refuse_missing(source: Path, clips: tuple[Clip, ...], max_skip_ratio: float) -> None:
    """Before an hour of packing: a wrong folder shows at once."""
    missing = [clip.path for clip in clips if not os.path.exists(clip.path)]
    if len(missing) > max_skip_ratio * len(clips):
        raise UserError(
            f"{source}: {len(missing)} of {len(clips)} files are missing, e.g. {missing[0]}: correct the paths, which count "
            f"from {source.parent}, or leave these rows out"
        )


def _refuse_unusable(source: Path, index: ShardIndex, max_skip_ratio: float) -> None:
    causes = {cause: count for cause, count in index.rejected.items() if cause != _LISTED_TWICE}
    unusable, listed = sum(causes.values()), index.num_clips + sum(index.rejected.values())
    if unusable > max_skip_ratio * listed:
        counts = ", ".join(f"{cause} {count}" for cause, count in causes.items())
        raise UserError(
            f"{source}: {unusable} of {listed} clips cannot be used ({counts}; {index.folder / REJECTS} lists them), more than "
            f"data.max_skip_ratio={max_skip_ratio:g}: repair or leave them out, or set it higher"
        )


def _measure_once(recipe: Recipe, folder: Path) -> None:
    audio = recipe.audio
    if audio is None or "audio" not in recipe.modalities or audio.mean is not None:
        return
    with _stopped_at_once(), _alone(folder):
        index = read_index(folder)
        before = read_statistics(folder, index)
        if before is not None and (audio.spectrogram, audio.num_mel_bins) in before.log_mel:
            return
        # Sound that cannot be measured leaves AudioSet's statistics, which training says.
        with suppress(UserError):
            measure_statistics(
                folder,
                num_mel_bins=audio.num_mel_bins,
                spectrogram=audio.spectrogram,
                clips=MEASURED_CLIPS,
                workers=_num_workers(),
            )


def _shared(train: Listing, evaluation: Listing) -> list[str]:
    """What to say of clips that are trained on and evaluated on: the same span of the same file."""
    seen = {_span(clip) for clip in train.clips}
    shared = [clip.path for clip in evaluation.clips if _span(clip) in seen]
    if not shared:
        return []
    return [
        f"{len(shared)} of {len(evaluation.clips)} evaluation clips are training clips too, e.g. {shared[0]}: what the "
        "evaluation says of them is not true of new clips"
    ]


def _span(clip: Clip) -> tuple[str, float | None, float | None]:
    return os.path.realpath(clip.path), clip.start_seconds, clip.end_seconds


def _num_workers() -> int:
    return len(os.sched_getaffinity(0))


@contextmanager
def _stopped_at_once() -> Iterator[None]:
    """Signals end packing and waiting for it, where training would only note them for the end of its step.

    Raises:
        Interrupted: there was one; what is packed is kept.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles no signals there
        return

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt  # which no handler of errors on the way takes for one

    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
    try:
        for number in SIGNALS:
            signal.signal(number, leave)
        yield
    except KeyboardInterrupt:
        raise Interrupted("stopped while packing; nothing was lost, the same command goes on with it") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; whoever waited finds what the first has made."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = (folder.parent / f".{folder.name}.lock").open("w")
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error.strerror}); clips given as files are packed there: work in a folder you may "
            "write to, or pack them elsewhere with mavil shards make"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if distributed.world_size() > 1:
                raise UserError(
                    f"{folder.parent}: its file system cannot lock files ({error.strerror}), so several ranks cannot agree who "
                    "packs: pack with mavil shards make first, and name the shards"
                ) from None
        yield
