"""The attentive probe: one learned query looks at all tokens of the frozen encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
        pooled = []
        for query, norm, attention, tokens in zip(self.queries, self.norms, self.attentions, inputs, strict=True):
            normed = norm(tokens)
            found, _ = attention(query.expand(len(tokens), -1, -1), normed, normed, need_weights=False)
            pooled.append(found[:, 0])
        return self.head(self.norm(torch.cat(pooled, dim=1)))


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
        for point, probe in zip(self.points, self._fitted(self.points, train, seed), strict=True):
            yield point, logits_of(probe, features, self.budget.batch_rows, self.device)

    def fit(self, train: Labelled, point: Point, seed: int) -> Scorer:
        """One point, fitted."""
        (probe,) = self._fitted([point], train, seed)
        return lambda features: logits_of(probe, features, self.budget.batch_rows, self.device)

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
        fit_together(probes, optimizers, train, loss_of, self.budget, seed, self.device, self.progress)
        return probes


def num_heads(width: int) -> int:
    """Heads of about 64 channels that divide the width."""
    return next(heads for heads in range(max(1, width // HEAD_WIDTH), 0, -1) if width % heads == 0)


def _optimizer(probe: AttentiveProbe, point: Point) -> torch.optim.Optimizer:
    decayed = [p for name, p in probe.named_parameters() if p.ndim == 2 and name.endswith("weight")]
    others = [p for p in probe.parameters() if not any(p is one for one in decayed)]
    groups = [{"params": decayed, "weight_decay": point.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=point.learning_rate)
