from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mavil.models.masking import concatenate, random_masking, structured_masking
from mavil.structs import TokenGrid


@pytest.mark.parametrize(
    ("size", "patch", "channels", "visible"), [((1024, 128), (16, 16), 1, 102), ((8, 224, 224), (2, 16, 16), 3, 156)]
)
def test_paper_scale_counts(size: tuple[int, ...], patch: tuple[int, ...], channels: int, visible: int) -> None:
    assert TokenGrid.of(size, patch, channels).num_visible(0.8) == visible


def test_ids_are_a_permutation_and_restore_inverts_it() -> None:
    view = random_masking(torch.rand(3, 20), num_visible=4)
    order = torch.cat([view.visible_ids, view.masked_ids], dim=1)
    assert torch.equal(order.sort(dim=1).values, torch.arange(20).expand(3, -1))
    assert torch.equal(order.gather(1, view.restore_ids), torch.arange(20).expand(3, -1))


def test_is_masked_is_true_where_masked() -> None:
    view = random_masking(torch.rand(3, 20), num_visible=4)
    assert view.is_masked.sum(dim=1).tolist() == [16, 16, 16]
    assert view.is_masked.gather(1, view.masked_ids).all()
    assert not view.is_masked.gather(1, view.visible_ids).any()


def test_smallest_noise_stays_visible() -> None:
    view = random_masking(torch.tensor([[0.9, 0.1, 0.5, 0.2]]), num_visible=2)
    assert view.visible_ids.tolist() == [[1, 3]]


def test_concatenated_views_are_view_major() -> None:
    first, second = random_masking(torch.rand(2, 6), 3), random_masking(torch.rand(2, 6), 3)
    both = concatenate([first, second])
    assert torch.equal(both.visible_ids[:2], first.visible_ids)
    assert torch.equal(both.restore_ids[2:], second.restore_ids)


@pytest.mark.parametrize("cells", [(6, 4), (3, 4, 2)])
def test_structured_masking_keeps_the_crossings_of_the_rows_it_keeps(cells: tuple[int, ...]) -> None:
    noise, kept = [torch.rand(5, count) for count in cells], [count // 2 for count in cells]
    view = structured_masking(noise, kept)
    for clip in range(5):
        rows = [set(axis[clip].argsort()[:k].tolist()) for axis, k in zip(noise, kept, strict=True)]
        places = list(itertools.product(*map(range, cells)))
        visible = [i for i, place in enumerate(places) if all(p in row for p, row in zip(place, rows, strict=True))]
        assert view.visible_ids[clip].tolist() == visible
        assert view.masked_ids[clip].tolist() == [i for i in range(len(places)) if i not in visible]
        assert view.is_masked[clip].logical_not().nonzero().flatten().tolist() == visible
        order = torch.cat([view.visible_ids[clip], view.masked_ids[clip]])
        assert order[view.restore_ids[clip]].tolist() == list(range(len(places)))


def test_structured_masking_of_one_axis_hides_whole_rows() -> None:
    """Keeping everything along the other axis: masking in time alone."""
    view = structured_masking([torch.tensor([[0.9, 0.1, 0.5]]), torch.rand(1, 2)], [2, 2])
    assert view.visible_ids.tolist() == [[2, 3, 4, 5]]


@pytest.mark.parametrize(
    ("noise", "kept", "message"),
    [
        ([torch.rand(2, 4), torch.rand(2, 3)], [0, 2], "0 of 4 rows of an axis cannot stay visible"),
        ([torch.rand(2, 4), torch.rand(2, 3)], [2, 4], "4 of 3 rows of an axis cannot stay visible"),
        ([torch.rand(2, 4), torch.rand(2, 3)], [2], "noise for 2 axes, but num_visible names 1"),
    ],
)
def test_structured_masking_refuses_an_empty_view(noise: list[Tensor], kept: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        structured_masking(noise, kept)


@pytest.mark.parametrize("num_visible", [0, 21])
def test_random_masking_refuses_an_empty_view(num_visible: int) -> None:
    with pytest.raises(ValueError, match=f"{num_visible} of 20 tokens cannot stay visible"):
        random_masking(torch.rand(2, 20), num_visible)
