"""Weighted draws in place of passes: what each clip weighs, and which clips an epoch draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mavil.data.shards.clip_table import ClipTable
from mavil.data.stream.order import ShardPass, uniform_numbers
from mavil.structs import UserError


@dataclass(frozen=True)
class Draws:
    """How an epoch is drawn.

    Attributes:
        weights: of the clips' ``classes`` (see :func:`class_weights`), or those the ``source`` of the clips gave.
        draws: items per epoch, over all readers.
        replacement: each item is any clip with a probability proportional to its weight; otherwise the clips are drawn one
            after the other like this from those that are left, so none comes twice in an epoch.
        shard_share: an epoch draws from this share of the shards only, another each time, so that fewer bytes are read from
            a remote place. Frequencies are then right within the epoch's shards, and only roughly over many epochs.
    """

    weights: Literal["classes", "source"]
    draws: int
    replacement: bool = True
    shard_share: float = 1.0


def class_weights(label_counts: np.ndarray) -> np.ndarray:
    """``[classes]`` float64: 1000 / (clips of the class + 0.01) [source: AST and Audio-MAE for AudioSet]."""
    return 1000.0 / (np.asarray(label_counts, dtype=np.float64) + 0.01)


def clip_weights(table: ClipTable, kind: Literal["classes", "source"]) -> np.ndarray:
    """``[clips]`` float64: the class weights summed over a clip's labels (0 without labels), or the source's weights.

    Raises:
        UserError: no clip weighs anything, or a weight is negative or no number.
    """
    if kind == "classes":
        num_labels = np.diff(table.label_starts)
        weight_of_class = class_weights(np.bincount(table.label_ids))
        clip_of_label = np.repeat(np.arange(len(table)), num_labels)
        weights = np.bincount(clip_of_label, weights=weight_of_class[table.label_ids], minlength=len(table))
    else:
        weights = table.rows["weight"].astype(np.float64)
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise UserError("the weight of some clips is negative or no number: correct the source's weights, pack again")
    if not weights.any():
        raise UserError(
            f"no clip has a weight above 0 (data.sampling.weights is {kind}): pack clips with labels or weights, "
            "or leave data.sampling out"
        )
    return weights


def check_enough(draws: Draws, weights: np.ndarray) -> None:
    """Raise ``UserError`` if that many draws cannot be made from these ``[clips]`` weights."""
    positive = int(np.count_nonzero(weights))
    needed = 1 if draws.replacement else draws.draws
    if positive < needed:
        raise UserError(
            f"{draws.draws} draws an epoch need at least {needed} clips with a weight above 0, and there are {positive} in "
            f"{draws.shard_share:.0%} of the shards: set data.sampling.draws lower, replacement true or shard_share higher"
        )


def draw_epoch(
    draws: Draws, weights: np.ndarray, shards: ShardPass, by_shard: bool, seed: int, epoch: int
) -> np.ndarray:
    """``[draws]`` int64 clip numbers: the sequence of an epoch.

    Args:
        weights: ``[clips]`` float64.
        shards: the epoch's pass, whose first shards are drawn from.
        by_shard: in the order of that pass, for a place where reading forward is cheap and jumping is not; otherwise in a
            random order. The clips are the same in both.

    Raises:
        UserError: as :func:`check_enough`, for the shards of this epoch.
    """
    if draws.shard_share < 1:
        weights = _within_share(weights, shards, draws.shard_share)
    check_enough(draws, weights)
    if draws.replacement:
        drawn = _draw_with_replacement(weights, draws.draws, seed, epoch)
    else:
        drawn = _draw_without_replacement(weights, draws.draws, seed, epoch)
    if by_shard:
        place_of_clip = np.empty(len(weights), dtype=np.int64)
        place_of_clip[shards.clips_at(np.arange(len(weights)))] = np.arange(len(weights))
        return drawn[np.argsort(place_of_clip[drawn], kind="stable")]
    return drawn[np.argsort(uniform_numbers(len(drawn), seed, "order of draws", epoch), kind="stable")]


def number_copies(clips: np.ndarray) -> np.ndarray:
    """``[n]`` int64: how many times the clip of each item has come before in the sequence."""
    by_clip = np.argsort(clips, kind="stable")
    ordered = clips[by_clip]
    firsts = np.searchsorted(ordered, ordered, side="left")
    copies = np.empty(len(clips), dtype=np.int64)
    copies[by_clip] = np.arange(len(clips)) - firsts
    return copies


def _within_share(weights: np.ndarray, shards: ShardPass, share: float) -> np.ndarray:
    """The weights of the clips in the first shards of a pass, 0 elsewhere."""
    num_shards = max(1, round(share * len(shards.order)))
    num_clips = int(shards.sizes[shards.order[:num_shards]].sum())
    inside = shards.clips_at(np.arange(num_clips))
    kept = np.zeros_like(weights)
    kept[inside] = weights[inside]
    return kept


def _draw_with_replacement(weights: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    cumulative = np.cumsum(weights)  # one after the other, so the same on every machine, which a sum is not
    return np.searchsorted(cumulative, uniform_numbers(count, seed, "draws", epoch) * cumulative[-1], side="right")


def _draw_without_replacement(weights: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """Give each clip an exponential waiting time with its weight as the rate: the first to come are those drawn
    [source: Efraimidis and Spirakis, 2006]."""
    numbers = uniform_numbers(len(weights), seed, "draws", epoch)
    times = np.full(len(weights), np.inf)
    np.divide(-np.log1p(-numbers), weights, out=times, where=weights > 0)
    # Sorted by number, for the order within a partition is each processor's own. So may be the last bit of a logarithm, but
    # that changes the draws only where the last clip drawn and the first one left differ in nothing else.
    return np.sort(np.argpartition(times, count - 1)[:count])
