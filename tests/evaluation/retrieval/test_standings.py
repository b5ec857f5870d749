import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from mavil.evaluation.retrieval import compute_standings, retrieval_metrics
from mavil.structs import UserError


def unit(rows: Tensor) -> Tensor:
    return rows.double() / rows.double().norm(dim=-1, keepdim=True)


def crowd(*shape: int, seed: int) -> Tensor:
    """Directions that float32 products cannot tell apart, a quarter of them exactly equal."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(shape[-1], generator=generator) + 3e-4 * torch.randn(shape, generator=generator)
    rows[::4] = rows[0]
    return rows


def similarity(query: Tensor, item: Tensor) -> float:
    """Of two clips ``[W, Z]``, one pair of windows after the other."""
    return max(float((a * b).sum()) for a in unit(query) for b in unit(item))


@pytest.mark.parametrize("block", [8, 4096])
@pytest.mark.parametrize("windows", [None, 3])
def test_against_a_double_loop_however_close_the_embeddings_are(block: int, windows: int | None) -> None:
    shape = (30, 16) if windows is None else (30, windows, 16)
    queries, gallery = crowd(*shape, seed=0), crowd(*shape, seed=0) + 1e-4 * crowd(*shape, seed=1)
    groups = [f"speaker {i % 3 if i < 26 else 3}" for i in range(30)]
    asks, exists = torch.arange(30) % 7 != 3, torch.arange(30) % 5 != 1
    found = compute_standings(queries, gallery, groups, asks, exists, block=block)
    for i in range(30):
        members = [j for j in range(30) if groups[j] == groups[i] and exists[j]]
        assert found.candidates[i] == len(members)
        if not (asks[i] and exists[i]):
            assert found.missed[i]
            assert found.ranks[i] == len(members) + 1
            assert found.hits(40)[i] == found.chance(40)[i] == 0
            continue
        scores = [similarity(*(side[k].view(-1, 16) for side, k in ((queries, i), (gallery, j)))) for j in members]
        own = scores[members.index(i)]
        assert found.better[i] == sum(score > own + 1e-9 for score in scores)
        assert found.equal[i] == sum(abs(score - own) <= 1e-9 for score in scores) - 1


def test_a_few_pairs_in_doubt_are_compared_one_by_one_and_many_at_once() -> None:
    """Both ways are taken: a gallery that is spread out with some copies, and one that is not."""
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(60, 32, generator=generator)
    gallery = queries + torch.randn(60, 32, generator=generator)
    gallery[7], gallery[9] = gallery[3], 2 * gallery[3]
    found = compute_standings(queries, gallery, block=16)
    assert found.equal.tolist() == [2 if i in (3, 7, 9) else 0 for i in range(60)]
    scores = unit(queries) @ unit(gallery).T
    better = (scores > scores.diagonal()[:, None] + 1e-9).sum(1)
    assert found.better.tolist() == better.tolist()
    same = compute_standings(queries[:1].repeat(60, 1), gallery[:1] * 2.0 ** (torch.arange(60) % 5)[:, None], block=16)
    assert (same.better == 0).all()
    assert (same.equal == 59).all()


def test_collapsed_embeddings_score_chance() -> None:
    result = retrieval_metrics(torch.full((37, 16), 0.1), torch.full((37, 16), -0.3))
    for k in (1, 5, 10):
        assert result.recall[k] == pytest.approx(100 * k / 37)
    assert result.median_rank == result.mean_rank == result.chance_rank == 19


def test_equals_share_their_ranks_as_over_all_orders() -> None:
    # Query 0: one item is better, the answer and two more are equal.
    queries = torch.tensor([[1.0, 0.0]] * 5)
    gallery = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [-1.0, 0.0]])
    standings = compute_standings(queries, gallery)
    orders = [1 + 1 + order.index("answer") for order in permutations(["answer", "b", "c"])]
    for k in (1, 2, 3, 4):
        assert standings.hits(k)[0].item() == pytest.approx(sum(rank <= k for rank in orders) / 6)
    assert standings.ranks.tolist() == [3, 1, 3, 3, 5]


def test_what_is_refused() -> None:
    audio, video = torch.ones(40, 8), torch.ones(40, 8)
    video[3, 0] = math.nan
    with pytest.raises(UserError, match="1 of 40 gallery embeddings are not finite"):
        compute_standings(audio, video)
    with pytest.raises(ValueError, match="must both be"):
        compute_standings(audio, audio[:5])
    with pytest.raises(ValueError, match="39 group names for 40 queries"):
        compute_standings(audio, audio, ["a"] * 39)
