"""Where the modalities meet: two interchangeable fusion encoders."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mavil.models.layers import build_blocks, layer_norm


@dataclass
class Fused:
    """Tokens of both modalities after each fusion block, CLS first: ``[B, 1 + K, D]`` each; the last one is the output."""

    audio: list[Tensor]
    video: list[Tensor]


class JointFusion(nn.Module):
    """Self-attention over the joint sequence ``[CLS_a, audio, CLS_v, video]``, split back by length [source AV-SUPERB copy]."""

    def __init__(self, width: int, depth: int, num_heads: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.blocks = build_blocks(width, depth, num_heads, drop_path)
        self.norm = layer_norm(width)

    def forward(self, audio: Tensor, video: Tensor) -> Fused:
        """``audio`` ``[B, 1 + Ka, D]`` and ``video`` ``[B, 1 + Kv, D]``, raw encoder outputs."""
        joint = torch.cat([audio, video], dim=1)
        fused = Fused([], [])
        for block in self.blocks:
            joint = block(joint)
            fused.audio.append(joint[:, : audio.shape[1]])
            fused.video.append(joint[:, audio.shape[1] :])
        return fused


class BottleneckFusion(nn.Module):
    """Each modality attends to itself and to a few shared bottleneck tokens (MBT, Nagrani et al. 2021).

    In every layer both modalities update the bottleneck from the same input; the two updates are averaged.
    """

    def __init__(self, width: int, depth: int, num_heads: int, num_tokens: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.bottleneck = nn.Parameter(torch.zeros(1, num_tokens, width))
        self.audio_blocks = build_blocks(width, depth, num_heads, drop_path)
        self.video_blocks = build_blocks(width, depth, num_heads, drop_path)
        self.norm = layer_norm(width)
        nn.init.normal_(self.bottleneck, std=0.02)

    def forward(self, audio: Tensor, video: Tensor) -> Fused:
        """As :meth:`JointFusion.forward`."""
        bottleneck = self.bottleneck.expand(len(audio), -1, -1)
        num_audio, num_video = audio.shape[1], video.shape[1]
        fused = Fused([], [])
        for audio_block, video_block in zip(self.audio_blocks, self.video_blocks, strict=True):
            from_audio = audio_block(torch.cat([audio, bottleneck], dim=1))
            from_video = video_block(torch.cat([video, bottleneck], dim=1))
            audio, video = from_audio[:, :num_audio], from_video[:, :num_video]
            bottleneck = (from_audio[:, num_audio:] + from_video[:, num_video:]) / 2
            fused.audio.append(audio)
            fused.video.append(video)
        return fused
