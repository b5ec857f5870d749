"""How surprising a difference is: from the resamples of a bootstrap, McNemar's exact test, Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def two_sided_p(changes: np.ndarray) -> float:
    """Twice the smaller share of resampled differences on either side of 0, 0 itself on both, at least 1 / (their number + 1)."""
    if not len(changes):
        return 1.0
    beyond = min(float(np.mean(changes <= 0)), float(np.mean(changes >= 0)))
    return min(1.0, max(2 * beyond, 1 / (len(changes) + 1)))


def mcnemar_p(num_only_first: int, num_only_second: int) -> float:
    """McNemar's exact test: two-sided, from the clips that only one of two runs has right [McNemar 1947]."""
    from scipy.stats import binomtest  # half a second to import

    total = num_only_first + num_only_second
    return 1.0 if total == 0 else float(binomtest(num_only_first, total, 0.5).pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number, in the same order [Holm 1979]."""
    corrected, largest = [1.0] * len(values), 0.0
    for place, number in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - place) * values[number]))
        corrected[number] = largest
    return corrected
