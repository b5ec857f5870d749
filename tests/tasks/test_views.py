"""Which views a step draws."""

import torch
from torch import Tensor

from mavil.config import Contrast
from mavil.structs import MODALITIES, Modality, TokenGrid
from mavil.tasks.views import ViewPlan, compared_only

GRIDS: dict[Modality, TokenGrid] = {
    "audio": TokenGrid.of((64, 32), (16, 16), 1),
    "video": TokenGrid.of((4, 32, 32), (2, 16, 16), 3),
}
RATIOS: dict[Modality, float] = {"audio": 0.75, "video": 0.5}


def noise(modality: Modality, purpose: str, count: int) -> Tensor:
    return torch.rand(2, count, generator=torch.Generator().manual_seed(sum(map(ord, modality + purpose))))


def plan(num_predicted: int = 1, **contrast: float) -> ViewPlan:
    return ViewPlan.of(GRIDS, RATIOS, Contrast(**contrast) if contrast else None, num_predicted)  # type: ignore[arg-type]


def test_the_first_view_is_predicted_and_compared_and_the_second_only_compared() -> None:
    views = plan(intra_weight=0.1).draw(noise)["audio"]
    assert len(views.predicted) == 1
    assert views.compared[0] is views.predicted[0]
    assert len(views.distinct()) == 2
    assert views.compared[1].visible_ids.shape == (2, 2)
    assert not torch.equal(views.compared[0].visible_ids, views.compared[1].visible_ids)


def test_with_two_predicted_views_the_second_one_is_compared_too() -> None:
    views = plan(num_predicted=3, intra_weight=0.1).draw(noise)["video"]
    assert [one is two for one, two in zip(views.compared, views.predicted[:2], strict=True)] == [True, True]
    assert len(views.distinct()) == 3


def test_without_contrast_nothing_is_compared() -> None:
    assert plan().draw(noise)["audio"].compared == []
    assert plan(inter_weight=0, intra_weight=0).num_compared == 0
    assert plan(inter_weight=1, intra_weight=0).num_compared == 1


def test_contrast_can_have_views_of_its_own_that_show_more() -> None:
    own = plan(intra_weight=0.1, audio_mask_ratio=0.5, video_mask_ratio=0.25)
    views = own.draw(noise)
    assert views["audio"].predicted[0].visible_ids.shape == (2, 2)
    assert [view.visible_ids.shape for view in views["audio"].compared] == [(2, 4)] * 2
    assert [view.visible_ids.shape for view in views["video"].compared] == [(2, 6)] * 2
    assert own.visible_tokens("audio") == 2 + 2 * 4
    assert plan(num_predicted=3, intra_weight=0.1).visible_tokens("audio") == 3 * 2


def test_views_differ_from_each_other_and_not_from_draw_to_draw() -> None:
    first, again = plan(num_predicted=2).draw(noise), plan(num_predicted=2).draw(noise)
    for m in MODALITIES:
        one, two = first[m].predicted
        assert not torch.equal(one.visible_ids, two.visible_ids)
        assert torch.equal(one.visible_ids, again[m].predicted[0].visible_ids)


def test_evaluation_predicts_the_first_view_of_training() -> None:
    training, evaluation = plan(2, intra_weight=0.1), plan(2, intra_weight=0.1).predicting_only()
    views = evaluation.draw(noise)["audio"]
    assert (len(views.predicted), views.compared) == (1, [])
    assert torch.equal(views.predicted[0].visible_ids, training.draw(noise)["audio"].predicted[0].visible_ids)


def test_only_what_is_compared_can_be_asked_for() -> None:
    views = plan(intra_weight=0.1).draw(noise)
    left = compared_only(views)["audio"]
    assert left.predicted == []
    assert left.compared[0] is views["audio"].predicted[0]
