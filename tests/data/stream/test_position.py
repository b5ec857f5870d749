"""What is left of an epoch when other readers take over, over any number of changes."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest

from mavil.data.stream.position import History, Team, hand_over, places_of, unseen_places

NUM_ITEMS = 37


def places(epoch: int, reader: int, num_readers: int, window: int, history: History = ()) -> list[int]:
    return places_of(
        NUM_ITEMS, seed=5, epoch=epoch, reader=reader, num_readers=num_readers, window=window, history=history
    ).tolist()


class Run:
    """Plays a run with changing readers and notes every (epoch, place) that was seen."""

    def __init__(self) -> None:
        self.history: History = ()
        self.epoch = 0
        self.seen: Counter[tuple[int, int]] = Counter()

    def go_on(self, window: int, steps: list[int]) -> None:
        """Reader r takes ``steps[r]`` items, from as many epochs as that needs, and then all hand over."""
        positions = []
        for reader, wanted in enumerate(steps):
            epoch, consumed = self.epoch, 0
            items = places(epoch, reader, len(steps), window, self.history)
            for _ in range(wanted):
                while consumed == len(items):
                    epoch, consumed = epoch + 1, 0
                    items = places(epoch, reader, len(steps), window, self.history)
                self.seen[epoch, items[consumed]] += 1
                consumed += 1
            positions.append((epoch, consumed))
        self.history, self.epoch = hand_over(self.history, Team(window, tuple(positions)))

    def finish(self, epochs: int) -> None:
        for epoch in range(self.epoch, epochs):
            self.seen.update((epoch, place) for place in unseen_places(NUM_ITEMS, 5, epoch, self.history).tolist())


def test_four_then_two_then_three_readers_see_each_item_once() -> None:
    run = Run()
    run.go_on(4, [30, 5, 9, 12])  # the first is in its fourth epoch, the second has not finished its first
    assert run.history[0].positions[0][0] == 3
    assert run.epoch == 0
    run.go_on(9, [40, 3])
    run.go_on(1, [2, 50, 0])
    assert len(run.history) == 3
    run.finish(8)
    assert set(run.seen.values()) == {1}
    assert len(run.seen) == 8 * NUM_ITEMS


@pytest.mark.parametrize("seed", range(25))
def test_every_item_is_seen_once_over_any_changes(seed: int) -> None:
    choose = random.Random(seed)
    run = Run()
    for _ in range(5):
        num_readers = choose.choice([1, 2, 3, 5, 8, 36])
        run.go_on(choose.choice([1, 4, 100]), [choose.randint(0, 90 // num_readers) for _ in range(num_readers)])
    run.finish(20)
    assert set(run.seen.values()) == {1}
    assert len(run.seen) == 20 * NUM_ITEMS


def test_epochs_that_nobody_touched_are_as_new() -> None:
    history = (Team(4, ((2, 3), (3, 1))), Team(7, ((2, 0), (3, 2), (3, 0))))
    assert places(3, 0, 2, 4, history) != places(3, 0, 2, 4)
    assert places(4, 0, 2, 4, history) == places(4, 0, 2, 4)


def test_nothing_is_left_of_finished_epochs() -> None:
    history = (Team(4, ((2, 3), (3, 1))),)
    assert [len(unseen_places(NUM_ITEMS, 5, epoch, history)) for epoch in range(5)] == [0, 0, 15, 36, 37]


def test_teams_that_no_longer_matter_are_dropped() -> None:
    first, ahead = Team(4, ((2, 3), (2, 1))), Team(4, ((9, 3), (1, 0)))
    last = Team(8, ((5, 6), (6, 0), (5, 0)))
    assert hand_over((first, ahead), last) == ((ahead, last), 5)
    # Dropping changes nothing from that epoch on.
    for epoch in range(5, 11):
        left = unseen_places(NUM_ITEMS, 5, epoch, (ahead, last))
        assert np.array_equal(left, unseen_places(NUM_ITEMS, 5, epoch, (first, ahead, last)))
    assert hand_over((ahead,), Team(8, ((10, 0), (10, 0)))) == ((), 10)


def test_a_part_may_be_empty_and_its_reader_goes_on_with_the_next_epoch() -> None:
    history, epoch = hand_over((), Team(4, ((0, NUM_ITEMS - 2),)))
    shares = [places(epoch, reader, 5, 4, history) for reader in range(5)]
    assert sorted(map(len, shares)) == [0, 0, 0, 1, 1]


def test_a_team_is_kept_as_plain_numbers() -> None:
    team = Team(16, ((3, 10**6), (2, 0)))
    assert Team.from_dict(json.loads(json.dumps(team.to_dict()))) == team
