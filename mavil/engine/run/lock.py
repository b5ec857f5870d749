"""One run folder, one job: who writes to it says so in a file, and shows every few seconds that it is alive.

::

    runs/<name>/lock.1.json     who (lock_owner.py); when the file was last touched is the last sign of life

No ``flock``: on many network file systems it locks one machine only. Everything rests on creating a file that must not exist
yet, which is exclusive everywhere. Whoever finds a lock whose owner is gone creates the *next* number and touches the old one
only afterwards: of several that judge the same lock, one succeeds. The highest number is the owner. Having created it, a
claimant looks again whether what it judged is still as it was: others may have come and gone in between.

An owner is gone if it ran on this machine and its process is not there any more, if it was this very SLURM job before it was
requeued, or if it gave no sign of life for :data:`STALE_SECONDS` by the clock of the file system. A lock in between is watched
until one or the other is clear: a job that follows a dead one has often waited hours for its machines.

A job that stood still (suspended, or cut off from its disk) may find that another one has taken over. It must not write any
more: :func:`lost` tells.
"""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mavil.atomic_files import unwritable
from mavil.distributed.on_main import on_main
from mavil.engine.run.lock_owner import Owner
from mavil.structs import UserError

logger = logging.getLogger(__name__)

BEAT_SECONDS = 15.0
"""Between two signs of life."""
STALE_SECONDS = 120.0
"""Without one for so long, an owner on another machine is gone: longer than network file systems show old times (60 s)."""
_WATCH_SECONDS = 0.5
_TRIES = 100


@contextmanager
def holding(run: Path) -> Iterator[None]:
    """Claim a run folder for this job while the block runs, and make it where it does not exist; all ranks enter together.

    A :class:`mavil.engine.checkpoints.saving.Saver` must be closed inside.

    Raises:
        UserError: another job writes to it, or it cannot be written; on every rank.
    """
    on_main(lambda: _claim(run))
    try:
        yield
    finally:
        held = _held.pop(run.resolve(), None)
        if held is not None:
            held.leave()


def lost(run: Path) -> str | None:
    """Why this process (rank 0) must not write to a run any more; ``None`` while it holds it, or where nobody claimed it."""
    held = _held.get(run.resolve())
    return held.look() if held is not None else None


def owner_of(run: Path) -> str | None:
    """Who seems to write to a run at the moment, for people; only looks. ``None``: nobody."""
    found = _newest(run)
    if found is None:
        return None
    is_gone = found.owner.is_gone(Owner.this_process()) if found.owner is not None else None
    is_silent = is_gone is None and time.time() - found.touched / 1e9 > STALE_SECONDS
    return None if is_gone or is_silent else str(found.owner or f"whoever is writing {found.path}")


@dataclass(frozen=True)
class _Found:
    """A lock as it was read; ``touched`` in ns by the clock of the file system."""

    number: int
    path: Path
    text: str
    touched: int

    @property
    def owner(self) -> Owner | None:
        return Owner.parse(self.text)


class _Held:
    """A lock of this process, and the thread that shows it is alive."""

    def __init__(self, path: Path, owner: Owner) -> None:
        self._path, self._text = path, owner.text()
        self._lost: str | None = None
        self._ending = threading.Event()
        # A daemon: a process that ends without leaving its block must not wait for it.
        self._thread = threading.Thread(target=self._show_life, name="run lock", daemon=True)
        self._thread.start()

    def look(self) -> str | None:
        """Why the lock is not this process's any more. Once lost it stays so: somebody else has written since."""
        if self._lost is None:
            try:
                is_mine = self._path.read_text() == self._text
            except FileNotFoundError:
                is_mine = False
            except OSError:  # the file system is away for a moment, and nothing can be written either
                return None
            if not is_mine:
                found = _newest(self._path.parent)
                whom = f"is now written by {found.owner}" if found else f"was taken over ({self._path} is gone)"
                self._lost = f"{self._path.parent} {whom}: this job stood still for too long and must not write to it"
        return self._lost

    def leave(self) -> None:
        self._ending.set()
        self._thread.join()
        if self.look() is None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _show_life(self) -> None:
        while not self._ending.wait(BEAT_SECONDS):
            if self.look() is not None:
                logger.error("%s", self._lost)
                return
            with suppress(OSError):  # tried again; somebody who waits gives up on us later than that
                os.utime(self._path)


