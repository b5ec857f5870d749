"""Where the modalities meet: two interchangeable fusion encoders, which a modality may also pass alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from mavil.models.layers import Presence, SharedBlock, Stack, joint_key_mask
from mavil.structs import MODALITIES, Modality


@dataclass
class Fused:
    """Tokens of each modality after each fusion block, CLS first: ``[B, c + K, D]``; the last one is the output."""

    layers: dict[Modality, list[Tensor]]

    def output(self, modality: Modality) -> Tensor:
        """The last block's tokens of one modality."""
        return self.layers[modality][-1]


class JointFusion(nn.Module):
    """Self-attention over the joint sequence ``[CLS_a, audio, CLS_v, video]``, split back by length [source AV-SUPERB copy].

    Args:
        stack: its blocks.
        input_norm: a LayerNorm per modality before the first block [unknown in the paper].
        alone_norms: a modality that passes alone has norms of its own [source CAV-MAE].
    """

    def __init__(self, stack: Stack, input_norm: bool = False, alone_norms: bool = False) -> None:
        super().__init__()
        self.stack = stack
        self.input_norms = _norms(stack) if input_norm else None
        self.blocks = stack.blocks(alone_norms)
        self.norm = stack.norm()
        self.alone_norms = _norms(stack) if alone_norms else None

    def forward(self, tokens: Mapping[Modality, Tensor], present: Presence | None = None) -> Fused:
        """``[B, c + K, D]`` raw encoder outputs of both modalities, or of one that passes alone.

        Tokens of a clip's absent modality are seen by nobody; what comes out in their place means nothing.
        """
        tokens = {m: _normed(self.input_norms, m, tokens[m]) for m in MODALITIES if m in tokens}
        alone = next(iter(tokens)) if len(tokens) == 1 else None
        joint = torch.cat(list(tokens.values()), dim=1)
        lengths = [values.shape[1] for values in tokens.values()]
        fused = Fused({modality: [] for modality in tokens})
        mask = joint_key_mask(tokens, present) if alone is None else None
        for block in self.blocks:
            if isinstance(block, SharedBlock):
                joint = block(joint, attn_mask=mask, alone=alone)
            else:
                joint = block(joint) if mask is None else block(joint, attn_mask=mask)
            for modality, values in zip(tokens, joint.split(lengths, dim=1), strict=True):
                fused.layers[modality].append(values)
        return fused

    def norm_of(self, modality: Modality, alone: bool) -> nn.Module:
        """The norm after the last block, for the joint sequence or for a modality that passed alone."""
        return self.alone_norms[modality] if alone and self.alone_norms is not None else self.norm

    def norms_alone(self) -> list[nn.Module]:
        """Every norm that only modalities use which pass alone."""
        if self.alone_norms is None:
            return []
        return [self.alone_norms, *(cast(SharedBlock, block).alone_norms for block in self.blocks)]


class BottleneckFusion(nn.Module):
    """Each modality attends to itself and to a few shared bottleneck tokens (MBT, Nagrani et al. 2021).

    In every layer each modality updates the bottleneck from the same input; the updates are averaged, over the modalities
    that a clip has.

    Args:
        stack: the blocks of each modality.
        num_tokens: bottleneck tokens.
        input_norm: as in :class:`JointFusion`.
    """

    def __init__(self, stack: Stack, num_tokens: int, input_norm: bool = False) -> None:
        super().__init__()
        self.stack = stack
        self.input_norms = _norms(stack) if input_norm else None
        self.bottleneck = nn.Parameter(torch.zeros(1, num_tokens, stack.width))
        self.audio_blocks = stack.blocks()
        self.video_blocks = stack.blocks()
        self.norm = stack.norm()
        nn.init.normal_(self.bottleneck, std=0.02)

    def forward(self, tokens: Mapping[Modality, Tensor], present: Presence | None = None) -> Fused:
        """As :meth:`JointFusion.forward`."""
        current = {m: _normed(self.input_norms, m, tokens[m]) for m in MODALITIES if m in tokens}
        bottleneck = self.bottleneck.expand(len(next(iter(current.values()))), -1, -1)
        fused = Fused({modality: [] for modality in current})
        for audio_block, video_block in zip(self.audio_blocks, self.video_blocks, strict=True):
            updates: dict[Modality, Tensor] = {}
            for modality, values in current.items():
                block = audio_block if modality == "audio" else video_block
                values = block(torch.cat([values, bottleneck], dim=1))
                num_tokens = values.shape[1] - bottleneck.shape[1]
                current[modality], updates[modality] = values[:, :num_tokens], values[:, num_tokens:]
                fused.layers[modality].append(current[modality])
            bottleneck = _mean_update(updates, present)
        return fused

    def norm_of(self, modality: Modality, alone: bool) -> nn.Module:
        """The norm after the last block, the same for every use."""
        return self.norm

    def norms_alone(self) -> list[nn.Module]:
        """None: there are no norms for modalities that pass alone."""
        return []


Fusion = JointFusion | BottleneckFusion


def _norms(stack: Stack) -> nn.ModuleDict:
    return nn.ModuleDict({modality: stack.norm() for modality in MODALITIES})


def _normed(norms: nn.ModuleDict | None, modality: Modality, tokens: Tensor) -> Tensor:
    return tokens if norms is None else norms[modality](tokens)


def _mean_update(updates: Mapping[Modality, Tensor], present: Presence | None) -> Tensor:
    flags = {m: present.get(m) if present else None for m in updates}
    if len(updates) == 1 or all(flag is None for flag in flags.values()):
        return torch.stack(list(updates.values())).mean(dim=0)
    first = next(iter(updates.values()))
    shares = {m: torch.ones_like(first[:, 0, 0]) if f is None else f.to(first.dtype) for m, f in flags.items()}
    weights = {m: (share / sum(shares.values()))[:, None, None] for m, share in shares.items()}
    return torch.stack([weights[m] * values for m, values in updates.items()]).sum(dim=0)
