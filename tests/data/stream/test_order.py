"""The order of an epoch: the same everywhere, every clip once, shuffled within a bounded window."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mavil.data.stream.order import ShardPass, part_of, uniform_numbers, window_order
from mavil.data.stream.position import places_of

SIZES = np.array([5, 3, 0, 4, 1, 6, 2, 0])
NUM_CLIPS = 21


def clips_of_pass(sizes: np.ndarray, seed: int, epoch: int) -> list[int]:
    return ShardPass.shuffled(sizes, seed, epoch).clips_at(np.arange(sizes.sum())).tolist()


def clips_of_reader(sizes: np.ndarray, epoch: int, reader: int, num_readers: int, window: int) -> list[int]:
    places = places_of(
        int(sizes.sum()), seed=7, epoch=epoch, reader=reader, num_readers=num_readers, window=window, history=()
    )
    return ShardPass.shuffled(sizes, 7, epoch).clips_at(places).tolist()


def test_the_order_is_the_same_in_any_process_on_any_machine() -> None:
    """Typed in from another process: a change here breaks the continuation of every run there is."""
    assert uniform_numbers(2, 7, "x").tolist() == [0.2175947431127716, 0.9236202900414316]
    assert clips_of_reader(SIZES, 3, 0, 2, window=4) == [7, 5, 6, 19, 20, 12, 3, 1, 4, 0]
    assert clips_of_reader(SIZES, 3, 1, 2, window=4) == [2, 18, 13, 15, 14, 16, 17, 10, 8, 9, 11]


def test_more_numbers_begin_with_the_same_ones() -> None:
    numbers = uniform_numbers(1000, 1, "purpose")
    assert np.array_equal(numbers[:10], uniform_numbers(10, 1, "purpose"))
    assert 0 <= numbers.min() < 0.01
    assert 0.99 < numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.03


@pytest.mark.parametrize("epoch", [0, 1, 9])
def test_a_pass_has_every_clip_once_shard_by_shard(epoch: int) -> None:
    clips = clips_of_pass(SIZES, 7, epoch)
    assert sorted(clips) == list(range(NUM_CLIPS))
    shard_of_clip = np.repeat(np.arange(len(SIZES)), SIZES)
    runs = [(shard, list(run)) for shard, run in itertools.groupby(clips, key=lambda clip: shard_of_clip[clip])]
    assert len(runs) == np.count_nonzero(SIZES)
    for _, run in runs:
        smallest = run.index(min(run))
        assert run[smallest:] + run[:smallest] == sorted(run)  # in order, from some clip on and round


def test_no_two_epochs_or_seeds_are_alike() -> None:
    orders = {tuple(clips_of_pass(SIZES, seed, epoch)) for seed in range(5) for epoch in range(40)}
    assert len(orders) == 200


@pytest.mark.parametrize("num_readers", [1, 2, 3, 7, 20, 21, 30])
def test_parts_are_contiguous_and_equal(num_readers: int) -> None:
    parts = [list(range(NUM_CLIPS))[part_of(NUM_CLIPS, reader, num_readers)] for reader in range(num_readers)]
    assert list(itertools.chain(*parts)) == list(range(NUM_CLIPS))
    assert {len(part) for part in parts} <= {NUM_CLIPS // num_readers, -(-NUM_CLIPS // num_readers)}


@pytest.mark.parametrize(("num_items", "window"), [(1000, 16), (1000, 1), (1000, 999), (10, 512), (0, 4), (1, 1)])
def test_a_reader_that_goes_through_the_sequence_holds_at_most_a_window(num_items: int, window: int) -> None:
    order = window_order(num_items, window, 3)
    assert sorted(order.tolist()) == list(range(num_items))
    assert (np.abs(order - np.arange(num_items)) < window).all()
    held: set[int] = set()
    read = most_held = 0
    for item in order.tolist():
        while item not in held:
            held.add(read)
            read += 1
        most_held = max(most_held, len(held))
        held.remove(item)
    assert most_held <= window
    assert window == 1 or most_held >= min(window, num_items) * 0.4


def test_a_wide_window_shuffles_well() -> None:
    order = window_order(1000, 100_000, 3)
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1
    assert not np.array_equal(order, window_order(1000, 100_000, 4))


@pytest.mark.parametrize("num_readers", [1, 2])
def test_any_two_clips_can_meet_in_a_batch(num_readers: int) -> None:
    """Also the first clips of two shards of equal size, with a window much smaller than a shard."""
    sizes = np.array([6, 6, 6, 6])
    met: set[tuple[int, ...]] = set()
    for epoch in range(1500):
        batch_size = 4 // num_readers
        readers = [clips_of_reader(sizes, epoch, reader, num_readers, window=2) for reader in range(num_readers)]
        for first in range(0, 24 // num_readers, batch_size):
            batch = [clip for reader in readers for clip in reader[first : first + batch_size]]
            met.update(itertools.combinations(sorted(batch), 2))
    assert len(met) == 24 * 23 // 2
