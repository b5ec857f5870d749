"""Exact search against a slow loop, whatever the blocks, with honest ties."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mavil.evaluation.nearest import UnitRows, nearest
from mavil.structs import UserError


def slow(queries: Tensor, gallery: Tensor, k: int) -> list[list[int]]:
    """Every pair by itself in float64; equal scores, to float32, in the gallery's order."""
    found = []
    for query in queries.double():
        scores = [float((query / query.norm()) @ (item / item.norm())) for item in gallery.double()]
        rounded = [float(np.float32(score)) for score in scores]
        found.append(sorted(range(len(rounded)), key=lambda row: (-rounded[row], row))[:k])
    return found


def crowd(number: int, seed: int, width: int = 24) -> Tensor:
    """Directions so close to each other that float32 products cannot tell them apart: the hard case."""
    generator = torch.Generator().manual_seed(seed)
    middle = torch.randn(width, generator=generator)
    return middle + 1e-3 * torch.randn(number, width, generator=generator)


@pytest.mark.parametrize("block", [7, 64, 4096])
@pytest.mark.parametrize("k", [1, 10, 500])
def test_rows_are_those_of_a_slow_loop_in_any_blocks(block: int, k: int) -> None:
    queries, gallery = crowd(20, 0), crowd(90, 1)
    gallery[50:60] = gallery[20:30]
    scores, rows = nearest(queries, gallery, k, block=block)
    assert rows.tolist() == slow(queries, gallery, k)
    cosines = torch.nn.functional.cosine_similarity(queries.double()[:, None], gallery.double()[rows], dim=-1)
    assert torch.equal(scores, cosines.float()) or torch.allclose(scores, cosines.float(), atol=1.2e-7, rtol=0)
    assert scores.dtype == torch.float32


def test_equals_come_in_the_order_of_the_gallery_however_many_there_are() -> None:
    """More of them than are scored a second time, in several blocks, with different rounding in each."""
    item = torch.randn(48, generator=torch.Generator().manual_seed(2))
    gallery = item.repeat(130, 1) * 2.0 ** (torch.arange(130) % 5)[:, None]
    gallery[77] += 0.3
    _, rows = nearest(gallery[77:78], gallery, 4, block=33)
    assert rows.tolist() == [[77, 0, 1, 2]]
    _, rows = nearest(torch.zeros(1, 48), gallery, 3)
    assert rows.tolist() == [[0, 1, 2]]
    # The same numbers in other orders: their sums are equal, their float32 sums are not.
    shuffled = torch.stack([item[torch.randperm(48, generator=torch.Generator().manual_seed(i))] for i in range(130)])
    _, rows = nearest(torch.ones(1, 48), shuffled, 3, block=33)
    assert rows.tolist() == [[0, 1, 2]]


def test_order_of_the_gallery_and_precision_of_the_surroundings_do_not_matter() -> None:
    queries, gallery = crowd(11, 3, 40), crowd(200, 4, 40)
    scores, rows = nearest(queries, gallery, 12)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moved, places = nearest(queries, gallery[order], 12, block=50)
    assert torch.equal(moved, scores)
    strict = scores[:, :-1] > scores[:, 1:]  # equals to float32 may change places with the gallery
    assert torch.equal(order[places][:, :-1][strict], rows[:, :-1][strict])


def test_arrays_mapped_from_a_file_will_do(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    gallery = crowd(30, 6).half().numpy()
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    assert nearest(mapped[:3], mapped, 2)[1][:, 0].tolist() == [0, 1, 2]
    assert not recwarn.list


def test_a_gallery_that_was_measured_before_gives_the_same() -> None:
    queries, gallery = torch.randn(5, 8), 3 * torch.randn(40, 8)
    held = UnitRows.of(gallery, "gallery", torch.device("cpu"))
    for found, expected in zip(
        nearest(queries, held, 7, block=16), nearest(queries, gallery, 7, block=16), strict=True
    ):
        assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="width 9 and a gallery of 8"):
        nearest(torch.randn(2, 9), held, 1)


def test_bad_input_is_refused() -> None:
    bad = crowd(4, 0)
    bad[2, 1] = torch.inf
    with pytest.raises(UserError, match="1 of 4 gallery embeddings are not finite"):
        nearest(crowd(2, 1), bad, 1)
    with pytest.raises(ValueError, match="width 24 and a gallery of 8"):
        nearest(crowd(2, 1), crowd(2, 1, 8), 1)
    with pytest.raises(ValueError, match="at least one item"):
        nearest(crowd(2, 1), crowd(2, 1)[:0], 1)
    with pytest.raises(ValueError, match="k is 0"):
        nearest(crowd(2, 1), crowd(2, 1), 0)
