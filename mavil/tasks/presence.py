"""Which modalities of a clip a model may use: what the clip has, less what training takes away."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mavil.seeds import uniform_draws
from mavil.structs import Inputs, Modality


def dropped_presence(
    inputs: Inputs, modalities: Sequence[Modality], probability: float
) -> dict[Modality, Tensor | None]:
    """Which clips have each of ``modalities``, ``[B]`` bool, ``None`` where all have it.

    With ``probability`` a clip that has two of them loses one, either with the same chance [AV-HuBERT]; no clip loses all. A
    function of the clip's seed alone, so that ranks, workers and resumed runs agree. Tensors of what was taken away stay as
    they are: who takes the flags must not look at them.
    """
    present = {m: inputs.present(m) for m in modalities}
    if probability == 0 or len(modalities) < 2:
        return present
    first, second = modalities
    device = inputs.of(first).device
    draws = uniform_draws(inputs.seeds, "modality dropout", 2).to(device)
    everybody = torch.ones(len(inputs), dtype=torch.bool, device=device)
    has_first, has_second = (everybody if flag is None else flag for flag in present.values())
    is_dropped = has_first & has_second & (draws[:, 0] < probability)
    is_first = draws[:, 1] < 0.5
    return {first: has_first & ~(is_dropped & is_first), second: has_second & ~(is_dropped & ~is_first)}
