"""Validation clips out of the training ones: of every class, and groups never split."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from mavil.structs import UserError

VALIDATION_SHARE = 0.1
"""Of the training clips, where no validation shards are given [our choice, as usual]."""


def hold_out(
    targets: Tensor, groups: Sequence[str] | None, classes: Sequence[str], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Clips to learn from and clips to validate on, each ``[m]`` int64 in order; together all of them, once.

    Of every class about a tenth, one clip at least, never all; a clip with several classes counts as of the rarest one. With
    ``groups`` whole groups are taken, such that the shares of the classes are about the same (scikit-learn's
    ``StratifiedGroupKFold``).

    Args:
        targets: ``[n, C]`` bool, each clip with one class at least.
        groups: of each clip; ``None``: every clip by itself.
        classes: names, for messages.
        seed: which clips.

    Raises:
        UserError: no clip can be held out, or with groups a class would have no clip left to learn from.
    """
    is_positive = targets.numpy()
    counts = is_positive.sum(axis=0)
    strata = np.where(is_positive, counts, counts.max() + 1).argmin(axis=1)
    held = _of_each(strata, seed) if groups is None else _whole_groups(strata, is_positive, groups, classes, seed)
    if not held.any():
        raise UserError(
            "no class has two training clips, so none can be held out for validation: give --validation shards"
        )
    return np.flatnonzero(~held), np.flatnonzero(held)


def _of_each(strata: np.ndarray, seed: int) -> np.ndarray:
    """``[n]`` bool: of every stratum ``[n]`` int64 a share."""
    generator = np.random.default_rng(seed)
    held = np.zeros(len(strata), dtype=bool)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        number = min(max(1, round(VALIDATION_SHARE * len(members))), len(members) - 1)
        held[generator.permutation(members)[:number]] = True
    return held


def _whole_groups(
    strata: np.ndarray, is_positive: np.ndarray, groups: Sequence[str], classes: Sequence[str], seed: int
) -> np.ndarray:
    """The first fold that leaves every class a clip."""
    num_groups = len(set(groups))
    if num_groups < 2:
        raise UserError(
            f"all {len(groups)} training clips are of one group ({groups[0]!r}), so none can be held out for validation: "
            "name another --group-field, or give --validation shards"
        )
    folds = StratifiedGroupKFold(min(round(1 / VALIDATION_SHARE), num_groups), shuffle=True, random_state=seed)
    lacking: list[str] = []
    with warnings.catch_warnings():
        # Classes rarer than the folds are simply missing from some of them.
        warnings.filterwarnings("ignore", message="The least populated class")
        strata = _frequent_enough(strata, folds.get_n_splits())
        for train, validation in folds.split(strata, strata, groups):
            counts = is_positive[train].sum(axis=0)
            lacking = [classes[int(c)] for c in np.flatnonzero((counts == 0) & is_positive.any(axis=0))]
            if len(validation) and not lacking:
                held = np.zeros(len(strata), dtype=bool)
                held[validation] = True
                return held
    raise UserError(
        f"holding out whole groups for validation leaves no training clip of class {lacking[0]!r}: name another --group-field, "
        "or give --validation shards"
        if lacking
        else f"{num_groups} groups are too few to hold one out for validation: give --validation shards"
    )


def _frequent_enough(strata: np.ndarray, num_folds: int) -> np.ndarray:
    """As they are, or all the same where scikit-learn would refuse because every one is rarer than there are folds."""
    return strata if np.bincount(strata).max() >= num_folds else np.zeros_like(strata)
