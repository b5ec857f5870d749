"""Pieces of a clip replaced by the same pieces of another one, targets in the share that was replaced [source CutMix].

CutMix (Yun et al. 2019) cuts a box out of a picture. Here a clip has two modalities and one label, so both lose the same share to
the same partner: the sound an interval of its spectrogram's steps over all mel bins, the frames a box over all of them [our
choice; no paper says]. Like mixup it looks at other clips of the batch; who is cut, from the how-manieth of the others, how much
and where are functions of the clip's seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mavil.data.mixup import Mixing
from mavil.seeds import uniform_draws


@dataclass(frozen=True)
class Cuts:
    """Who gets which piece of whom.

    ``mixing``: the partners ``[B]``, and as ``shares`` what a clip keeps of itself, exactly as it was cut. ``steps`` ``[B, 2]``
    int64: the first spectrogram step that is the partner's, and how many are. ``boxes`` ``[B, 4]`` int64: (top, left, height,
    width) in pixels of the prepared frames. A clip that stays as it is has its own row as partner.
    """

    mixing: Mixing
    steps: Tensor
    boxes: Tensor

    def to(self, device: torch.device | str) -> Cuts:
        """On another device."""
        steps, boxes = (values.to(device, non_blocking=True) for values in (self.steps, self.boxes))
        return Cuts(self.mixing.to(device), steps, boxes)


def draw_cuts(
    seeds: Tensor,
    probability: float,
    beta: float,
    num_steps: Tensor | None,
    side: int | None,
    may_cut: Tensor,
    may_give: Tensor,
) -> Cuts | None:
    """Draw the cuts of a batch; ``None`` where no clip is cut.

    Args:
        seeds: ``[B]``.
        probability: of a clip that may be cut.
        beta: what a clip keeps is Beta(beta, beta) distributed, then rounded to whole steps and pixels.
        num_steps: ``[B]`` int64, true spectrogram steps of each clip; ``None`` without sound.
        side: of the square frames in pixels; ``None`` without frames.
        may_cut: ``[B]`` bool, who may be cut.
        may_give: ``[B]`` bool, who may be a partner; holds at least all of ``may_cut``.

    A partner's sound is taken from the steps that both clips truly have: of a short partner no padding is pasted, and less is
    cut then, of the frames too. The frames' share is that of the sound, rounded to pixels. The two differ by less than one row
    of the box; the mean of both is what targets get.
    """
    from scipy.special import betaincinv  # only who cuts waits for it

    givers = may_give.cpu().nonzero()[:, 0]
    if len(givers) < 2:
        return None
    draws = uniform_draws(seeds, "cutmix", 6).double()  # [B, 6]
    rows = (may_cut.cpu() & (draws[:, 0] < probability)).nonzero()[:, 0]  # [cut]
    if not len(rows):
        return None
    draws = draws[rows]
    places = torch.searchsorted(givers, rows)
    partners = givers[(places + 1 + (draws[:, 1] * (len(givers) - 1)).long()) % len(givers)]
    replaced = 1 - torch.from_numpy(betaincinv(beta, beta, draws[:, 2].numpy()))  # [cut] float64
    cuts = Cuts(
        Mixing(torch.arange(len(seeds)), torch.ones(len(seeds))),
        torch.zeros(len(seeds), 2, dtype=torch.int64),
        torch.zeros(len(seeds), 4, dtype=torch.int64),
    )
    exact = []
    if num_steps is not None:
        own, theirs = num_steps[rows], num_steps[partners]
        cuts.steps[rows] = _intervals(own, torch.minimum(own, theirs), replaced, draws[:, 3])
        replaced = cuts.steps[rows, 1] / own.clamp(min=1)
        exact.append(replaced.double())
    if side is not None:
        cuts.boxes[rows] = _boxes(side, replaced.double(), draws[:, 4:])
        exact.append((cuts.boxes[rows, 2] * cuts.boxes[rows, 3]).double() / side**2)
    cuts.mixing.partners[rows] = partners
    cuts.mixing.shares[rows] = (1 - torch.stack(exact).mean(dim=0)).float()
    return cuts


def _intervals(own: Tensor, common: Tensor, share: Tensor, place: Tensor) -> Tensor:
    """``[n, 2]`` first step and number: ``share`` of the ``own`` steps, anywhere in the first ``common`` ones."""
    lengths = torch.minimum((share * own).round().long(), common)
    return torch.stack([(place * (common - lengths + 1)).long(), lengths], dim=1)


def _boxes(side: int, share: Tensor, places: Tensor) -> Tensor:
    """``[n, 4]``: boxes wholly inside the frame, nearly square, whose area is ``share`` of it as nearly as pixels allow.

    CutMix cuts off what reaches beyond the picture, which changes the share; here both modalities are to have one.
    """
    heights = (side * share.sqrt()).round().clamp(min=1)
    widths = (side**2 * share / heights).round().clamp(max=side)
    top, left = ((places[:, i] * (side - size + 1)).floor() for i, size in enumerate((heights, widths)))
    return torch.stack([top, left, heights, widths], dim=1).long()


def paste_steps(spectrograms: Tensor, cuts: Cuts) -> Tensor:
    """``[B, S, M]`` with the partners' steps in their places; ``cuts`` on the same device."""
    first, count = cuts.steps[:, :1], cuts.steps[:, 1:]
    steps = torch.arange(spectrograms.shape[1], device=spectrograms.device)
    is_theirs = (steps >= first) & (steps < first + count)  # [B, S]
    return torch.where(is_theirs[:, :, None], spectrograms[cuts.mixing.partners], spectrograms)


def paste_boxes(pixels: Tensor, cuts: Cuts) -> Tensor:
    """``[B, T, C, H, Wd]`` with the partners' boxes in their places, in every frame; ``cuts`` on the same device."""
    top, left, height, width = cuts.boxes[:, :, None].unbind(1)  # [B, 1] each
    rows, columns = (torch.arange(size, device=pixels.device) for size in pixels.shape[-2:])
    in_rows, in_columns = (rows >= top) & (rows < top + height), (columns >= left) & (columns < left + width)
    is_theirs = in_rows[:, :, None] & in_columns[:, None]  # [B, H, Wd]
    return torch.where(is_theirs[:, None, None], pixels[cuts.mixing.partners], pixels)
