"""Every kind of masking through a plan of views: how much it hides, what it depends on, and that the old one is as it was."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from mavil.config.masking import ChunkMasking, Masking, RandomMasking, SpanMasking, StructuredMasking
from mavil.models.masking import random_masking
from mavil.seeds import uniform_draws
from mavil.structs import MaskedView, Modality, TokenGrid
from mavil.tasks.masks import whole_view
from mavil.tasks.views import ViewPlan

GRID = TokenGrid.of((192, 64), (16, 16), 1)  # 12 time steps of 4 mel bands
OVERLAPPING = TokenGrid.of((100, 64), (16, 16), 1, stride=(10, 10))  # 9 steps of 5 bands
KINDS: list[Masking] = [
    RandomMasking(),
    StructuredMasking(time_ratio=0.5, mel_ratio=0.25),
    ChunkMasking(sides=(2, 3)),
    ChunkMasking(sides=(2, 3), wraps=True, drawn_per="batch"),
    SpanMasking(length=5),
    SpanMasking(length=5, inverted=True, drawn_per="batch"),
]


def views_of(masking: Masking, grid: TokenGrid = GRID, seeds: tuple[int, ...] = (3, 4, 5, 6)) -> list[MaskedView]:
    """Two views of four clips."""

    def noise(modality: Modality, purpose: str, count: int) -> Tensor:
        return uniform_draws(torch.tensor(seeds), purpose, count)

    plan = ViewPlan.of({"audio": grid}, {"audio": 0.75}, None, num_predicted=2, maskings={"audio": masking})
    assert plan.visible_tokens("audio") == 2 * plan.num_visible("audio")
    views = plan.draw(noise)["audio"].predicted
    assert {view.visible_ids.shape for view in views} == {(len(seeds), plan.num_visible("audio"))}
    return views


@pytest.mark.parametrize("grid", [GRID, GRID.reordered((1, 0)), OVERLAPPING], ids=["time", "mel", "overlapping"])
@pytest.mark.parametrize("masking", KINDS, ids=lambda masking: masking.kind)
def test_every_kind_hides_its_number_in_clips_that_differ(masking: Masking, grid: TokenGrid) -> None:
    first, second = views_of(masking, grid)
    everything = torch.arange(grid.num_tokens).expand(4, -1)
    order = torch.cat([first.visible_ids, first.masked_ids], dim=1)
    assert torch.equal(order.sort(dim=1).values, everything)
    assert torch.equal(order.gather(1, first.restore_ids), everything)
    assert not torch.equal(first.is_masked, second.is_masked)
    is_same = (first.is_masked == first.is_masked[:1]).all()
    assert bool(is_same) == (getattr(masking, "drawn_per", "clip") == "batch")


@pytest.mark.parametrize("masking", KINDS, ids=lambda masking: masking.kind)
def test_a_mask_follows_from_the_seed_of_its_clip_or_of_the_batch_s_first(masking: Masking) -> None:
    together, moved = views_of(masking)[0], views_of(masking, seeds=(5, 9, 3))[0]
    alone = views_of(masking, seeds=(5,))[0].is_masked[0]
    assert torch.equal(moved.is_masked[0], alone)
    if getattr(masking, "drawn_per", "clip") == "clip":
        assert torch.equal(together.is_masked[2], alone)
    else:
        assert torch.equal(moved.is_masked[2], alone)


def test_random_masks_are_those_of_earlier_runs() -> None:
    seeds = torch.tensor([3, 4, 5, 6])
    for number, view in enumerate(views_of(RandomMasking())):
        plain = random_masking(uniform_draws(seeds, f"audio mask {number}", 48), 12)
        assert torch.equal(view.visible_ids, plain.visible_ids)
        assert torch.equal(view.restore_ids, plain.restore_ids)
    assert views_of(RandomMasking())[0].visible_ids[0].tolist() == [0, 1, 36, 25, 43, 40, 17, 16, 35, 47, 13, 37]


def test_structured_masks_are_the_same_cells_however_tokens_are_numbered() -> None:
    masking = StructuredMasking(time_ratio=0.5, mel_ratio=0.25)
    time_first = views_of(masking)[0].is_masked.reshape(4, 12, 4)
    mel_first = views_of(masking, GRID.reordered((1, 0)))[0].is_masked.reshape(4, 4, 12)
    assert torch.equal(time_first, mel_first.transpose(1, 2))
    assert torch.equal((~time_first).any(dim=2).sum(dim=1), torch.full((4,), 6))
    assert torch.equal((~time_first).any(dim=1).sum(dim=1), torch.full((4,), 3))


def test_views_for_the_contrast_alone_are_drawn_in_the_same_way() -> None:
    settings: dict[str, Any] = {"num_predicted": 1, "num_compared": 1, "contrast_mask_ratios": {"audio": 0.5}}
    plan = ViewPlan({"audio": GRID}, {"audio": 0.75}, maskings={"audio": SpanMasking(length=24)}, **settings)
    own = plan.draw(lambda _, purpose, count: uniform_draws(torch.tensor([1]), purpose, count))["audio"].compared[0]
    hidden = own.masked_ids[0].tolist()
    assert len(hidden) == 24
    assert (
        sum(after - before > 1 for before, after in itertools.pairwise(hidden)) <= 2
    )  # the ends may have cut two spans
    assert plan.visible_tokens("audio") == 12 + 24


def test_a_whole_view_shows_every_token_in_its_place() -> None:
    view = whole_view(GRID, lambda modality, purpose, count: torch.rand(3, count), "audio")
    every = torch.arange(GRID.num_tokens).expand(3, -1)
    assert torch.equal(view.visible_ids, every)
    assert torch.equal(view.restore_ids, every)
    assert view.masked_ids.shape == (3, 0)
