"""Biases of queries, keys and values: as one vector, or without the keys' as MSM-MAE and VideoMAE compute [source]."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_JOINT = re.compile(r"(.*blocks\.\d+\.attn\.)qkv\.bias")
_PARTIAL = re.compile(r"(.*blocks\.\d+\.attn\.)q_bias")


def has_partial_bias(names: Mapping[str, object]) -> bool:
    """Whether keys have no bias there."""
    return any(_PARTIAL.fullmatch(name) for name in names)


def with_key_bias(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``q_bias``, ``v_bias`` ``[D]`` of every block as one ``qkv.bias`` ``[3 D]`` with zeros for the keys."""
    joined = dict(tensors)
    for prefix in _prefixes(_PARTIAL, tensors):
        query, value = joined.pop(f"{prefix}q_bias"), joined.pop(f"{prefix}v_bias")
        joined[f"{prefix}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return joined


def without_key_bias(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`with_key_bias`.

    Raises:
        ValueError: a key has a bias that is not zero; the message names the tensor.
    """
    split = dict(tensors)
    for prefix in _prefixes(_JOINT, tensors):
        query, key, value = split.pop(f"{prefix}qkv.bias").chunk(3)
        if bool(key.any()):
            raise ValueError(f"{prefix}qkv.bias has a bias of keys")
        split |= {f"{prefix}q_bias": query.clone(), f"{prefix}v_bias": value.clone()}
    return split


def _prefixes(pattern: re.Pattern[str], tensors: Mapping[str, Tensor]) -> list[str]:
    return [match[1] for name in tensors if (match := pattern.fullmatch(name))]
