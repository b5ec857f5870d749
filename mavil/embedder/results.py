"""Embeddings of windows to what people get: means or windows, tensors or arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mavil.embedder.encoding import Halves
from mavil.embedder.windows import Span, Windowed
from mavil.structs import MODALITIES, Modality

Output = Literal["torch", "numpy"]


class Row(NamedTuple):
    """A window of a clip, embedded."""

    span: Span
    halves: Halves


def means_of(clips: Sequence[Sequence[Row]], widths: Mapping[Modality, int], normalise: bool) -> Tensor:
    """``[B, Z]``: of each clip the mean over its windows, of each modality over those that have it."""
    means = torch.stack([_joined(_mean([row.halves for row in rows]), widths) for rows in clips])
    return normalize(means, dim=1) if normalise else means


def windowed(rows: Sequence[Row], widths: Mapping[Modality, int], normalise: bool) -> Windowed[Tensor]:
    """The windows of one clip."""
    values = torch.stack([_joined(row.halves, widths) for row in rows])
    values = normalize(values, dim=1) if normalise else values
    spans = torch.tensor([row.span for row in rows], dtype=torch.float32)
    present = {m: torch.tensor([m in row.halves for row in rows]) for m in widths}
    return Windowed(values, spans[:, 0], spans[:, 1], present)


def in_form(result: Any, form: Output) -> Any:
    """A CPU tensor as it is, or as a numpy array; also those in a dataclass or in a mapping."""
    if form == "torch":
        return result
    if isinstance(result, Tensor):
        return result.numpy()
    if isinstance(result, Mapping):
        return {name: in_form(value, form) for name, value in result.items()}
    if is_dataclass(result) and not isinstance(result, type):
        return replace(result, **{one.name: in_form(getattr(result, one.name), form) for one in fields(result)})
    return result


def _joined(halves: Halves, widths: Mapping[Modality, int]) -> Tensor:
    """``[Z]``: side by side, zeros for what is not there."""
    return torch.cat([halves[m] if m in halves else torch.zeros(width) for m, width in widths.items()])


def _mean(rows: Sequence[Halves]) -> Halves:
    """Of each modality over the windows that have it."""
    found: Halves = {}
    for modality in MODALITIES:
        own = [halves[modality] for halves in rows if modality in halves]
        if own:
            found[modality] = torch.stack(own).double().mean(dim=0).float()
    return found
