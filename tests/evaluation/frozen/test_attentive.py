"""The attentive probe: it sees single tokens, in whatever order, of each modality by itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mavil.evaluation.frozen.attentive import Attentive, AttentiveProbe, logits_together, num_heads
from mavil.evaluation.frozen.fitting import Budget, Point
from mavil.evaluation.frozen.labelled import Features, Labelled
from mavil.evaluation.metrics import classification_metrics
from tests.evaluation.frozen.clusters import CPU, silent


def needles(number: int, seed: int) -> Labelled:
    """One token of twelve says the class, and another one the opposite: their mean says nothing."""
    generator = np.random.default_rng(seed)
    tokens = 0.3 * generator.standard_normal((number, 12, 8))
    labels = np.arange(number) % 2
    direction, mark = np.eye(8)[0], np.eye(8)[1]
    for row, label in enumerate(labels):
        told, denied = generator.permutation(12)[:2]
        sign = 3.0 * (2 * label - 1)
        tokens[row, told] += sign * direction + 3.0 * mark
        tokens[row, denied] -= sign * direction + 3.0 * mark
    targets = torch.from_numpy(np.eye(2)[labels]) > 0.5
    return Labelled(Features([[tokens.astype(np.float16)]]), targets)


def test_it_finds_the_token_that_tells() -> None:
    kind = Attentive(False, CPU, silent, [Point(1e-2, 1e-2)], Budget(32, 1, 150))
    train, test = needles(64, 0), needles(60, 1)
    scores = kind.fit(train, kind.points[0], seed=0)(test.features)
    assert classification_metrics(scores, test.targets, False)["accuracy"] > 0.9
    means = test.features.take(np.arange(60), CPU)[0].mean(dim=1)[:, 0]
    assert means.abs().max() < 0.5  # beside 3.0 in the token that tells
    ((point, tried),) = kind.trials(train, test.features, seed=0)
    assert point == kind.points[0]
    assert torch.equal(tried, scores)


def test_order_of_tokens_means_nothing_and_modalities_have_their_own_query() -> None:
    probe = AttentiveProbe([8, 6], 3).eval()
    sound, picture = torch.randn(4, 5, 8), torch.randn(4, 7, 6)
    scores = probe([sound, picture])
    assert scores.shape == (4, 3)
    mixed = probe([sound[:, torch.randperm(5)], picture])
    assert torch.allclose(scores, mixed, atol=1e-6)
    assert not torch.allclose(scores, probe([sound, picture.flip(0)]), atol=1e-3)
    scores.sum().backward()
    assert all(query.grad is not None and bool(query.grad.any()) for query in probe.queries)


def plainly(probe: AttentiveProbe, inputs: Sequence[Tensor]) -> Tensor:
    """What the probe computes, as torch's modules write it: a key and a value of every token."""
    pooled = []
    for query, norm, attention, tokens in zip(probe.queries, probe.norms, probe.attentions, inputs, strict=True):
        normed = norm(tokens)
        pooled.append(attention(query.expand(len(tokens), -1, -1), normed, normed)[0][:, 0])
    logits: Tensor = probe.head(probe.norm(torch.cat(pooled, dim=1)))
    return logits


def random_probe(widths: Sequence[int], seed: int) -> AttentiveProbe:
    """With no weight or bias that is zero or one."""
    torch.manual_seed(seed)
    probe = AttentiveProbe(widths, 3)
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return probe


def test_probes_together_are_torchs_attention_each_by_itself() -> None:
    """Two heads and one, in float64: logits, and the gradient of everything that is learned."""
    probes = [random_probe([128, 6], seed).double() for seed in (0, 1)]
    inputs = [3 * torch.randn(4, 5, 128, dtype=torch.float64) + 1, torch.randn(4, 7, 6, dtype=torch.float64)]
    weights = [torch.randn(4, 3, dtype=torch.float64) for _ in probes]
    expected = [plainly(probe, inputs) for probe in probes]
    for one, other in pairwise(expected):
        assert (one - other).abs().max() > 0.1
    gradients = []
    for found in (expected, logits_together(probes, inputs)):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        for probe in probes:
            probe.zero_grad()
        torch.stack([(logits * w).sum() for logits, w in zip(found, weights, strict=True)]).sum().backward()
        gradients.append([parameter.grad.clone() for p in probes for parameter in p.parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_a_point_of_the_grid_does_not_depend_on_the_others() -> None:
    points = [Point(1e-2, 1e-2), Point(1e-3, 1e-1), Point(3e-3, 1.0)]
    kind = Attentive(False, CPU, silent, points, Budget(24, 1, 20))
    train, test = needles(64, 0), needles(60, 1)
    tried = dict(kind.trials(train, test.features, seed=3))
    for point in points:
        alone = kind.fit(train, point, seed=3)(test.features)
        torch.testing.assert_close(tried[point], alone, rtol=1e-3, atol=1e-4)
    assert all((one - other).abs().max() > 0.05 for one, other in pairwise(tried.values()))


def test_heads_divide_the_width() -> None:
    assert [num_heads(width) for width in (32, 64, 192, 768, 200)] == [1, 1, 3, 12, 2]
