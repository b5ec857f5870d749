"""The pre-training network: one or two branches, an optional fusion, decoders; one forward, named outputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mavil.models.decoder import Decoder, JointDecoder
from mavil.models.encoder import Encoder
from mavil.models.fusion import Fusion
from mavil.models.layers import LAYER_NORM_EPS, Presence, initialise
from mavil.models.masking import concatenate
from mavil.models.tokens import select
from mavil.structs import MaskedViews, Modality, TokenGrid

PooledFrom = Literal["encoder", "fusion", "fusion_alone"]
Pooling = Literal["mean", "cls"]
Tokens = dict[Modality, Tensor]


@dataclass
class MaskedOutput:
    """What a forward gives, by modality.

    ``predictions`` ``[V, B, N, values]`` of predicted views; ``discriminations`` ``[V, B, N, P]`` of them, where decoders have
    that head; ``pooled`` ``[V, B, Z]`` of compared views.
    """

    predictions: dict[Modality, Tensor]
    pooled: dict[Modality, Tensor]
    discriminations: dict[Modality, Tensor] = field(default_factory=dict)


class Projection(nn.Module):
    """Between what is pooled and what is compared: ``[B, D]`` to ``[B, Z]`` [our choice; the paper's use of one is unknown]."""

    def __init__(self, width: int, hidden_width: int, out_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, out_width)
        self.apply(initialise)

    def forward(self, pooled: Tensor) -> Tensor:
        """Linear, GELU, Linear."""
        return self.fc2(F.gelu(self.fc1(pooled)))


class MaskedLearner(nn.Module):
    """Audio and video encoders over visible tokens, fusion, a decoder per modality or one for both (MAViL, figure 2 [recalled]).

    Module names: ``encoders.audio``, ``encoders.video``, ``fusion``, ``decoders.audio``, ``decoders.video``, ``decoder``,
    ``projections.audio`` ... Without fusion (one modality) a branch is exactly an MAE. Positions, masks and targets come from
    outside.

    Args:
        encoders: by modality, audio first.
        decoders: by modality, or one for both.
        fusion: ``None`` decodes each modality by itself.
        pooled_from: the tokens that are pooled for comparison: of the encoders, of the fusion of both modalities, or of the
            fusion passed by one at a time.
        pooling: mean over patch tokens, or the CLS token.
        projections: networks behind the pooling, by modality.
    """

    def __init__(
        self,
        encoders: dict[Modality, Encoder],
        decoders: dict[Modality, Decoder] | JointDecoder,
        fusion: Fusion | None,
        pooled_from: PooledFrom = "encoder",
        pooling: Pooling = "mean",
        projections: dict[Modality, Projection] | None = None,
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({str(m): encoder for m, encoder in encoders.items()})
        self.decoder = decoders if isinstance(decoders, JointDecoder) else None
        each = {} if isinstance(decoders, JointDecoder) else decoders
        self.decoders = nn.ModuleDict({str(m): decoder for m, decoder in each.items()})
        self.fusion = fusion
        self.pooled_from = pooled_from
        self.pooling = pooling
        self.projections = nn.ModuleDict({str(m): projection for m, projection in (projections or {}).items()})

    def forward(
        self,
        patches: Tokens,
        views: dict[Modality, MaskedViews],
        present: Presence | None = None,
    ) -> MaskedOutput:
        """Encode every view once, fuse and decode the predicted ones, pool the compared ones.

        ``patches`` ``[B, N, P]`` are all patches of each modality; only visible ones are embedded. Views of equal length go
        through an encoder in one call, one after the other on the batch axis. All modalities have equally many views of each
        kind; view i of one is fused with view i of the other. ``present`` says which clips have a modality: nobody looks at the
        tokens of an absent one.
        """
        encoded = {m: self._encode(m, values, views[m]) for m, values in patches.items()}
        num_predicted = len(next(iter(views.values())).predicted)
        pairs = [{m: tokens[i] for m, tokens in encoded.items()} for i in range(len(next(iter(encoded.values()))))]
        if self.pooled_from != "fusion":
            pairs = pairs[:num_predicted]
        fused = self._fuse(pairs, present)
        output = self._decode(fused[:num_predicted], views, present) if num_predicted else MaskedOutput({}, {})
        output.pooled = self._pool_compared(views, encoded, fused)
        return output

    def _encode(self, modality: Modality, patches: Tensor, views: MaskedViews) -> list[Tensor]:
        """``[B, c + K, D]`` of each distinct view."""
        distinct = views.distinct()
        encoded: dict[int, Tensor] = {}
        for length in dict.fromkeys(view.visible_ids.shape[1] for view in distinct):
            group = [view for view in distinct if view.visible_ids.shape[1] == length]
            visible = torch.cat([select(patches, view.visible_ids) for view in group])
            tokens = self.encoder(modality)(visible, concatenate(group).visible_ids)
            encoded |= {id(view): part for view, part in zip(group, tokens.chunk(len(group)), strict=True)}
        return [encoded[id(view)] for view in distinct]

    def _fuse(self, pairs: Sequence[Tokens], present: Presence | None) -> list[Tokens]:
        """What decoders see of each pair: normalised fused tokens, or the encoders' own where there is no fusion.

        Pairs of equal lengths pass the fusion in one call.
        """
        if self.fusion is None:
            return [{m: self.encoder(m).norm(tokens) for m, tokens in pair.items()} for pair in pairs]
        results: list[Tokens] = [{} for _ in pairs]
        shapes = [tuple(tokens.shape for tokens in pair.values()) for pair in pairs]
        for shape in dict.fromkeys(shapes):
            members = [i for i, other in enumerate(shapes) if other == shape]
            tokens: Tokens = {m: torch.cat([pairs[i][m] for i in members]) for m in pairs[members[0]]}
            fused = self.fusion(tokens, repeated(present, len(members)))
            for modality in tokens:
                normed = self.fusion.norm(fused.output(modality))
                for i, part in zip(members, normed.chunk(len(members)), strict=True):
                    results[i][modality] = part
        return results

    def _decode(
        self, fused: list[Tokens], views: dict[Modality, MaskedViews], present: Presence | None
    ) -> MaskedOutput:
        tokens: Tokens = {m: torch.cat([pair[m] for pair in fused]) for m in views}
        all_views = {m: concatenate(views[m].predicted) for m in views}
        output = MaskedOutput({}, {})
        if self.decoder is not None:
            output.predictions = self.decoder(tokens, all_views, repeated(present, len(fused)))
        for name, module in self.decoders.items():
            modality, decoder = cast(Modality, name), cast(Decoder, module)
            decoded = decoder.decode(tokens[modality], all_views[modality])
            output.predictions[modality] = decoder.pred(decoded)
            if decoder.discriminate is not None:
                output.discriminations[modality] = decoder.discriminate(decoded)
        for values in (output.predictions, output.discriminations):
            for modality in values:
                values[modality] = values[modality].unflatten(0, (len(fused), -1))
        return output

    def _pool_compared(
        self, views: dict[Modality, MaskedViews], encoded: dict[Modality, list[Tensor]], fused: list[Tokens]
    ) -> dict[Modality, Tensor]:
        """``[V, B, Z]`` of the compared views; empty where there are none."""
        pooled: dict[Modality, Tensor] = {}
        for modality, own in views.items():
            distinct = own.distinct()
            places = [next(i for i, one in enumerate(distinct) if one is view) for view in own.compared]
            if not places:
                continue
            if self.pooled_from == "fusion":
                rows = [self._projected(modality, self._pool(modality, fused[i][modality])) for i in places]
            else:
                # Together, in one call of whatever comes behind the encoder.
                tokens = torch.cat([encoded[modality][i] for i in places])
                rows = list(self.pool(modality, tokens).chunk(len(places)))
            pooled[modality] = torch.stack(rows)
        return pooled

    def pool(self, modality: Modality, tokens: Tensor, projects: bool = True) -> Tensor:
        """Raw encoder outputs ``[B, c + K, D]`` of one modality to what is compared, ``[B, Z]``, or to a projection's input.

        Where the joint fusion of both modalities is pooled in training, a modality by itself passes it alone.
        """
        if self.pooled_from == "encoder" or self.fusion is None:
            normed = self.encoder(modality).norm(tokens)
        else:
            normed = self.fusion.norm_of(modality, alone=True)(self.fusion({modality: tokens}).output(modality))
        pooled = self._pool(modality, normed)
        return self._projected(modality, pooled) if projects else pooled

    def _pool(self, modality: Modality, normed: Tensor) -> Tensor:
        num_prefix = self.encoder(modality).num_prefix
        return normed[:, 0] if self.pooling == "cls" else normed[:, num_prefix:].mean(dim=1)

    def _projected(self, modality: Modality, pooled: Tensor) -> Tensor:
        return self.projections[modality](pooled) if modality in self.projections else pooled

    def embed(self, modality: Modality, patches: Tensor, projects: bool = True) -> Tensor:
        """Embedding ``[B, Z]``, before normalisation, of the complete input of one modality: what retrieval compares.

        Without ``projects`` it is what stands before the projection, ``[B, D]``: what probes look at [SimCLR].
        """
        return self.pool(modality, self.encoder(modality)(patches), projects)

    def contextualise(
        self,
        patches: Tokens,
        last_layers: int = 1,
        normalise: bool = True,
        context: Literal["joint", "separate"] = "joint",
        present: Presence | None = None,
    ) -> Tokens:
        """Tokens ``[B, N, D]`` of the complete, unmasked pair, without CLS: the targets of the next stage.

        The outputs of the ``last_layers`` last blocks are averaged: those of the fusion of both modalities (``joint``), or of
        each encoder by itself (``separate``, and where there is no fusion). With ``normalise`` each token then passes a
        LayerNorm without parameters [all unknown in the paper but the fusion's output; our choice, see docs/deviations.md].

        Raises:
            ValueError: more layers are asked for than there are.
        """
        if self.fusion is None or context == "separate":
            layers = {m: self._last_layers(m, values, last_layers) for m, values in patches.items()}
        else:
            layers = self.fusion({m: self.encoder(m)(values) for m, values in patches.items()}, present).layers
        targets: Tokens = {}
        for modality, outputs in layers.items():
            if last_layers > len(outputs):
                raise ValueError(
                    f"last_layers is {last_layers}, but the teacher has {len(outputs)} layer(s) to average"
                )
            tokens = torch.stack(outputs[-last_layers:]).mean(dim=0)[:, self.encoder(modality).num_prefix :]
            targets[modality] = F.layer_norm(tokens, tokens.shape[-1:], eps=LAYER_NORM_EPS) if normalise else tokens
        return targets

    def _last_layers(self, modality: Modality, patches: Tensor, count: int) -> list[Tensor]:
        """The outputs of the last ``count`` encoder blocks, or of all there are; the others are not kept."""
        outputs = iter(self.encoder(modality).layers(patches))
        next(outputs)  # what enters the first block is the output of none
        return list(deque(outputs, maxlen=count))

    def grid(self, modality: Modality) -> TokenGrid:
        """How a modality is cut into patches."""
        return self.encoder(modality).grid

    def encoder(self, modality: Modality) -> Encoder:
        """The encoder of one modality."""
        return cast(Encoder, self.encoders[modality])

    def parts(self) -> dict[str, nn.Module]:
        """The modules other models can start from: ``audio_encoder``, ``audio_decoder``, ..., ``fusion``, ``decoder``."""
        parts: dict[str, nn.Module] = {f"{name}_encoder": encoder for name, encoder in self.encoders.items()}
        parts.update({f"{name}_decoder": decoder for name, decoder in self.decoders.items()})
        parts.update({f"{name}_projection": projection for name, projection in self.projections.items()})
        for name, part in (("fusion", self.fusion), ("decoder", self.decoder)):
            if part is not None:
                parts[name] = part
        return parts

    def unused_in_training(self, compares: bool) -> list[nn.Module]:
        """What no loss reaches with these settings; ``compares``: whether anything pooled is compared."""
        unused: list[nn.Module] = [] if compares else list(self.projections.values())
        if self.fusion is None:
            return unused
        if not (compares and self.pooled_from == "encoder"):
            unused += [self.encoder(cast(Modality, m)).norm for m in self.encoders]
        if not (compares and self.pooled_from == "fusion_alone"):
            unused += self.fusion.norms_alone()
        return unused


def repeated(present: Presence | None, times: int) -> Presence | None:
    """Presence flags for ``times`` views one after the other on the batch axis."""
    if present is None or times == 1:
        return present
    return {m: None if flags is None else flags.repeat(times) for m, flags in present.items()}
