"""Collapse indicators: what they say at their ends, against slow loops, and that nothing waits for the device."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mavil.evaluation.collapse import agreement, alignment, embedding_std, normalised, target_statistics, uniformity


def spread_out(clips: int, width: int, seed: int = 0) -> Tensor:
    return normalised(torch.randn(clips, width, generator=torch.Generator().manual_seed(seed)))


def test_deviation_is_one_all_over_the_sphere_and_zero_at_a_point() -> None:
    assert embedding_std(spread_out(2000, 64)).item() == pytest.approx(1.0, abs=0.01)
    assert embedding_std(normalised(torch.ones(8, 64))).item() == pytest.approx(0.0, abs=1e-6)
    # Half of the directions are used: a deviation of sqrt(2) there, of 0 elsewhere.
    half = torch.cat([spread_out(2000, 32), torch.zeros(2000, 32)], dim=1)
    assert embedding_std(half).item() == pytest.approx(math.sqrt(0.5), abs=0.01)


def test_small_batches_say_the_same_as_large_ones() -> None:
    small = torch.stack([embedding_std(spread_out(8, 768, seed)) for seed in range(20)])
    assert small.mean().item() == pytest.approx(1.0, abs=0.05)  # with the biased variance: 0.90


def test_uniformity_against_a_double_loop() -> None:
    rows = spread_out(7, 5)
    potentials = [math.exp(-2 * float((rows[i] - rows[j]).square().sum())) for i in range(len(rows)) for j in range(i)]
    assert uniformity(rows).item() == pytest.approx(math.log(sum(potentials) / len(potentials)), rel=1e-5)
    assert uniformity(normalised(torch.ones(8, 5))).item() == pytest.approx(0.0, abs=1e-6)
    assert uniformity(spread_out(500, 768)).item() == pytest.approx(-4.0, abs=0.05)


def test_alignment_of_partners() -> None:
    rows = spread_out(8, 16)
    assert alignment(rows, rows).item() == 0
    assert alignment(rows, -rows).item() == pytest.approx(4.0)
    assert alignment(torch.eye(4), torch.eye(4).roll(1, 0)).item() == pytest.approx(2.0)


def test_target_statistics_are_over_clips_and_tokens() -> None:
    targets = 3 + 2 * torch.randn(6, 10, 5, generator=torch.Generator().manual_seed(0))
    mean, deviation = target_statistics(targets)
    assert mean.item() == pytest.approx(targets.mean().item(), rel=1e-5)
    assert deviation.item() == pytest.approx(targets.flatten(0, 1).std(dim=0).mean().item(), rel=1e-5)


def test_tokens_that_are_all_alike_have_no_deviation_though_each_is_normalised() -> None:
    token = torch.nn.functional.layer_norm(torch.arange(32.0), (32,))
    assert token.std(correction=0).item() == pytest.approx(1.0, abs=1e-3)
    assert target_statistics(token.expand(4, 9, 32))[1].item() == pytest.approx(0.0, abs=1e-6)


def test_only_clips_that_have_the_modality_spread_and_fewer_than_two_do_not_collapse() -> None:
    rows, present = spread_out(6, 16), torch.tensor([True, False, True, True, False, False])
    rows[1] = torch.nan
    expected = embedding_std(rows[present])
    assert embedding_std(rows, present).item() == pytest.approx(expected.item(), rel=1e-6)
    assert embedding_std(rows, torch.arange(6) == 0).item() == 1
    assert embedding_std(rows, torch.zeros(6, dtype=torch.bool)).item() == 1
    same = normalised(torch.ones(6, 16))
    same[4:] = spread_out(2, 16)
    assert embedding_std(same, torch.arange(6) < 4).item() == pytest.approx(0.0, abs=1e-5)


def test_agreement_counts_what_is_counted() -> None:
    generator = torch.Generator().manual_seed(0)
    predictions, targets = (torch.randn(*shape, 5, generator=generator) for shape in ((2, 3, 4), (3, 4)))
    counted = torch.rand(2, 3, 4, generator=generator) > 0.5
    cosines = [
        float(predictions[place] @ targets[place[1:]] / (predictions[place].norm() * targets[place[1:]].norm()))
        for place in [tuple(index) for index in counted.nonzero().tolist()]
    ]
    assert agreement(predictions, targets, counted).item() == pytest.approx(sum(cosines) / len(cosines), rel=1e-5)
    assert agreement(3 * targets, targets, counted[0]).item() == pytest.approx(1.0)
    assert agreement(-targets, targets, counted[0]).item() == pytest.approx(-1.0)
    assert agreement(targets, targets, torch.zeros(3, 4, dtype=torch.bool)).item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    rows = (torch.randn(16, 64, generator=torch.Generator().manual_seed(0)) + 0.5).to(dtype)

    def numbers() -> list[Tensor]:
        first, second = normalised(rows), normalised(rows.flip(0))
        own = [embedding_std(first), uniformity(first), alignment(first, second)]
        tokens = rows.view(4, 4, 64)
        agreeing = agreement(tokens, tokens.flip(0), torch.ones(4, 4, dtype=torch.bool))
        return [*own, agreeing, *target_statistics(tokens)]

    expected = numbers()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = numbers()
    assert {value.dtype for value in found} == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "compute",
    [
        lambda rows: embedding_std(normalised(rows)),
        lambda rows: embedding_std(normalised(rows), rows[:, 0] > 0),
        lambda rows: uniformity(normalised(rows)),
        lambda rows: alignment(normalised(rows), normalised(rows)),
        lambda rows: target_statistics(rows[None])[1],
        lambda rows: agreement(rows[None], rows[None], rows[None, :, 0] > 0),
    ],
)
def test_nothing_is_read_from_the_device_and_nothing_has_a_gradient(compute: Callable[[Tensor], Tensor]) -> None:
    # A tensor without content: whatever needs its numbers on the host fails.
    found = compute(torch.empty(8, 16, device="meta", requires_grad=True))
    assert found.ndim == 0
    assert not found.requires_grad
