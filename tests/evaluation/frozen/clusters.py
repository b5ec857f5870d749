"""Features with known classes, kept as arrays, for the tests of probes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mavil.evaluation.frozen.labelled import Features, Labelled

CPU = torch.device("cpu")


def silent(done: int, total: int) -> None:
    """Tells nobody."""


def blobs(number: int, classes: int = 3, width: int = 6, seed: int = 0, spread: float = 1.0) -> Labelled:
    """Clips around one centre per class, with features of very different scales."""
    centres = np.random.default_rng(7).standard_normal((classes, width))
    generator = np.random.default_rng(seed)
    labels = np.arange(number) % classes
    values = centres[labels] + spread * generator.standard_normal((number, width))
    values = (values * 10.0 ** np.arange(-1, width - 1)[None] / 10 + 5).astype(np.float32)
    return labelled(values, np.eye(classes)[labels])


def labelled(values: np.ndarray, targets: np.ndarray, groups: Sequence[str] | None = None) -> Labelled:
    """One modality in two arrays, as two sets of shards have it."""
    half = len(values) // 2
    features = Features([[values[:half], values[half:]]])
    return Labelled(features, torch.from_numpy(targets) > 0.5, None if groups is None else tuple(groups))
