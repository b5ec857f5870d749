import numpy as np
import pytest
import torch
from torch import Tensor

from mavil.evaluation.retrieval import both_directions, compute_standings, retrieval_metrics
from mavil.evaluation.retrieval.result import Search


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    audio = torch.randn(40, 8, generator=generator)
    return audio, 0.7 * audio + torch.randn(40, 8, generator=generator)


@pytest.mark.parametrize("grouped", [False, True])
def test_numbers_are_those_of_the_ranks(pairs: tuple[Tensor, Tensor], grouped: bool) -> None:
    groups = [f"speaker {i % 3 if i < 36 else 3}" for i in range(40)] if grouped else None
    names = groups or [""] * 40
    sizes = [names.count(name) for name in names]
    ranks = compute_standings(*pairs, groups).ranks.tolist()
    result = retrieval_metrics(*pairs, groups)
    for k in (1, 5, 10):
        assert result.recall[k] == pytest.approx(100 * sum(rank <= k for rank in ranks) / 40)
        assert result.chance[k] == pytest.approx(100 * sum(min(k, size) / size for size in sizes) / 40)
    ordered = sorted(ranks)
    assert result.median_rank == (ordered[19] + ordered[20]) / 2
    assert result.mean_rank == pytest.approx(sum(ranks) / 40)
    assert result.gallery_size == pytest.approx(sum(sizes) / 40)
    assert result.chance_rank == pytest.approx((result.gallery_size + 1) / 2)
    assert result.num_queries == 40


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


def test_silent_clips_count_as_not_found_and_are_no_candidates(pairs: tuple[Tensor, Tensor]) -> None:
    """AVLnet's protocol: 4 of 40 sounds are missing, all 40 pictures are there."""
    audio, video = pairs
    has_sound = torch.arange(40) % 10 != 0
    both = both_directions(audio, video, search=Search(query_present=has_sound))
    there, back = both["audio_to_video"], both["video_to_audio"]
    assert (there["gallery_size"], back["gallery_size"]) == (40, 36)
    assert there["num_missed"] == back["num_missed"] == 4
    assert there["num_queries"] == back["num_queries"] == 40
    assert there["chance_at_1_percent"] == pytest.approx(100 * 36 / 40 / 40)
    found = compute_standings(audio, video).ranks[has_sound]
    assert there["recall_at_5_percent"] == pytest.approx(100 * (found <= 5).sum().item() / 40)
    assert back["mean_rank"] == pytest.approx(
        (compute_standings(video[has_sound], audio[has_sound]).ranks.sum().item() + 4 * 37) / 40
    )


def test_intervals_are_those_of_resampled_queries(pairs: tuple[Tensor, Tensor]) -> None:
    labels = [(str(i % 5),) for i in range(40)]
    search = Search(labels=labels, bootstrap=200)
    named = retrieval_metrics(*pairs, search=search).to_dict()
    for name in ("recall_at_1_percent", "recall_at_10_percent", "median_rank", "mean_rank", "class_map_percent"):
        assert named[f"{name}_low"] < named[name] < named[f"{name}_high"]
    hits = 100 * compute_standings(*pairs).hits(5).numpy()
    generator = np.random.default_rng(0)
    means = [hits[generator.integers(0, 40, 40)].mean() for _ in range(200)]
    assert named["recall_at_5_percent_low"] == pytest.approx(np.percentile(means, 2.5))
    assert named["recall_at_5_percent_high"] == pytest.approx(np.percentile(means, 97.5))
    assert named["class_map_percent"] > named["chance_class_map_percent"] > 20
    assert "class_map_percent" not in retrieval_metrics(*pairs, search=Search(labels=[()] * 40)).to_dict()
