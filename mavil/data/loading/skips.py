"""Counting the clips that cannot be used, telling people about them, and stopping when there are too many."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from mavil.structs import UserError

logger = logging.getLogger(__name__)

FEWEST_SKIPS = 8
"""Fewer skips than this are put down to chance."""
DEVIATIONS = 4.0
"""So many standard deviations above the allowed share are chance too. Every rank judges its own part: with less slack the
unluckiest of 64 ranks would stop a run whose share of unusable clips is well below the limit."""
WARNINGS_PER_CAUSE = 5
"""Clips named in the log per cause; after that only every power of two."""


@dataclass(frozen=True)
class Skip:
    """One clip that was left out."""

    cause: str
    detail: str
    key: str
    shard: str


@dataclass(frozen=True)
class SkipPolicy:
    """How many clips may be left out: at most ``max_ratio`` of those seen; none at all if it ``stops_at_first``."""

    max_ratio: float = 0.05
    stops_at_first: bool = False


class SkipTally:
    """Skips of one rank, by cause.

    Args:
        folder: of the shards, for messages.
        policy: how many there may be.
        num_clips: clips in the whole set.
        sees_all: this is the only rank, so that a finished pass tells the exact share.
    """

    def __init__(self, folder: str, policy: SkipPolicy, num_clips: int, sees_all: bool) -> None:
        self.counts: Counter[str] = Counter()
        self._folder = folder
        self._policy = policy
        self._num_clips = num_clips
        self._sees_all = sees_all
        self._num_seen = 0

    def start(self) -> None:
        """Begin a pass."""
        self.counts = Counter()
        self._num_seen = 0

    def add(self, num_seen: int, skips: Iterable[Skip]) -> None:
        """Count ``num_seen`` more clips, ``skips`` of them left out.

        Raises:
            UserError: the share of clips left out is too large beyond chance, or not one of the set could be used.
        """
        self._num_seen += num_seen
        for skip in skips:
            self.counts[skip.cause] += 1
            if self._policy.stops_at_first:
                raise UserError(
                    f"{self._folder}: clip {skip.key} of {skip.shard} cannot be used ({skip.cause}: {skip.detail}); "
                    "correct the source and make the shards again, or set data.unusable=skip"
                )
            count = self.counts[skip.cause]
            if count <= WARNINGS_PER_CAUSE or count.bit_count() == 1:
                logger.warning(
                    "clip %s of %s left out (%s, %d so far): %s", skip.key, skip.shard, skip.cause, count, skip.detail
                )
        share = self._policy.max_ratio
        allowed = share * self._num_seen + DEVIATIONS * math.sqrt(share * (1 - share) * self._num_seen)
        if self.counts.total() > max(allowed, FEWEST_SKIPS - 1 if share else 0):
            raise self._too_many()
        if self.counts.total() == self._num_seen >= self._num_clips:
            raise self._too_many()

    def finish(self) -> None:
        """End a pass.

        Raises:
            UserError: the whole set was seen, and the share of clips left out is too large or not one could be used.
        """
        num_skipped = self.counts.total()
        is_hopeless = 0 < num_skipped == self._num_seen
        if self._sees_all and (is_hopeless or num_skipped > self._policy.max_ratio * self._num_seen):
            raise self._too_many()

    def _too_many(self) -> UserError:
        num_skipped = self.counts.total()
        amount = "none" if num_skipped == self._num_seen else f"only {self._num_seen - num_skipped}"
        causes = ", ".join(f"{cause} {count}" for cause, count in self.counts.most_common())
        return UserError(
            f"{self._folder}: {amount} of {self._num_seen} clips can be used ({causes}; data.max_skip_ratio is "
            f"{self._policy.max_ratio:g}): the log names some of them; correct the source and make the shards again"
        )
