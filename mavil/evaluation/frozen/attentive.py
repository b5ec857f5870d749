"""The attentive probe: one learned query looks at all tokens of the frozen encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mavil.evaluation.frozen.fitting import Budget, Point, Progress, class_loss, fit_together, logits_of
from mavil.evaluation.frozen.labelled import Features, Labelled
from mavil.evaluation.frozen.selection import Scorer

SMALL_GRID = tuple(Point(rate, decay) for decay in (1e-1, 1e-3) for rate in (1e-3, 1e-4))
"""From the strongest regularisation to the weakest [our choice]."""
NO_GRID = (Point(1e-3, 1e-1),)
BUDGET = Budget(batch_rows=128, epochs=20, least_steps=300)
"""[our choice]"""
HEAD_WIDTH = 64
"""Channels per attention head, where the width allows [source ViT]."""


class AttentiveProbe(nn.Module):
    """``[b, N_m, D_m]`` tokens of each modality to logits ``[b, C]``.

    Per modality a LayerNorm and multi-head cross-attention of one learned query, then all side by side through a LayerNorm and
    a Linear layer [source CoCa's attentional pooler with one query; V-JEPA's has an MLP behind the attention, left out: our
    choice, a probe is to read and not to compute].

    The weights are those of ``nn.LayerNorm`` and ``nn.MultiheadAttention``, and the result is theirs up to rounding; the order
    of the sums is another one, see :func:`logits_together`.

    Args:
        widths: D of each modality.
        num_classes: C.
    """

    def __init__(self, widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.queries = nn.ParameterList([nn.Parameter(0.02 * torch.randn(1, 1, width)) for width in widths])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for width in widths])
        self.attentions = nn.ModuleList(
            [nn.MultiheadAttention(width, num_heads(width), batch_first=True) for width in widths]
        )
        self.norm = nn.LayerNorm(sum(widths))
        self.head = nn.Linear(sum(widths), num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits; see the class."""
        return logits_together([self], inputs)[0]

    def directions(self, number: int) -> Tensor:
        """``[H, D]``: what each head's weights are the products of, with the normed tokens of modality ``number``.

        The query times the keys' weights, so that no token needs a key. The keys' biases are left out: they move all of a
        clip's products alike, and the softmax takes that away.
        """
        norm, attention = self._of(number)
        query, keys, _ = attention.in_proj_weight.chunk(3)
        own = functional.linear(self.queries[number][0], query, attention.in_proj_bias.chunk(3)[0])
        heads = own.view(attention.num_heads, 1, attention.head_dim)
        found = (heads @ keys.view(attention.num_heads, attention.head_dim, -1))[:, 0]
        return found * norm.weight / attention.head_dim**0.5

    def pooled(self, number: int, means: Tensor) -> Tensor:
        """``[b, D]`` from each head's mean ``[b, H, D]`` of the normed tokens of modality ``number``."""
        norm, attention = self._of(number)
        values, biases = attention.in_proj_weight.chunk(3)[2], attention.in_proj_bias.chunk(3)[2]
        # The weights of a mean sum to one, so what is the same for all tokens may come after it.
        scaled = (means * norm.weight + norm.bias).transpose(0, 1)
        found = scaled @ values.view(attention.num_heads, attention.head_dim, -1).transpose(1, 2)  # [H, b, D / H]
        return attention.out_proj(found.transpose(0, 1).flatten(1) + biases)

    def _of(self, number: int) -> tuple[nn.LayerNorm, nn.MultiheadAttention]:
        return cast(nn.LayerNorm, self.norms[number]), cast(nn.MultiheadAttention, self.attentions[number])


def logits_together(probes: Sequence[AttentiveProbe], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Logits ``[b, C]`` of each probe; none depends on the others but for rounding.

    One query needs neither a key nor a value of every token: the query is taken through the keys' weights first, and the mean
    through those of the values last. That leaves two products of a token with one vector per head, in place of two with a
    matrix, a hundredth of the work for ViT-B. The LayerNorm's mean and deviation of a token are the same for all probes, its
    weights go the same way as those of the keys and values, and all heads of all probes look at the tokens at once.

    Args:
        probes: of one shape.
        inputs: tokens ``[b, N_m, D_m]`` of each modality.
    """
    pooled: list[list[Tensor]] = [[] for _ in probes]
    for number, tokens in enumerate(inputs):
        normed = functional.layer_norm(tokens, tokens.shape[-1:])
        directions = torch.cat([probe.directions(number) for probe in probes])
        weights = (normed @ directions.T).transpose(1, 2).softmax(dim=2)  # [b, probes * H, N]
        for probe, found, means in zip(probes, pooled, (weights @ normed).chunk(len(probes), dim=1), strict=True):
            found.append(probe.pooled(number, means))
    return [probe.head(probe.norm(torch.cat(found, dim=1))) for probe, found in zip(probes, pooled, strict=True)]


@dataclass(frozen=True)
class Attentive:
    """Attentive probes trained with AdamW; weights of matrices decay, vectors do not."""

    is_multi_label: bool
    device: torch.device
    progress: Progress
    points: Sequence[Point]
    budget: Budget
    name: str = "attentive"

    def trials(self, train: Labelled, features: Features, seed: int) -> Iterator[tuple[Point, Tensor]]:
        """Every point of the grid with its scores ``[n, C]`` of ``features`` after learning from ``train``."""
        probes = self._fitted(self.points, train, seed)
        yield from zip(self.points, self._scores(probes, features), strict=True)

    def fit(self, train: Labelled, point: Point, seed: int) -> Scorer:
        """One point, fitted."""
        probes = self._fitted([point], train, seed)
        return lambda features: self._scores(probes, features)[0]

    def _scores(self, probes: Sequence[AttentiveProbe], features: Features) -> list[Tensor]:
        return logits_of(logits_together, probes, features, self.budget.batch_rows, self.device)

    def _fitted(self, points: Sequence[Point], train: Labelled, seed: int) -> list[AttentiveProbe]:
        probes = []
        for _ in points:
            # The same weights at every point; the random numbers of whoever calls stay as they are.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                probe = AttentiveProbe(train.features.widths, train.targets.shape[1])
            probes.append(probe.to(self.device))
        optimizers = [_optimizer(probe, point) for probe, point in zip(probes, points, strict=True)]
        loss_of = class_loss(self.is_multi_label)
        fit_together(logits_together, probes, optimizers, train, loss_of, self.budget, seed, self.device, self.progress)
        return probes


def num_heads(width: int) -> int:
    """Heads of about 64 channels that divide the width."""
    return next(heads for heads in range(max(1, width // HEAD_WIDTH), 0, -1) if width % heads == 0)


def _optimizer(probe: AttentiveProbe, point: Point) -> torch.optim.Optimizer:
    decayed = [p for name, p in probe.named_parameters() if p.ndim == 2 and name.endswith("weight")]
    others = [p for p in probe.parameters() if not any(p is one for one in decayed)]
    groups = [{"params": decayed, "weight_decay": point.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=point.learning_rate)
