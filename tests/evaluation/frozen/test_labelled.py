"""Rows of several arrays against plain indexing."""

from __future__ import annotations

import numpy as np
import torch

from mavil.evaluation.frozen.labelled import Features
from tests.evaluation.frozen.clusters import CPU, blobs


def test_rows_are_those_of_the_joined_arrays() -> None:
    generator = np.random.default_rng(0)
    sound = generator.standard_normal((10, 3))
    picture = generator.standard_normal((10, 2, 4)).astype(np.float16)
    parts = Features([[sound[:4], sound[4:]], [picture[:4], picture[4:]]], np.array([9, 0, 3, 4, 7]))
    assert (len(parts), parts.widths) == (5, [3, 4])
    chosen = parts.subset(np.array([4, 1, 2]))  # 7, 0, 3
    both = chosen.joined(Features([[-sound], [-picture]]).subset(np.array([2, 0])))
    for found, whole in zip(both.take(np.arange(5), CPU), [sound, picture], strict=True):
        assert found.dtype == torch.float32
        expected = np.concatenate([np.asarray(whole)[[7, 0, 3]], -np.asarray(whole)[[2, 0]]])
        assert np.array_equal(found.numpy(), expected.astype(np.float32))
    pieces = list(both.batches(2, CPU))
    assert [len(piece[0]) for piece in pieces] == [2, 2, 1]
    assert torch.equal(torch.cat([piece[1] for piece in pieces]), both.take(np.arange(5), CPU)[1])


def test_classes_go_with_their_clips() -> None:
    clips = blobs(12)
    some = clips.subset(np.array([5, 1, 8])).joined(clips.subset(np.array([0])))
    assert some.targets.float().argmax(dim=1).tolist() == [2, 1, 2, 0]
    assert torch.equal(some.features.take(np.array([0]), CPU)[0], clips.features.take(np.array([5]), CPU)[0])
