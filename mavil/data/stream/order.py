"""The order of an epoch: one sequence for everybody, cut into a part per reader, each part shuffled within a window.

A *reader* is one worker of one rank. An epoch is a sequence of *items*, an item is a clip to be yielded, and its *place* is
its number in that sequence. All of it is a pure function of (seed, epoch, clips per shard): every process computes the same
sequence by itself, from a generator's raw 64-bit numbers, sums, products and stable sorts. These give the same result on any
machine; of its random numbers numpy promises that for the raw ones only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mavil.seeds import sample_seed


def uniform_numbers(count: int, *seed_parts: object) -> np.ndarray:
    """``[count]`` float64 in [0, 1), a function of the parts only; a larger count begins with the same numbers."""
    raw = np.random.PCG64(sample_seed(*seed_parts)).random_raw(count)
    return (raw >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class ShardPass:
    """Every clip once: shard after shard, each from one of its clips on and round to the one before it.

    Attributes:
        sizes: ``[shards]`` int64 clips per shard, in the order of the index, which also numbers the clips.
        order: ``[shards]`` int64 which shard comes first, second ...
        turns: ``[shards]`` int64 the clip of each shard that comes first, by the order of the index.
    """

    sizes: np.ndarray
    order: np.ndarray
    turns: np.ndarray

    @classmethod
    def shuffled(cls, sizes: np.ndarray, seed: int, epoch: int) -> ShardPass:
        """The pass of an epoch: shards in a random order, each begun at a random clip.

        The beginning matters where shards are of equal size: every reader would pass their first clips at the same time, and
        a first clip and a middle one could never meet in a batch. It costs one more seek per shard.
        """
        order = np.argsort(uniform_numbers(len(sizes), seed, "shards", epoch), kind="stable")
        turns = (uniform_numbers(len(sizes), seed, "turns", epoch) * sizes).astype(np.int64)
        return cls(sizes, order, turns)

    def clips_at(self, places: np.ndarray) -> np.ndarray:
        """``[n]`` int64 clip numbers at ``[n]`` places of the sequence."""
        sizes_in_order = self.sizes[self.order]
        starts = np.cumsum(sizes_in_order) - sizes_in_order
        nth = np.searchsorted(starts, places, side="right") - 1
        shards = self.order[nth]
        firsts = np.cumsum(self.sizes) - self.sizes
        return firsts[shards] + (places - starts[nth] + self.turns[shards]) % self.sizes[shards]


def part_of(num_items: int, reader: int, num_readers: int) -> slice:
    """The items of one reader: contiguous, all readers' together are everything, and sizes differ by one at most."""
    return slice(num_items * reader // num_readers, num_items * (reader + 1) // num_readers)


def window_order(num_items: int, window: int, *seed_parts: object) -> np.ndarray:
    """``[num_items]`` int64: items ``0, 1, ...`` shuffled so that none moves by ``window`` places or more.

    Where all items fit into the window, every order is as likely as any other. Else item i is sorted by ``i + u * window``
    with its own uniform u. When item i comes, every item from ``i + window`` on is still to come and every item up to
    ``i - window`` has come: who reads the items in sequence and yields them in this order holds at most ``window`` of them
    at any moment, half as many on average.
    """
    keys = uniform_numbers(num_items, *seed_parts)
    if num_items > window:
        keys = np.arange(num_items) + keys * window
    return np.argsort(keys, kind="stable")
