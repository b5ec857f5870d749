from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mavil.models.masking import (
    chunk_masking,
    concatenate,
    count_squares,
    random_masking,
    span_masking,
    structured_masking,
)
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


def slow_chunks(side: int, squares: Tensor, order: Tensor, cells: tuple[int, int], num_hidden: int, wraps: bool) -> set:  # type: ignore[type-arg]
    """One clip's hidden tokens, one square after the other."""
    rows, columns = cells
    starts = (
        list(range(rows * columns))
        if wraps
        else list(itertools.product(range(1 - side, rows), range(1 - side, columns)))
    )
    reach = 3 - 1  # squares of the largest side have places of their own at the rim
    noise = (
        squares if wraps else squares.reshape(rows + reach, columns + reach)[: rows + side - 1, : columns + side - 1]
    )
    hidden: set[int] = set()
    for place in noise.flatten().argsort().tolist():
        new = set()
        for i, j in itertools.product(range(side), range(side)):
            if wraps:
                token = starts[place] + columns * i + j  # type: ignore[operator]
                if token < rows * columns:
                    new.add(token)
            else:
                row, column = starts[place][0] + i, starts[place][1] + j  # type: ignore[index]
                if 0 <= row < rows and 0 <= column < columns:
                    new.add(row * columns + column)
        new -= hidden
        if wraps:
            hidden |= new
            if len(hidden) > num_hidden:
                return set(sorted(hidden)[:num_hidden])
        else:
            hidden |= set(sorted(new, key=lambda token: float(order[token]))[: num_hidden - len(hidden)])
            if len(hidden) == num_hidden:
                return hidden
    raise AssertionError("all squares together hide everything")


@pytest.mark.parametrize("wraps", [False, True])
def test_chunks_are_squares_one_after_the_other(wraps: bool) -> None:
    torch.manual_seed(0)
    cells, sides = (7, 4), (2, 3)
    side, order = torch.rand(20), torch.rand(20, 28)
    squares = torch.rand(20, count_squares(cells, sides, wraps))
    for num_visible in (7, 20):
        view = chunk_masking(side, squares, order, cells, num_visible, sides, wraps)
        for clip in range(20):
            chosen = sides[int(side[clip] * 2)]
            hidden = slow_chunks(chosen, squares[clip], order[clip], cells, 28 - num_visible, wraps)
            assert set(view.masked_ids[clip].tolist()) == hidden
            assert view.visible_ids[clip].tolist() == sorted(set(range(28)) - hidden)


def test_chunks_hide_every_token_equally_often_and_wrapped_ones_the_first_and_last_less() -> None:
    torch.manual_seed(0)
    cells, sides = (20, 4), (2, 3)

    def shares(wraps: bool) -> Tensor:
        squares = torch.rand(2000, count_squares(cells, sides, wraps))
        view = chunk_masking(torch.rand(2000), squares, torch.rand(2000, 80), cells, 20, sides, wraps)
        return view.is_masked.float().mean(dim=0)

    assert (shares(wraps=False) - 0.75).abs().max() < 0.06
    wrapped = shares(wraps=True)
    assert wrapped[:4].mean() < 0.65
    assert wrapped[-1] == 0


@pytest.mark.parametrize("inverted", [False, True])
def test_spans_are_runs_one_after_the_other(inverted: bool) -> None:
    torch.manual_seed(0)
    num_tokens, length, num_visible = 30, 4, 11
    spans, end = torch.rand(20, num_tokens + length - 1), torch.rand(20)
    view = span_masking(spans, end, num_visible, length, inverted)
    wanted = num_visible if inverted else num_tokens - num_visible
    for clip in range(20):
        covered: set[int] = set()
        for start in (spans[clip].argsort() - length + 1).tolist():
            new = sorted({t for t in range(start, start + length) if 0 <= t < num_tokens} - covered)
            new = new if end[clip] < 0.5 else new[::-1]
            covered |= set(new[: wanted - len(covered)])
        found = view.visible_ids if inverted else view.masked_ids
        assert found[clip].tolist() == sorted(covered)


def test_shapes_that_do_not_fit_are_refused() -> None:
    noise = torch.rand(2, 8)
    with pytest.raises(ValueError, match=r"squares of \[3\] tokens do not fit a token grid of \[4, 2\]"):
        chunk_masking(noise[:, 0], noise, noise, (4, 2), 2, [3])
    with pytest.raises(ValueError, match="spans of 9 tokens do not fit 8 tokens"):
        span_masking(torch.rand(2, 16), noise[:, 0], 2, 9)
    with pytest.raises(ValueError, match="0 of 8 tokens cannot stay visible"):
        span_masking(torch.rand(2, 8), noise[:, 0], 0, 1)
