"""Going on in the middle of an epoch: the same readers bit for bit, other readers with every clip once; views of a batch."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from mavil.data.stream.weights import Draws
from mavil.seeds import sample_seed
from mavil.structs import Batch, UserError
from tests.data.loading.test_loader import assert_same, loader_of, sounds, take


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sounds(tmp_path_factory.mktemp("sounds"), shards=5, clips=8, broken=("s1c2",))


def places_after(folder: Path, ranks: int, num_workers: int, batches: int, **changes: Any) -> tuple[list[Batch], list]:
    """The batches of all ranks, and the place of each after its last."""
    used: list[Batch] = []
    places = []
    for rank in range(ranks):
        own = take(loader_of(folder, rank=rank, world_size=ranks, num_workers=num_workers, **changes), batches)
        used += own
        places.append(own[-1].position)
    return used, places


def epoch_of(batch: Batch, epoch: int) -> list[str]:
    pairs = zip(batch.keys, batch.seeds.tolist(), strict=True)
    return [key for key, seed in pairs if seed == sample_seed(3, epoch, key)]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (1, 2), (3, 1), (4, 2)])
def test_other_readers_see_what_is_left_of_the_epoch_once(
    folder: Path, ranks: int, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    used, places = places_after(folder, ranks=2, num_workers=1, batches=3, batch_size=4)
    assert 20 <= len(used) * 4 <= 24  # some 15 clips of the epoch are left
    counts = Counter(key for batch in used for key in epoch_of(batch, 0))
    with caplog.at_level(logging.WARNING, "mavil"):
        for rank in range(ranks):
            loader = loader_of(
                folder, rank=rank, world_size=ranks, num_workers=workers, batch_size=1, places=places, shuffle_buffer=9
            )
            counts.update(key for batch in take(loader, 24) for key in epoch_of(batch, 0))
    assert counts == Counter({f"s{s}c{c}": 1 for s in range(5) for c in range(8) if (s, c) != (1, 2)})
    assert "what is left of epoch 0 is dealt anew" in caplog.text


def test_readers_can_change_again_and_the_next_epoch_is_whole(folder: Path) -> None:
    used, places = places_after(folder, ranks=2, num_workers=2, batches=2, batch_size=3)
    more, places = places_after(folder, ranks=1, num_workers=3, batches=4, batch_size=2, places=places)
    whole = take(loader_of(folder, num_workers=1, batch_size=1, places=places), 70)
    for epoch in (0, 1):
        counts = Counter(key for batch in (*used, *more, *whole) for key in epoch_of(batch, epoch))
        assert sorted(counts.values()) == [1] * 39
    # From a place with a history the same readers go on bit for bit.
    assert_same(take(loader_of(folder, num_workers=1, batch_size=1, places=[whole[4].position]), 20), whole[5:25])


def test_the_places_of_all_ranks_are_needed(folder: Path) -> None:
    _, places = places_after(folder, ranks=2, num_workers=1, batches=1)
    with pytest.raises(UserError, match=r"is of 1 ranks, but was written by 2"):
        loader_of(folder, places=places[:1])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_views_are_one_decoded_batch_with_other_seeds(folder: Path, num_workers: int) -> None:
    plain = take(loader_of(folder, num_workers=max(1, num_workers)), 4)
    loader = loader_of(folder, num_workers=num_workers, views=3)
    assert loader.samples_per_epoch == 120
    viewed = take(loader, 12)
    # Workers take turns batch by batch, so the views of two workers' batches alternate.
    groups = [viewed[w :: max(1, num_workers)] for w in range(max(1, num_workers))]
    originals = [plain[w :: max(1, num_workers)] for w in range(max(1, num_workers))]
    for views, batches in zip(groups, originals, strict=True):
        for number, view in enumerate(views):
            batch = batches[number // 3]
            assert view.keys == batch.keys
            assert torch.equal(view.waveforms, batch.waveforms)  # type: ignore[arg-type]
            assert torch.equal(view.seeds, batch.seeds) == (number % 3 == 0)
        assert len({tuple(view.seeds.tolist()) for view in views}) == len(views)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_continuing_amid_views_is_exact(folder: Path, num_workers: int) -> None:
    whole = take(loader_of(folder, num_workers=num_workers, views=3), 14)
    for done in range(1, 9):
        again = loader_of(folder, num_workers=num_workers, views=3, places=[whole[done - 1].position])
        assert_same(take(again, 4), whole[done : done + 4])


def test_a_batch_whose_views_had_begun_is_not_seen_again_by_others(folder: Path) -> None:
    used, places = places_after(folder, ranks=1, num_workers=1, batches=4, batch_size=4, views=3)
    rest = take(loader_of(folder, num_workers=2, batch_size=1, places=places), 20)
    assert not {key for batch in used for key in batch.keys} & {key for batch in rest for key in epoch_of(batch, 0)}


def test_weighted_draws_go_on_exactly_and_repeat_clips_with_other_seeds(folder: Path) -> None:
    draws = Draws(weights="classes", draws=60, replacement=True, shard_share=1.0)
    loader = loader_of(folder, draws=draws, num_workers=2)
    assert loader.samples_per_epoch == 60
    whole = take(loader, 12)
    pairs = [pair for batch in whole for pair in zip(batch.keys, batch.seeds.tolist(), strict=True)]
    assert len({key for key, _ in pairs}) < len(pairs) == len(set(pairs))
    again = loader_of(folder, draws=draws, num_workers=2, places=[whole[4].position])
    assert_same(take(again, 7), whole[5:])
    with pytest.raises(UserError, match=r"sampling was .*draws=60.* is None"):
        loader_of(folder, num_workers=2, places=[whole[4].position])
