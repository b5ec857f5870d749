"""Clips of a batch mixed with each other: sound as waveforms, frames as pixels, targets in the same shares [source AST].

This is the one augmentation that looks at other clips: what a clip becomes depends on which clips share its batch. Whether it
is mixed, with the how-manieth of the others, and in which shares is still a function of its seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mavil.seeds import uniform_draws


@dataclass(frozen=True)
class Mixing:
    """Who is mixed with whom.

    ``partners`` ``[B]`` int64 is the row of the other clip, the own row where a clip stays as it is; ``shares`` ``[B]``
    float32 in [0, 1] is what a clip keeps of itself, 1 where it stays as it is.
    """

    partners: Tensor
    shares: Tensor

    def to(self, device: torch.device | str) -> Mixing:
        """On another device."""
        return Mixing(self.partners.to(device, non_blocking=True), self.shares.to(device, non_blocking=True))

    @property
    def is_mixed(self) -> Tensor:
        """``[B]`` bool."""
        return self.partners != torch.arange(len(self.partners), device=self.partners.device)


def draw_mixing(seeds: Tensor, probability: float, beta: float, may_mix: Tensor | None = None) -> Mixing | None:
    """Draw the mixing of a batch; ``None`` where no clip is mixed, as in a batch of one clip.

    Args:
        seeds: ``[B]``.
        probability: of a clip to be mixed.
        beta: the shares are Beta(beta, beta) distributed: exactly, as the inverse of its distribution function of a uniform
            number.
        may_mix: ``[B]`` bool, those that may be mixed, as the first and as the second; ``None``: all.
    """
    from scipy.special import betaincinv  # only who mixes waits for it

    candidates = torch.arange(len(seeds)) if may_mix is None else may_mix.cpu().nonzero()[:, 0]
    if len(candidates) < 2:
        return None
    draws = uniform_draws(seeds, "mixup", 3)[candidates].double()  # [candidates, 3]
    is_chosen = draws[:, 0] < probability
    if not is_chosen.any():
        return None
    own = torch.arange(len(candidates))
    others = (own + 1 + (draws[:, 1] * (len(candidates) - 1)).long()) % len(candidates)
    shares = torch.from_numpy(betaincinv(beta, beta, draws[:, 2].numpy()))
    mixing = Mixing(torch.arange(len(seeds)), torch.ones(len(seeds)))
    mixing.partners[candidates[is_chosen]] = candidates[others[is_chosen]]
    mixing.shares[candidates[is_chosen]] = shares[is_chosen].float()
    return mixing


def mix_rows(values: Tensor, mixing: Mixing) -> Tensor:
    """``share`` of each row of ``values`` ``[B, ...]`` plus the rest of its partner's: for targets and for pixels.

    ``mixing`` on the device of ``values``; rows that are not mixed stay as they are, bit for bit.
    """
    shape = (-1, *[1] * (values.ndim - 1))
    shares = mixing.shares.view(shape)
    mixed = shares * values + (1 - shares) * values[mixing.partners]
    return torch.where(mixing.is_mixed.view(shape), mixed, values)


def mix_waveforms(waveforms: Tensor, lengths: Tensor, mixing: Mixing) -> Tensor:
    """Mix each clip with its partner, both centred, the partner cut or zero-padded to its length, and centre again.

    Args:
        waveforms: ``[B, L]`` zero-padded.
        lengths: ``[B]`` true lengths in samples; they stay.
        mixing: on the same device.
    """
    mixing = mixing.to(waveforms.device)
    is_real = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths[:, None]
    centred = _centred(waveforms, lengths, is_real)
    shares = mixing.shares[:, None]
    mixed = _centred((shares * centred + (1 - shares) * centred[mixing.partners]) * is_real, lengths, is_real)
    return torch.where(mixing.is_mixed[:, None], mixed, waveforms)


def _centred(waveforms: Tensor, lengths: Tensor, is_real: Tensor) -> Tensor:
    """Without their mean over the true length; the padding, zero before, stays zero."""
    return (waveforms - (waveforms.sum(dim=1) / lengths.clamp(min=1))[:, None]) * is_real
