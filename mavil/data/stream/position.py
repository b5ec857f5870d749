"""How far the readers came, and what is left of an epoch when other readers take over in the middle of it.

A run continues with the same readers from their ``(epoch, consumed)`` alone. When their number or their window changes, the
items that nobody has seen are cut anew among the new readers. What was seen follows from the earlier teams' positions by
computing their order again; nothing about single clips is ever stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mavil.data.stream.order import part_of, window_order


@dataclass(frozen=True)
class Team:
    """All readers of an earlier part of the run, and how far each came.

    Attributes:
        shuffle_buffer: the window within which each shuffled, clips.
        positions: (epoch, items consumed of it) of reader 0, 1, ...: the reader has finished all epochs before that one.
    """

    shuffle_buffer: int
    positions: tuple[tuple[int, int], ...]

    @property
    def open_epoch(self) -> int:
        """The first epoch that not every reader has finished."""
        return min(epoch for epoch, _ in self.positions)

    def consumed(self, reader: int, epoch: int, num_items: int) -> int:
        """How many of a reader's ``num_items`` of an epoch it has consumed."""
        its_epoch, consumed = self.positions[reader]
        return num_items if epoch < its_epoch else min(consumed, num_items) if epoch == its_epoch else 0

    def to_dict(self) -> dict[str, Any]:
        """As numbers and lists, for a checkpoint."""
        return {"shuffle_buffer": self.shuffle_buffer, "positions": [list(position) for position in self.positions]}

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Team:
        """Back from :meth:`to_dict`."""
        return cls(int(tree["shuffle_buffer"]), tuple((int(epoch), int(n)) for epoch, n in tree["positions"]))


History = tuple[Team, ...]
"""The teams that read before the present one, oldest first."""


def hand_over(history: Iterable[Team], last: Team) -> tuple[History, int]:
    """The history for the team that takes over from ``last``, and the epoch at which its readers begin, 0 consumed.

    Teams that have seen nothing of that epoch or a later one no longer matter and are dropped, so the history is only true
    from that epoch on.
    """
    epoch = last.open_epoch
    return tuple(team for team in (*history, last) if max(team.positions) > (epoch, 0)), epoch


def unseen_places(num_items: int, seed: int, epoch: int, history: History) -> np.ndarray:
    """``[n]`` int64, ascending: the places of an epoch's items that no team has consumed."""
    left = np.arange(num_items)
    for team in history:
        is_left = np.ones(len(left), dtype=bool)
        for reader in range(len(team.positions)):
            part = part_of(len(left), reader, len(team.positions))
            consumed = team.consumed(reader, epoch, part.stop - part.start)
            if consumed == part.stop - part.start:
                is_left[part] = False
            elif consumed > 0:
                order = _order(part, team.shuffle_buffer, seed, epoch, reader, len(team.positions))
                is_left[order[:consumed]] = False
        left = left[is_left]
    return left


def places_of(
    num_items: int, *, seed: int, epoch: int, reader: int, num_readers: int, window: int, history: History
) -> np.ndarray:
    """``[n]`` int64: the places of an epoch's items that fall to one reader, in the order in which it takes them."""
    left = unseen_places(num_items, seed, epoch, history)
    return left[_order(part_of(len(left), reader, num_readers), window, seed, epoch, reader, num_readers)]


def _order(part: slice, window: int, seed: int, epoch: int, reader: int, num_readers: int) -> np.ndarray:
    return part.start + window_order(part.stop - part.start, window, seed, "window", epoch, reader, num_readers)
