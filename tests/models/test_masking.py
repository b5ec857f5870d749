import pytest
import torch

from mavil.models.masking import concatenate, random_masking
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
