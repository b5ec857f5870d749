"""What a classifier decides, clip by clip: among its k best classes, its best class, or every class above one half."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array


def hits_at(scores: np.ndarray, is_positive: np.ndarray, k: int) -> np.ndarray:
    """How surely one of a clip's labels is among its ``k`` best classes, ``[n]`` float64.

    With one label this is top-k accuracy, with several the share of clips that are hit. Where equal scores compete for the last
    places, every choice among them is as likely: the result is the chance that one of the labels is chosen.

    Args:
        scores: ``[n, classes]``, finite.
        is_positive: ``[n, classes]`` bool.
        k: at least 1; more than there are classes means all of them.
    """
    k = min(k, scores.shape[1])
    last = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
    is_above, is_equal = scores > last, scores == last
    places = k - is_above.sum(axis=1)
    rivals, labels = is_equal.sum(axis=1), (is_equal & is_positive).sum(axis=1)
    missed = np.ones(len(scores))
    for i in range(int(places.max())):
        # One place after the other goes to a class that is no label.
        left = np.clip((rivals - labels - i) / np.maximum(rivals - i, 1), 0, 1)
        missed *= np.where(i < places, left, 1.0)
    return np.where((is_above & is_positive).any(axis=1), 1.0, 1.0 - missed)


def decided(scores: np.ndarray, multi_label: bool) -> np.ndarray:
    """``[n, classes]`` float64: 1 where a class is chosen.

    With several labels per clip a class is chosen when its probability is above one half; otherwise the best class is, and
    equal best ones have equal shares.
    """
    if multi_label:
        return (scores > 0).astype(np.float64)
    is_best = scores == scores.max(axis=1, keepdims=True)
    return is_best / is_best.sum(axis=1, keepdims=True)


def recall_and_f1(chosen: np.ndarray, is_positive: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and F1 of every class in every resample, ``[classes, resamples]`` each; NaN where a class has no positive clip.

    Args:
        chosen: ``[n, classes]`` of :func:`decided`.
        is_positive: ``[n, classes]`` bool.
        counts: ``[n, resamples]``, how often each clip counts.
    """
    # Sparse: of hundreds of classes a clip has a few.
    right, positives, all_chosen = (
        csr_array(values.T.astype(np.float64)) @ counts.astype(np.float64)
        for values in (chosen * is_positive, is_positive, chosen)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = right / positives
        f1 = 2 * right / (all_chosen + positives)
    return recall, np.where(positives > 0, f1, np.nan)
