"""Encoder(s), fusion where there are two, pooling and a linear head."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from mavil.models.encoder import Encoder
from mavil.models.layers import layer_norm
from mavil.models.masked import Fusion
from mavil.structs import Modality, TokenGrid


class Classifier(nn.Module):
    """Scores from audio, from video, or from both through fusion.

    Every block output is pooled over patch tokens without CLS; the modalities' means are joined, pass one LayerNorm and one
    Linear layer [source Audio-MAE for one modality, AV-SUPERB copy for both]. With ``frozen`` only norm and head train.
    """

    def __init__(
        self, encoders: dict[Modality, Encoder], fusion: Fusion | None, num_classes: int, frozen: bool = False
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({str(m): encoder for m, encoder in encoders.items()})
        self.fusion = fusion
        for encoder in encoders.values():
            # The encoders' own final norm is left out: fc_norm takes its place [source Audio-MAE].
            encoder.norm.requires_grad_(False)
        if fusion is not None:
            fusion.norm.requires_grad_(False)
        width = sum(encoder.width for encoder in encoders.values())
        self.fc_norm = layer_norm(width)
        self.head = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)  # [source Audio-MAE]
        nn.init.zeros_(self.head.bias)
        self.frozen = frozen
        if frozen:
            for part in (self.encoders, self.fusion):
                if part is not None:
                    part.requires_grad_(False)

    def train(self, mode: bool = True) -> Classifier:
        """As usual, but frozen parts stay in evaluation mode: a probe sees the features people will use."""
        super().train(mode)
        if self.frozen:
            self.encoders.eval()
            if self.fusion is not None:
                self.fusion.eval()
        return self

    def grids(self) -> dict[Modality, TokenGrid]:
        """How each modality is cut into patches."""
        return {cast(Modality, name): cast(Encoder, encoder).grid for name, encoder in self.encoders.items()}

    def parts(self) -> dict[str, nn.Module]:
        """The modules a run starts from or leaves behind: ``audio_encoder``, ``fusion``, ``fc_norm``, ``head``, ..."""
        parts: dict[str, nn.Module] = {f"{name}_encoder": encoder for name, encoder in self.encoders.items()}
        if self.fusion is not None:
            parts["fusion"] = self.fusion
        return {**parts, "fc_norm": self.fc_norm, "head": self.head}

    def layer_of(self, parameter_name: str) -> tuple[int, int]:
        """Depth of a parameter and of the top, for layer-wise learning rates: embedding 0, block i at i + 1, the rest on top.

        Fusion counts as top [our choice: MAViL's code ranks its blocks as encoder blocks 0 to 2, probably by accident].
        """
        top = 1 + max(len(cast(Encoder, encoder).blocks) for encoder in self.encoders.values())
        parts = parameter_name.split(".")
        if parts[0] != "encoders":
            return top, top
        if parts[2] == "blocks":
            return int(parts[3]) + 1, top
        return 0, top

    def forward(self, patches: dict[Modality, Tensor]) -> Tensor:
        """``[B, N, P]`` patches of each modality to ``[B, classes]`` logits."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self._features(patches)
        return self.head(self.fc_norm(features))

    def _features(self, patches: dict[Modality, Tensor]) -> Tensor:
        tokens = [encoder(patches[name]) for name, encoder in self.encoders.items()]  # type: ignore[index]
        if self.fusion is not None:
            fused = self.fusion(*tokens)
            tokens = [fused.audio[-1], fused.video[-1]]
        return torch.cat([t[:, 1:].mean(dim=1) for t in tokens], dim=1)
