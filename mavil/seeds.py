"""Random numbers that belong to a clip: a function of its seed alone, the same in any process and on any machine."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def sample_seed(*parts: object) -> int:
    """A 63-bit seed that depends only on ``parts`` (e.g. run seed, epoch, clip key), on any machine and in any process."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniform_draws(seeds: Tensor, purpose: str, count: int) -> Tensor:
    """``[B, count]`` float32 uniform numbers in [0, 1), one independent stream per (sample seed, purpose).

    Drawn on the CPU whatever device the seeds are on, so that CPU and GPU runs, and any split of the clips over workers and
    ranks, see the same masks and crops.
    """
    rows = []
    for seed in seeds.tolist():
        generator = torch.Generator().manual_seed(sample_seed(seed, purpose))
        rows.append(torch.rand(count, generator=generator))
    return torch.stack(rows)
