"""Run something over an evaluation set, on any number of ranks, and get one row per clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mavil import distributed
from mavil.structs import Inputs, UserError


@dataclass(frozen=True)
class Collected:
    """One row per clip of the evaluation set, sorted by key; the same on every rank.

    ``values`` holds CPU tensors ``[n, ...]`` by name, floating-point ones as float32.
    """

    keys: list[str]
    metadata: list[dict[str, str]]
    values: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.keys)


def collect(batches: Iterable[Inputs], compute: Callable[[Inputs], dict[str, Tensor]]) -> Collected:
    """Call ``compute`` on this rank's batches and join the rows of all ranks.

    Args:
        batches: this rank's share, each clip exactly once over all ranks; shares may differ in length or be empty.
        compute: returns tensors ``[B, ...]`` by name, e.g. embeddings, scores, or the batch's own targets. Runs under
            ``torch.inference_mode``; putting the model into ``eval()`` is the caller's business.

    Raises:
        UserError: the evaluation set holds no clip.
        ValueError: a clip came twice, or ``compute`` returned a tensor that has not one row per clip.
    """
    keys: list[str] = []
    metadata: list[dict[str, str]] = []
    pieces: dict[str, list[Tensor]] = {}
    # Ranks may hold different numbers of batches: whoever talked to the others in this loop would wait forever.
    with torch.inference_mode():
        for inputs in batches:
            for name, value in compute(inputs).items():
                pieces.setdefault(name, []).append(_checked(name, value, len(inputs)))
            keys += inputs.keys
            metadata += inputs.metadata or [{} for _ in inputs.keys]
    own = Collected(keys, metadata, {name: torch.cat(values) for name, values in pieces.items()})
    return _joined([share for share in distributed.gather_objects(own) if len(share)])


def _checked(name: str, value: Tensor, num_clips: int) -> Tensor:
    if value.ndim == 0 or len(value) != num_clips:
        raise ValueError(f"compute returned {name!r} of shape {tuple(value.shape)} for {num_clips} clips: one row each")
    # float32, because numpy knows no bfloat16.
    return (value.float() if value.is_floating_point() else value).cpu()


def _joined(shares: list[Collected]) -> Collected:
    if not shares:
        raise UserError("the evaluation set holds no clip: check data.evaluation")
    keys = [key for share in shares for key in share.keys]
    metadata = [entry for share in shares for entry in share.metadata]
    repeated = [key for key, count in Counter(keys).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{len(repeated)} clips came more than once, first {repeated[0]!r}: each must be evaluated exactly once"
        )
    order = sorted(range(len(keys)), key=keys.__getitem__)
    values = {name: torch.cat([share.values[name] for share in shares])[order] for name in shares[0].values}
    return Collected([keys[i] for i in order], [metadata[i] for i in order], values)
