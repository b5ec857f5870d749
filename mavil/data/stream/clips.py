"""Shards -> raw clips in a seeded order, split over ranks and workers, with a position to continue from.

The order is computed before anything is read (:mod:`mavil.data.stream.order`), and the table of a set of shards says where
each clip lies. Continuing therefore means reading the rest of the same list: what was consumed is not read again.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from mavil.data.shards.tars import RECORD_ENDING
from mavil.data.stream.order import ShardPass
from mavil.data.stream.position import History, places_of
from mavil.data.stream.shard_set import ShardSet
from mavil.data.stream.weights import Draws, check_enough, clip_weights, draw_epoch, number_copies
from mavil.structs import UserError


@dataclass(frozen=True)
class RawClip:
    """One clip as it lies in a shard, undecoded.

    ``consumed`` counts the items this reader has taken from ``epoch``, this one included: ``(epoch, consumed)`` is the
    position after it. ``media`` and ``record`` (JSON) are ``None`` where the shard has no such member; ``damage`` says why
    where the clip cannot be read, and then ``key`` is only its number in the shard. ``copy`` is 0, and where weighted draws
    bring a clip several times in an epoch 1, 2 ... for the later ones.
    """

    key: str
    shard: str
    epoch: int
    consumed: int
    media: bytes | None = None
    record: bytes | None = None
    damage: str | None = None
    copy: int = 0


@dataclass(frozen=True)
class _EpochPlan:
    """The items of one reader in an epoch, as it yields them; all ``[n]`` int64.

    ``places`` in the sequence, ``clips`` by number in the set, ``copies`` as in :class:`RawClip`.
    """

    epoch: int
    places: np.ndarray
    clips: np.ndarray
    copies: np.ndarray


class ClipStream:
    """The raw clips of one reader.

    Args:
        shard_set: the same for every reader.
        seed: of the run.
        training: endless and shuffled; otherwise one pass in the order of the shards, each clip exactly once over all
            readers, whose parts may differ by a clip.
        shuffle_buffer: the window within which clips are shuffled (training only). From a remote place as many undecoded
            clips are kept in memory at most, from a local one none.
        reader: number of this reader, ``rank * workers + worker``.
        num_readers: ``ranks * workers``.
        history: earlier readers, where their number or window was another (training only; see
            :func:`mavil.data.stream.position.hand_over`).
        draws: weighted draws in place of passes (training only).

    Attributes:
        items_per_epoch: over all readers.

    Raises:
        UserError: fewer items than readers to train with, weights that do not permit the draws, or a damaged index.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        *,
        seed: int,
        training: bool,
        shuffle_buffer: int,
        reader: int = 0,
        num_readers: int = 1,
        history: History = (),
        draws: Draws | None = None,
    ) -> None:
        if not training and (history or draws):
            raise ValueError("evaluation is always one whole pass, without history or draws")
        self._storage = shard_set.storage
        self._names = [shard.name for shard in shard_set.index.shards]
        self._sizes = np.array([shard.num_clips for shard in shard_set.index.shards], dtype=np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._rows = shard_set.rows()
        if self._sizes.sum() != len(self._rows):
            raise UserError(
                f"{self._storage.location}: the shards of its index hold {self._sizes.sum()} clips and its table has "
                f"{len(self._rows)}: copy the folder again, or make the shards again"
            )
        self._seed = seed
        self._training = training
        self._window = shuffle_buffer if training else 1
        self._reader = reader
        self._num_readers = num_readers
        self._history = history
        self._draws = draws
        if draws is not None:
            self._weights = clip_weights(shard_set.table(), draws.weights)
            check_enough(draws, self._weights)
        self.items_per_epoch = len(self._rows) if draws is None else draws.draws
        if training and self.items_per_epoch < num_readers:
            raise UserError(
                f"{self.items_per_epoch} clips an epoch cannot feed {num_readers} readers (ranks x data.num_workers): "
                "use fewer workers, or more clips"
            )

    def read(self, epoch: int = 0, consumed: int = 0) -> Iterator[RawClip]:
        """Clips from a position on; the first ``consumed`` of ``epoch`` are neither read nor yielded. Endless in training.

        Raises:
            UserError: the place of the shards cannot be reached, or too few of an epoch's clips have a weight.
        """
        while True:
            plan = self._plan(epoch)
            if self._storage.is_local:
                yield from (self._read_clip(plan, turn) for turn in range(consumed, len(plan.places)))
            else:
                yield from self._read_ahead(plan, consumed)
            if not self._training:
                return
            epoch, consumed = epoch + 1, 0

    def _plan(self, epoch: int) -> _EpochPlan:
        places = places_of(
            self.items_per_epoch,
            seed=self._seed,
            epoch=epoch,
            reader=self._reader,
            num_readers=self._num_readers,
            window=self._window,
            history=self._history,
        )
        if not self._training:
            return _EpochPlan(epoch, places, clips=places, copies=np.zeros_like(places))
        shards = ShardPass.shuffled(self._sizes, self._seed, epoch)
        if self._draws is None:
            return _EpochPlan(epoch, places, shards.clips_at(places), np.zeros_like(places))
        by_shard = not self._storage.is_local
        drawn = draw_epoch(self._draws, self._weights, shards, by_shard, self._seed, epoch)
        return _EpochPlan(epoch, places, drawn[places], number_copies(drawn)[places])

    def _read_ahead(self, plan: _EpochPlan, consumed: int) -> Iterator[RawClip]:
        """Read in the order of the sequence, so that a shard is read forward, and hold what is not yet to be yielded."""
        reading = iter(consumed + np.argsort(plan.places[consumed:], kind="stable"))
        held: dict[int, RawClip] = {}  # by turn; never more than the window
        last_clip, last = -1, None
        for turn in range(consumed, len(plan.places)):
            while turn not in held:
                ahead = int(next(reading))
                if last is not None and last_clip == plan.clips[ahead]:  # drawn several times
                    last = replace(last, consumed=ahead + 1, copy=int(plan.copies[ahead]))
                else:
                    last_clip, last = int(plan.clips[ahead]), self._read_clip(plan, ahead)
                held[ahead] = last
            yield held.pop(turn)

    def _read_clip(self, plan: _EpochPlan, turn: int) -> RawClip:
        clip = int(plan.clips[turn])
        shard = int(np.searchsorted(self._starts, clip, side="right")) - 1
        raw = RawClip(
            f"clip {clip - self._starts[shard]}",
            self._names[shard],
            plan.epoch,
            consumed=turn + 1,
            copy=int(plan.copies[turn]),
        )
        offset, media_at, media_bytes, record_at, record_bytes, _ = self._rows[clip].item()
        size = max(media_at + media_bytes, record_at + record_bytes)
        try:
            block = self._storage.read(raw.shard, offset, size)
        except OSError as error:
            return replace(raw, damage=f"its shard cannot be read ({error.strerror or type(error).__name__})")
        if len(block) < size:
            return replace(raw, damage=f"its shard ends {size - len(block)} bytes before the end of the clip")
        key = _key_of(block, (media_at, media_bytes, record_at, record_bytes))
        if key is None:
            return replace(raw, damage="its shard is damaged or changed: the clip is not where the table of clips says")
        media = block[media_at : media_at + media_bytes] if media_bytes else None
        record = block[record_at : record_at + record_bytes] if record_bytes else None
        return replace(raw, key=key, media=media, record=record)


def _key_of(block: bytes, place: tuple[int, int, int, int]) -> str | None:
    """The key of the clip whose tar members a block holds; none if they are not those of one clip at that place.

    ``place``: media_at, media_bytes, record_at, record_bytes as in :data:`mavil.data.shards.clip_table.ROW`.
    """
    found = [0, 0, 0, 0]
    keys: set[str] = set()
    try:
        tar = tarfile.TarFile(fileobj=io.BytesIO(block))  # it verifies the checksum of every header
        while tar.offset < len(block) or not keys:
            member = tar.next()
            if member is None:
                return None
            key, _, ending = member.name.rpartition(".")
            keys.add(key)
            first = 2 if ending == RECORD_ENDING else 0
            found[first : first + 2] = member.offset_data, member.size
    except Exception:
        # tarfile answers bytes that were made to mislead it with errors of many kinds; all mean the same here.
        return None
    return keys.pop() if len(keys) == 1 and tuple(found) == place else None
