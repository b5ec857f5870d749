import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from mavil.evaluation import retrieval
from mavil.evaluation.retrieval import both_directions, compute_standings, nearest, retrieval_metrics
from mavil.structs import UserError


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    audio = torch.randn(40, 8, generator=generator)
    return audio, 0.7 * audio + torch.randn(40, 8, generator=generator)


def slow_rank(queries: Tensor, gallery: Tensor, i: int, allowed: list[int]) -> int:
    def cosine(j: int) -> float:
        a, b = queries[i].double(), gallery[j].double()
        return (a @ b / (a.norm() * b.norm())).item()

    return 1 + sum(cosine(j) > cosine(i) for j in allowed if j != i)


@pytest.mark.parametrize("grouped", [False, True])
def test_against_a_double_loop(pairs: tuple[Tensor, Tensor], grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_ROWS_AT_ONCE", 7)
    audio, video = pairs
    groups = [f"speaker {i % 3 if i < 36 else 3}" for i in range(40)] if grouped else None
    names = groups or [""] * 40
    members = [[j for j in range(40) if names[j] == names[i]] for i in range(40)]
    ranks = [slow_rank(audio, video, i, members[i]) for i in range(40)]
    result = retrieval_metrics(audio, video, groups)
    for k in (1, 5, 10):
        assert result.recall[k] == pytest.approx(100 * sum(rank <= k for rank in ranks) / 40)
        assert result.chance[k] == pytest.approx(100 * sum(min(k, len(m)) / len(m) for m in members) / 40)
    ordered = sorted(ranks)
    assert result.median_rank == (ordered[19] + ordered[20]) / 2
    assert result.mean_rank == pytest.approx(sum(ranks) / 40)
    assert result.gallery_size == pytest.approx(sum(map(len, members)) / 40)
    assert result.chance_rank == pytest.approx((result.gallery_size + 1) / 2)
    assert result.num_queries == 40


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


def test_order_of_the_clips_and_length_of_the_vectors_do_not_matter(pairs: tuple[Tensor, Tensor]) -> None:
    audio, video = pairs
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    groups = [str(i % 4) for i in range(40)]
    moved = retrieval_metrics(3 * audio[order], 0.2 * video[order], [groups[i] for i in order])
    assert moved == retrieval_metrics(audio, video, groups)


def test_directions_are_told_apart(pairs: tuple[Tensor, Tensor]) -> None:
    audio, video = pairs
    both = both_directions(audio, video)
    assert both["audio_to_video"] == retrieval_metrics(audio, video).to_dict()
    assert both["video_to_audio"] == retrieval_metrics(video, audio).to_dict()
    assert both["audio_to_video"] != both["video_to_audio"]
    assert both["audio_to_video"]["chance_at_10_percent"] == 25


def test_nearest_lists_the_best_first() -> None:
    gallery = torch.tensor([[0.0, 1.0], [1.0, 0.1], [5.0, 0.0], [-1.0, 0.0]])
    assert nearest(torch.tensor([[2.0, 0.0]]), gallery, 3).tolist() == [[2, 1, 0]]
    assert nearest(torch.zeros(1, 2), gallery, 9).tolist() == [[0, 1, 2, 3]]


def test_what_is_refused(pairs: tuple[Tensor, Tensor]) -> None:
    audio, video = pairs
    bad = video.clone()
    bad[3, 0] = math.nan
    with pytest.raises(UserError, match="1 of 40 gallery embeddings are not finite"):
        retrieval_metrics(audio, bad)
    with pytest.raises(ValueError, match="must both be"):
        retrieval_metrics(audio, video[:5])
    with pytest.raises(ValueError, match="39 group names for 40 queries"):
        retrieval_metrics(audio, video, ["a"] * 39)
