"""Which tokens are hidden: noise in, ids out. Pure functions; the caller owns the randomness."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mavil.structs import MaskedView


def random_masking(noise: Tensor, num_visible: int) -> MaskedView:
    """Hide all but the ``num_visible`` tokens of smallest noise, per clip [source MAE, Audio-MAE; MAViL: recalled].

    ``noise`` ``[B, N]`` uniform. ``visible_ids`` keep the order of the noise (shuffled), as in MAE.

    Raises:
        ValueError: no token would stay visible, or more than there are.
    """
    _check_visible(num_visible, noise.shape[1], "tokens")
    order = noise.argsort(dim=1)
    return MaskedView(
        visible_ids=order[:, :num_visible], masked_ids=order[:, num_visible:], restore_ids=order.argsort(dim=1)
    )


def structured_masking(noise: Sequence[Tensor], num_visible: Sequence[int]) -> MaskedView:
    """Hide whole rows of the token grid along every axis; a token is visible where all its rows are.

    Audio-MAE hides time steps and mel bands this way, in fine-tuning and in a variant of pre-training
    [source Audio-MAE, AV-SUPERB copy: ``int(cells * (1 - ratio))`` of each axis stay].

    Args:
        noise: per axis of the grid, in the order its tokens are numbered in, uniform ``[B, cells]``.
        num_visible: per axis, how many rows stay: those of smallest noise, per clip.

    Returns:
        The view; ``visible_ids`` and ``masked_ids`` are in token order, unlike :func:`random_masking`'s [source Audio-MAE].

    Raises:
        ValueError: no row of an axis would stay visible, or more than there are; the axes disagree in number.
    """
    if len(noise) != len(num_visible):
        raise ValueError(f"there is noise for {len(noise)} axes, but num_visible names {len(num_visible)}")
    is_visible = torch.ones(
        len(noise[0]), 1, dtype=torch.bool, device=noise[0].device
    )  # [B, tokens of the axes so far]
    total = 1
    for of_axis, kept in zip(noise, num_visible, strict=True):
        _check_visible(kept, of_axis.shape[1], "rows of an axis")
        rows = torch.zeros_like(of_axis, dtype=torch.bool).scatter(1, of_axis.argsort(dim=1)[:, :kept], True)
        is_visible = (is_visible[:, :, None] & rows[:, None]).flatten(1)
        total *= kept
    return _view_of(~is_visible, total)


def chunk_masking(
    side_noise: Tensor,
    square_noise: Tensor,
    order_noise: Tensor,
    cells: tuple[int, int],
    num_visible: int,
    sides: Sequence[int],
    wraps: bool = False,
) -> MaskedView:
    """Hide squares of tokens, one after the other, until all but ``num_visible`` are hidden [source SSAST, MAE-AST].

    All squares of a mask have one side. They come in random order, none twice, which leaves the same sets as drawing with
    replacement. The grid's rim cuts squares off, so that every token lies in equally many; of the last square as many tokens as
    are too many stay visible, chosen at random [both our choice]. Every token is then hidden about as often as any other: over
    2000 masks of 75 % of 62 x 8 tokens between 0.72 and 0.78 of the time, and 0.75 in each mel band [measured].

    ``wraps`` is MAE-AST's code instead [source]: a square starts at any token, goes on in the next row where it leaves the grid,
    and ends with the last token; squares are added until more than the number are hidden, and what is too many is taken from the
    highest token numbers. The first tenth of the rows is then hidden 0.62 of the time, the middle 0.77, the last tenth 0.68
    [measured as above; 0.63, 0.76, 0.68 in the original].

    Args:
        side_noise: ``[B]`` uniform; chooses one of ``sides`` per clip.
        square_noise: ``[B, squares]`` uniform; the order of the squares, of which there are :func:`count_squares`.
        order_noise: ``[B, N]`` uniform; which tokens of the last square stay; ``wraps`` does not look at it.
        cells: of the grid, in the order its tokens are numbered in.
        num_visible: K.
        sides: tokens along a square's side.
        wraps: see above.

    Returns:
        The view, its ids in token order.

    Raises:
        ValueError: no token would stay visible, or more than there are; a square does not fit the grid.
    """
    num_tokens = cells[0] * cells[1]
    _check_visible(num_visible, num_tokens, "tokens")
    _check_squares(cells, sides, wraps)
    chosen = (side_noise * len(sides)).long().clamp(max=len(sides) - 1)[:, None]  # [B, 1]
    first = torch.zeros_like(order_noise)
    for number, side in enumerate(sides):
        reach = None if wraps else max(sides)
        first = torch.where(chosen == number, _first_square(square_noise, cells, side, reach), first)
    num_hidden = num_tokens - num_visible
    if not wraps:
        return _view_of(_first_ones(first, order_noise, num_hidden), num_visible)
    last = first.sort(dim=1).values[:, num_hidden, None]  # the square that hides one token more than wanted, or several
    is_hidden = first <= last
    return _view_of(is_hidden & (is_hidden.cumsum(dim=1) <= num_hidden), num_visible)


def count_squares(cells: tuple[int, int], sides: Sequence[int], wraps: bool) -> int:
    """How many places of a square :func:`chunk_masking` draws from, so how many random numbers a clip needs."""
    beyond = 0 if wraps else max(sides) - 1
    return (cells[0] + beyond) * (cells[1] + beyond)


def span_masking(
    span_noise: Tensor, end_noise: Tensor, num_visible: int, length: int, inverted: bool = False
) -> MaskedView:
    """Hide runs of ``length`` consecutive tokens until all but ``num_visible`` are hidden [wav2vec 2.0].

    Spans may overlap, and the ends of the row of tokens cut them off, so that every token lies in equally many; none is drawn
    twice. Of the last one only as much is hidden as is needed, from its first token on or, as likely, from its last [all our
    choice; the original draws spans inside the row, and its number of hidden tokens varies]. ``inverted``: the spans are what
    stays visible [source MAE-AST's code].

    Args:
        span_noise: ``[B, N + length - 1]`` uniform; the order of the spans.
        end_noise: ``[B]`` uniform; from which end the last span is used.
        num_visible: K.
        length: tokens of a span.
        inverted: see above.

    Returns:
        The view, its ids in token order.

    Raises:
        ValueError: no token would stay visible, or more than there are; a span is longer than the row of tokens.
    """
    num_tokens = span_noise.shape[1] - length + 1
    if not 1 <= length <= num_tokens:
        raise ValueError(f"spans of {length} tokens do not fit {num_tokens} tokens: take a length of 1 to {num_tokens}")
    _check_visible(num_visible, num_tokens, "tokens")
    first = _least_of(span_noise, length, dim=1)
    places = torch.arange(num_tokens, device=span_noise.device)
    order = torch.where(end_noise[:, None] < 0.5, places, -places)
    is_covered = _first_ones(first, order, num_visible if inverted else num_tokens - num_visible)
    return _view_of(~is_covered if inverted else is_covered, num_visible)


def same_for_all(view: MaskedView, num_clips: int) -> MaskedView:
    """The one mask of ``view``, ``[1, ...]``, for each of ``num_clips``."""
    return MaskedView(
        visible_ids=view.visible_ids.expand(num_clips, -1),
        masked_ids=view.masked_ids.expand(num_clips, -1),
        restore_ids=view.restore_ids.expand(num_clips, -1),
    )


def concatenate(views: list[MaskedView]) -> MaskedView:
    """Stack views on the batch axis, so that one encoder call serves them all: ids ``[V * B, ...]``, view-major."""
    return MaskedView(
        visible_ids=torch.cat([view.visible_ids for view in views]),
        masked_ids=torch.cat([view.masked_ids for view in views]),
        restore_ids=torch.cat([view.restore_ids for view in views]),
    )


def _view_of(is_masked: Tensor, num_visible: int) -> MaskedView:
    """The view of ``[B, N]`` bool flags, of which ``num_visible`` are False in each row; all ids in token order."""
    # Stable: visible tokens in their order, then the masked ones in theirs.
    order = is_masked.byte().argsort(dim=1, stable=True)
    return MaskedView(order[:, :num_visible], order[:, num_visible:], order.argsort(dim=1))


def _first_square(noise: Tensor, cells: tuple[int, int], side: int, reach: int | None) -> Tensor:
    """``[B, N]``: of every token the smallest noise of a square that covers it.

    Squares reach into the grid from all sides, and ``noise`` has places for those of side ``reach``; ``None``: they start at any
    token and are counted in token numbers.
    """
    if reach is None:
        rows = torch.stack([_later(noise, place) for place in range(side)]).amin(dim=0)
        return torch.stack([_later(rows, row * cells[1]) for row in range(side)]).amin(dim=0)
    places = noise.unflatten(1, (cells[0] + reach - 1, cells[1] + reach - 1))
    places = places[:, : cells[0] + side - 1, : cells[1] + side - 1]
    return _least_of(_least_of(places, side, dim=1), side, dim=2).flatten(1)


def _later(values: Tensor, tokens: int) -> Tensor:
    """``[B, N]`` moved to higher token numbers; nothing comes in."""
    return F.pad(values, (tokens, 0), value=torch.inf)[:, : values.shape[1]]


def _least_of(values: Tensor, length: int, dim: int) -> Tensor:
    """The smallest of every ``length`` consecutive ones along an axis, which becomes shorter by ``length - 1``."""
    count = values.shape[dim] - length + 1
    return torch.stack([values.narrow(dim, start, count) for start in range(length)]).amin(dim=0)


def _first_ones(values: Tensor, tie_breakers: Tensor, count: int) -> Tensor:
    """``[B, N]`` bool: the ``count`` smallest of each row, among equal ones those with the smallest tie breaker."""
    by_tie = tie_breakers.argsort(dim=1)
    order = by_tie.gather(1, values.gather(1, by_tie).argsort(dim=1, stable=True))
    return torch.zeros_like(values, dtype=torch.bool).scatter(1, order[:, :count], True)


def _check_squares(cells: tuple[int, int], sides: Sequence[int], wraps: bool) -> None:
    largest = cells[0] if wraps else min(cells)
    if not sides or not 1 <= min(sides) <= max(sides) <= largest:
        raise ValueError(
            f"squares of {list(sides)} tokens do not fit a token grid of {list(cells)}: take sides of 1 to {largest}"
        )


def _check_visible(num_visible: int, available: int, what: str) -> None:
    if not 1 <= num_visible <= available:
        raise ValueError(
            f"{num_visible} of {available} {what} cannot stay visible: keep at least 1 and at most {available}"
        )
