"""The pre-training network: one or two branches, an optional fusion, decoders; one forward, named outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mavil.models.decoder import Decoder
from mavil.models.encoder import Encoder
from mavil.models.fusion import BottleneckFusion, Fused, JointFusion
from mavil.models.layers import LAYER_NORM_EPS
from mavil.models.masking import concatenate
from mavil.models.tokens import select
from mavil.structs import MaskedView, Modality, TokenGrid

Fusion = JointFusion | BottleneckFusion


@dataclass
class MaskedOutput:
    """``predictions`` ``[B, N, values]`` of view 1, by modality; ``pooled`` ``[V, B, D]`` encoder outputs of all views."""

    predictions: dict[Modality, Tensor]
    pooled: dict[Modality, Tensor]


class MaskedLearner(nn.Module):
    """Audio and video encoders over visible tokens, fusion of view 1, one decoder per modality (MAViL, figure 2 [recalled]).

    Module names: ``encoders.audio``, ``encoders.video``, ``fusion``, ``decoders.audio``, ``decoders.video``. Without fusion
    (one modality) a branch is exactly an MAE. Positions, masks and targets come from outside.
    """

    def __init__(
        self, encoders: dict[Modality, Encoder], decoders: dict[Modality, Decoder], fusion: Fusion | None
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({str(m): encoder for m, encoder in encoders.items()})
        self.decoders = nn.ModuleDict({str(m): decoder for m, decoder in decoders.items()})
        self.fusion = fusion

    def forward(
        self, patches: dict[Modality, Tensor], views: dict[Modality, list[MaskedView]], decodes: bool = True
    ) -> MaskedOutput:
        """Encode every view, fuse and decode view 1.

        ``patches`` ``[B, N, P]`` are all patches of each modality; only visible ones are embedded. All views of a modality
        go through its encoder in one call, concatenated on the batch axis. Without ``decodes`` there are no predictions, for
        who only compares what is pooled.
        """
        encoded: dict[Modality, Tensor] = {}
        pooled: dict[Modality, Tensor] = {}
        for modality, all_patches in patches.items():
            encoder = self.encoder(modality)
            view = concatenate(views[modality])
            num_views = len(views[modality])
            visible = select(all_patches.repeat(num_views, 1, 1), view.visible_ids)
            tokens = encoder(visible, view.visible_ids)
            pooled[modality] = encoder.pool(tokens).unflatten(0, (num_views, -1))
            encoded[modality] = tokens[: len(all_patches)]
        if not decodes:
            return MaskedOutput({}, pooled)
        fused = self._fuse(encoded)
        predictions = {m: self.decoders[m](tokens, views[m][0]) for m, tokens in fused.items()}
        return MaskedOutput(predictions, pooled)

    def grid(self, modality: Modality) -> TokenGrid:
        """How a modality is cut into patches."""
        return self.encoder(modality).grid

    def parts(self) -> dict[str, nn.Module]:
        """The modules other models can start from: ``audio_encoder``, ``audio_decoder``, ..., ``fusion``."""
        parts = {f"{name}_encoder": encoder for name, encoder in self.encoders.items()}
        parts.update({f"{name}_decoder": decoder for name, decoder in self.decoders.items()})
        if self.fusion is not None:
            parts["fusion"] = self.fusion
        return parts

    def encoder(self, modality: Modality) -> Encoder:
        """The encoder of one modality."""
        return cast(Encoder, self.encoders[modality])

    def _fuse(self, encoded: dict[Modality, Tensor]) -> dict[Modality, Tensor]:
        """What the decoders see: normalised fused tokens, or the encoders' own where there is no fusion."""
        if self.fusion is None:
            return {m: self.encoder(m).norm(tokens) for m, tokens in encoded.items()}
        fused: Fused = self.fusion(encoded["audio"], encoded["video"])
        return {"audio": self.fusion.norm(fused.audio[-1]), "video": self.fusion.norm(fused.video[-1])}

    def embed(self, modality: Modality, patches: Tensor) -> Tensor:
        """Pooled encoder output ``[B, D]`` of the complete input: what retrieval compares."""
        encoder = self.encoder(modality)
        return encoder.pool(encoder(patches))

    def contextualise(
        self, patches: dict[Modality, Tensor], last_layers: int = 1, normalise: bool = True
    ) -> dict[Modality, Tensor]:
        """Fused tokens ``[B, N, D]`` of the complete, unmasked pair, without CLS: the targets of the next stage.

        The outputs of the ``last_layers`` last fusion blocks are averaged; with ``normalise`` each token then passes a
        LayerNorm without parameters [both unknown in the paper; our choice, see docs/deviations.md].

        Raises:
            ValueError: more layers are asked for than the fusion has.
        """
        encoded: dict[Modality, Tensor] = {m: self.encoders[m](values) for m, values in patches.items()}
        if self.fusion is None:
            layers = {m: [tokens] for m, tokens in encoded.items()}
        else:
            fused: Fused = self.fusion(encoded["audio"], encoded["video"])
            layers = {"audio": fused.audio, "video": fused.video}
        targets: dict[Modality, Tensor] = {}
        for modality, outputs in layers.items():
            if last_layers > len(outputs):
                raise ValueError(
                    f"last_layers is {last_layers}, but the teacher has {len(outputs)} layer(s) to average"
                )
            tokens = torch.stack(outputs[-last_layers:]).mean(dim=0)[:, 1:]
            targets[modality] = F.layer_norm(tokens, tokens.shape[-1:], eps=LAYER_NORM_EPS) if normalise else tokens
        return targets
