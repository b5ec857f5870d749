"""Which tokens are hidden: noise in, ids out. Pure functions; the caller owns the randomness."""

from __future__ import annotations

import torch
from torch import Tensor

from mavil.structs import MaskedView


def random_masking(noise: Tensor, num_visible: int) -> MaskedView:
    """Hide all but the ``num_visible`` tokens of smallest noise, per clip [source MAE, Audio-MAE; MAViL: recalled].

    ``noise`` ``[B, N]`` uniform. ``visible_ids`` keep the order of the noise (shuffled), as in MAE.
    """
    order = noise.argsort(dim=1)
    return MaskedView(
        visible_ids=order[:, :num_visible], masked_ids=order[:, num_visible:], restore_ids=order.argsort(dim=1)
    )


def concatenate(views: list[MaskedView]) -> MaskedView:
    """Stack views on the batch axis, so that one encoder call serves them all: ids ``[V * B, ...]``, view-major."""
    return MaskedView(
        visible_ids=torch.cat([view.visible_ids for view in views]),
        masked_ids=torch.cat([view.masked_ids for view in views]),
        restore_ids=torch.cat([view.restore_ids for view in views]),
    )
