"""Encoder(s), fusion where the modalities are judged together, pooling, and a linear head on all or one per modality."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn

from mavil.models.encoder import Encoder
from mavil.models.fusion import Fusion
from mavil.models.tokens import select
from mavil.structs import MODALITIES, Modality, TokenGrid

Heads = Literal["joint", "separate"]
FusionRank = Literal["top", "first_blocks"]
Pooling = Literal["concatenate", "mean"]
AlonePooling = Literal["own", "average"]
"""What stands for a clip with one modality where the fusion has norms for those that pass alone: what passed with these norms,
or the average of that and of what passed with the joint norms."""

JOINT = "joint"
"""The name of the scores that come from everything a clip has."""


class Classifier(nn.Module):
    """Scores from audio, from video, or from both; a clip may always lack one of them.

    Tokens of the last block are averaged without CLS; each head is one LayerNorm and one Linear layer. Three systems:

    - ``joint`` heads, ``concatenate``: the modalities' means side by side, raw block outputs; a modality that a clip lacks is
      zeros there [source Audio-MAE for one modality, AV-SUPERB copy for both; zeros: our choice, no paper says].
    - ``joint`` heads, ``mean``: the mean over all tokens that a clip has, after the fusion's norm [source CAV-MAE]. The
      fusion is passed even where the classifier sees one modality.
    - ``separate`` heads: no fusion, one head per modality in one model [source AV-SUPERB copy, "a_v"].

    Args:
        encoders: by modality.
        fusion: ``None`` for one modality, or where each is judged by itself.
        num_classes: scores per head.
        heads, pooling: see above.
        frozen: only the heads with their norms train (linear probe).
        has_gaps: training batches may hold clips with one modality. The fusion's norms for modalities that pass alone are
            trained then, and take part in every batch; otherwise they stay as they are.

    Raises:
        ValueError: separate heads with a fusion or another pooling, or ``mean`` without a fusion.
    """

    def __init__(
        self,
        encoders: dict[Modality, Encoder],
        fusion: Fusion | None,
        num_classes: int,
        *,
        heads: Heads = "joint",
        pooling: Pooling = "concatenate",
        frozen: bool = False,
        has_gaps: bool = False,
    ) -> None:
        super().__init__()
        if (heads == "separate" and (fusion is not None or pooling == "mean")) or (
            pooling == "mean" and fusion is None
        ):
            raise ValueError(
                f"{heads} heads, pooling {pooling}, {'no' if fusion is None else 'a'} fusion do not go together"
            )
        self.encoders = nn.ModuleDict({str(m): encoder for m, encoder in encoders.items()})
        self.fusion = fusion
        self.pooling = pooling
        self.frozen = frozen
        self.has_gaps = has_gaps
        self.outputs: tuple[str, ...] = (JOINT,) if heads == "joint" else tuple(encoders)
        widths = {m: encoder.width for m, encoder in encoders.items()}
        joint_width = next(iter(widths.values())) if pooling == "mean" else sum(widths.values())
        # One epsilon per head [source CAV-MAE 1e-5, others 1e-6: as in the encoder]; that of the first where two meet.
        eps = {m: encoder.stack.layer_norm_eps for m, encoder in encoders.items()}
        for output in self.outputs:
            width = joint_width if output == JOINT else widths[cast(Modality, output)]
            norm = nn.LayerNorm(width, next(iter(eps.values())) if output == JOINT else eps[cast(Modality, output)])
            head = nn.Linear(width, num_classes)
            nn.init.trunc_normal_(head.weight, std=2e-5)  # [source Audio-MAE]
            nn.init.zeros_(head.bias)
            self.add_module(_name_of(output, "fc_norm"), norm)
            self.add_module(_name_of(output, "head"), head)
        for parameter in self._untrained():
            parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Classifier:
        """As usual, but frozen parts stay in evaluation mode: a probe sees the features people will use."""
        super().train(mode)
        if self.frozen:
            for part in self.body().values():
                part.eval()
        return self

    def grids(self) -> dict[Modality, TokenGrid]:
        """How each modality is cut into patches."""
        return {cast(Modality, name): self._encoder(name).grid for name in self.encoders}

    def body(self) -> dict[str, nn.Module]:
        """The parts that pre-training knows: ``audio_encoder``, ``video_encoder``, ``fusion``."""
        parts: dict[str, nn.Module] = {f"{name}_encoder": encoder for name, encoder in self.encoders.items()}
        return parts if self.fusion is None else {**parts, "fusion": self.fusion}

    def parts(self) -> dict[str, nn.Module]:
        """All a run leaves behind: :meth:`body`, ``fc_norm`` and ``head``, or ``audio_fc_norm``, ``audio_head``, ..."""
        names = [_name_of(output, kind) for output in self.outputs for kind in ("fc_norm", "head")]
        return {**self.body(), **{name: self.get_submodule(name) for name in names}}

    def layer_of(self, parameter_name: str, fusion_rank: FusionRank = "top") -> tuple[int, int]:
        """Depth of a parameter and of the top, for layer-wise learning rates: embedding 0, block i at i + 1, the rest on top.

        Embedding is everything before the first block: kernel, CLS, positions, modality. With ``fusion_rank`` ``top`` fusion
        counts as top, norms before it included [our choice]; with ``first_blocks`` its block i stands at i + 1 like block i of
        an encoder, its other norms on top [source AV-SUPERB copy, probably by accident of their names].
        """
        top = 1 + max(len(self._encoder(name).blocks) for name in self.encoders)
        parts = parameter_name.split(".")
        if parts[0] == "fusion" and fusion_rank == "first_blocks" and parts[1].endswith("blocks"):
            return int(parts[2]) + 1, top
        if parts[0] != "encoders":
            return top, top
        if parts[2] == "blocks":
            return int(parts[3]) + 1, top
        return 0, top

    def part_of(self, parameter_name: str) -> str:
        """Which of ``audio_encoder``, ``video_encoder``, ``fusion`` and ``head`` a parameter belongs to."""
        parts = parameter_name.split(".")
        if parts[0] == "encoders":
            return f"{parts[1]}_encoder"
        return "fusion" if parts[0] == "fusion" else "head"

    def forward(
        self,
        patches: Mapping[Modality, Tensor],
        present: Mapping[Modality, Tensor | None] | None = None,
        visible_ids: Mapping[Modality, Tensor] | None = None,
        alone: AlonePooling = "own",
    ) -> dict[str, Tensor]:
        """``[B, N, P]`` patches to ``[B, classes]`` logits, by output: ``joint``, or each modality with a head of its own.

        Args:
            patches: all patches of each modality; one that nobody has may be left out. Whatever is trained gets a gradient,
                zero where nothing depends on it, unless a modality is left out.
            present: ``[B]`` bool, which clips have a modality; ``None`` where all have it. What stands in the place of an
                absent one changes nothing; logits of its own head mean nothing.
            visible_ids: ``[B, K]`` token numbers to look at, of the modalities that are not to be seen as a whole.
            alone: what stands for clips with one modality [source CAV-MAE: "audioonly", "missingaudioonly"].

        Raises:
            ValueError: no modality that it knows, or ``average`` where the fusion has no norms for modalities that pass alone.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.features(patches, present, visible_ids, alone)
        scores: dict[str, Tensor] = {}
        for output, values in features.items():
            normed = self.get_submodule(_name_of(output, "fc_norm"))(values)
            scores[output] = self.get_submodule(_name_of(output, "head"))(normed)
        return scores

    def features(
        self,
        patches: Mapping[Modality, Tensor],
        present: Mapping[Modality, Tensor | None] | None = None,
        visible_ids: Mapping[Modality, Tensor] | None = None,
        alone: AlonePooling = "own",
    ) -> dict[str, Tensor]:
        """What the heads look at before their norms: ``[B, width]`` by output; arguments as in :meth:`forward`."""
        if alone == "average" and (self.fusion is None or not self.fusion.norms_alone() or len(self.encoders) < 2):
            raise ValueError(
                "alone='average' needs a fusion of both with norms of their own for modalities that pass alone"
            )
        tokens, flags = self._encode(patches, present or {}, visible_ids or {})
        means = self._means(tokens, flags, alone)
        if JOINT not in self.outputs:
            return {str(m): _zero_where_absent(means[m], flags[m]) for m in means if m in patches}
        if self.pooling == "concatenate":
            return {JOINT: torch.cat([_zero_where_absent(means[m], flags[m]) for m in means], dim=1)}
        counts = {m: values.shape[1] - self._encoder(m).num_prefix for m, values in tokens.items()}
        return {JOINT: _weighted_mean(means, counts, flags)}

    def _encode(
        self,
        patches: Mapping[Modality, Tensor],
        present: Mapping[Modality, Tensor | None],
        visible_ids: Mapping[Modality, Tensor],
    ) -> tuple[dict[Modality, Tensor], dict[Modality, Tensor | None]]:
        """Raw tokens ``[B, c + K, D]`` of each modality the classifier knows, and which clips have it."""
        known = [m for m in MODALITIES if m in self.encoders]
        given = [m for m in known if m in patches]
        if not given:
            raise ValueError(f"nothing to classify: give the patches of {' or '.join(known)}")
        tokens: dict[Modality, Tensor] = {}
        flags: dict[Modality, Tensor | None] = {m: present.get(m) for m in known}
        for modality in given:
            ids = visible_ids.get(modality)
            seen = patches[modality] if ids is None else select(patches[modality], ids)
            tokens[modality] = self._encoder(modality)(seen, ids)
        example = tokens[given[0]]
        for modality in (m for m in known if m not in given):
            encoder = self._encoder(modality)
            # One token that nobody sees keeps the place.
            tokens[modality] = example.new_zeros(len(example), encoder.num_prefix + 1, encoder.width)
            flags[modality] = torch.zeros(len(example), dtype=torch.bool, device=example.device)
        return {m: tokens[m] for m in known}, flags

    def _means(
        self, tokens: dict[Modality, Tensor], flags: dict[Modality, Tensor | None], alone: AlonePooling
    ) -> dict[Modality, Tensor]:
        """Mean patch token ``[B, D]`` of each modality, after the fusion; for a clip with one modality it passed alone."""
        if self.fusion is None:
            return {m: self._mean(m, values, None) for m, values in tokens.items()}
        is_single = len(tokens) == 1
        fused = self.fusion(tokens, flags)
        norms = {m: self.fusion.norm_of(m, alone=is_single) for m in tokens}
        means = {m: self._mean(m, fused.output(m), norms[m]) for m in tokens}
        if is_single or not self.fusion.norms_alone():
            return means  # without norms of its own a modality passes alone when the other is hidden, as has happened
        others: dict[Modality, Modality] = {"audio": "video", "video": "audio"}
        results = dict(means)
        for modality, other in others.items():
            has_other = flags[other]
            if has_other is None:
                if not (self.training and self.has_gaps):
                    continue
                has_other = torch.ones(len(means[modality]), dtype=torch.bool, device=means[modality].device)
            # All clips pass alone, not only those that must: shapes stay, and no parameter waits for a gradient.
            passed = self.fusion({modality: tokens[modality]}).output(modality)
            own = self._mean(modality, passed, self.fusion.norm_of(modality, alone=True))
            if alone == "average":
                own = (own + means[modality]) / 2
            results[modality] = torch.where(has_other[:, None], means[modality], own)
        return results

    def _mean(self, modality: Modality, tokens: Tensor, norm: nn.Module | None) -> Tensor:
        """``[B, c + K, D]`` to ``[B, D]``: without CLS, and as raw block outputs unless ``mean`` pools normalised ones."""
        tokens = tokens[:, self._encoder(modality).num_prefix :]
        return (norm(tokens) if norm is not None and self.pooling == "mean" else tokens).mean(dim=1)

    def _encoder(self, name: str) -> Encoder:
        return cast(Encoder, self.encoders[name])

    def _untrained(self) -> Iterator[nn.Parameter]:
        """Parameters that nothing here depends on, or that are frozen: several ranks would wait for their gradients."""
        if self.frozen:
            for part in self.body().values():
                yield from part.parameters()
        for name in self.encoders:
            # The fusion takes raw block outputs, and without one fc_norm takes this norm's place [source Audio-MAE].
            yield from self._encoder(name).norm.parameters()
        if self.fusion is None:
            return
        has_alone_norms = bool(self.fusion.norms_alone())
        is_single = len(self.encoders) == 1
        others = {m for m in MODALITIES if m not in self.encoders}
        for name, parameter in self.fusion.named_parameters():
            parts = name.split(".")
            is_of_other = any(part.partition("_")[0] in others for part in parts)
            is_alone_norm = "alone_norms" in parts
            is_joint_norm = not is_alone_norm and any(part.startswith("norm") for part in parts)
            is_last_norm = parts[0] in ("norm", "alone_norms")
            if (
                is_of_other
                or (is_last_norm and self.pooling == "concatenate")
                or (is_alone_norm and not is_single and not self.has_gaps)
                or (is_joint_norm and is_single and has_alone_norms)
            ):
                yield parameter


def _name_of(output: str, kind: str) -> str:
    return kind if output == JOINT else f"{output}_{kind}"


def _zero_where_absent(values: Tensor, present: Tensor | None) -> Tensor:
    return values if present is None else values * present[:, None].to(values.dtype)


def _weighted_mean(
    means: Mapping[Modality, Tensor], counts: Mapping[Modality, int], flags: Mapping[Modality, Tensor | None]
) -> Tensor:
    """``[B, D]``: the mean over all tokens that a clip has, from the means of the modalities and their numbers of tokens."""
    totals: list[Tensor] = []
    weights: list[Tensor] = []
    for modality, values in means.items():
        flag = flags[modality]
        share = torch.ones_like(values[:, :1]) if flag is None else flag[:, None].to(values.dtype)
        weights.append(counts[modality] * share)
        totals.append(weights[-1] * values)
    return torch.stack(totals).sum(dim=0) / torch.stack(weights).sum(dim=0).clamp(min=1)