_held: dict[Path, _Held] = {}
"""By resolved run folder, on rank 0."""


def _claim(run: Path) -> None:
    me = Owner.this_process()
    pauses = random.Random(me.token)  # not the process's own generator: training depends on it
    try:
        run.mkdir(parents=True, exist_ok=True)
        for _ in range(_TRIES):
            before = _wait_until_free(run, me)
            path = run / f"lock.{before.number + 1 if before else 1}.json"
            if not _create(path, me):
                continue
            if _is_still_so(run, path, before):
                for older in _numbers(run):
                    if older < _number_of(path):
                        (run / f"lock.{older}.json").unlink(missing_ok=True)
                _held[run.resolve()] = _Held(path, me)
                return
            path.unlink(missing_ok=True)
            time.sleep(pauses.uniform(0.01, 0.2))
    except OSError as error:
        raise unwritable(run, error) from None
    raise UserError(f"{run}: other jobs claim this run folder all the time; choose another one with --out")


def _wait_until_free(run: Path, me: Owner) -> _Found | None:
    """The lock of an owner that is gone, ``None`` where there is none.

    Raises:
        UserError: the owner is alive.
    """
    watched: _Found | None = None
    since = time.monotonic()
    while (found := _newest(run)) is not None:
        is_gone = found.owner.is_gone(me) if found.owner is not None else None
        if is_gone:
            return found
        is_same = watched is not None and found.text == watched.text and found.path == watched.path
        if is_gone is False or (is_same and watched is not None and found.touched != watched.touched):
            raise UserError(_refusal(run, found))
        if not is_same:
            watched, since = found, time.monotonic()
        silent = (_now(run, me) - found.touched) / 1e9
        if silent > STALE_SECONDS or time.monotonic() - since > STALE_SECONDS:
            return found
        if not is_same:
            logger.warning(
                "%s: %s may have ended; watching it for up to %.0f s", run, found.owner, STALE_SECONDS - silent
            )
        time.sleep(_WATCH_SECONDS)
    return None


def _refusal(run: Path, found: _Found) -> str:
    owner = found.owner
    end = f"end it (scancel {owner.job})" if owner and owner.job else "end it"
    return (
        f"{run} is being written by {owner or 'another job'}: wait until that has finished, {end}, or choose another folder "
        f"with --out. If it is surely gone, remove {found.path}"
    )


def _is_still_so(run: Path, path: Path, before: _Found | None) -> bool:
    numbers = _numbers(run)
    if before is None:
        return numbers == [_number_of(path)]
    return numbers[-1:] == [_number_of(path)] and _read(before.path) == before


def _newest(run: Path) -> _Found | None:
    while numbers := _numbers(run):
        found = _read(run / f"lock.{numbers[-1]}.json")
        if found is not None:
            return found
    return None


def _numbers(run: Path) -> list[int]:
    return sorted(_number_of(path) for path in run.glob("lock.*.json") if re.fullmatch(r"lock\.\d+\.json", path.name))


def _number_of(path: Path) -> int:
    return int(path.name.split(".")[1])


def _read(path: Path) -> _Found | None:
    try:
        # Opening makes a network file system ask its server; a time that was only looked up may be a minute old.
        with open(path, encoding="utf-8", errors="replace") as file:
            text, touched = file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    return _Found(_number_of(path), path, text, touched)


def _create(path: Path, owner: Owner) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(owner.text())
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _now(run: Path, me: Owner) -> int:
    """The file system's own time in ns: the machines' clocks may differ."""
    probe = run / f".clock.{me.token}"
    probe.touch()
    try:
        return probe.stat().st_mtime_ns
    finally:
        probe.unlink(missing_ok=True)
