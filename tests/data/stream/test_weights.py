"""Weighted draws: frequencies follow the weights, epochs are reproducible, and nothing is read that is not drawn."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from mavil.data.shards.clip_table import CLIPS, ClipTable
from mavil.data.stream import weights as weights_module
from mavil.data.stream.clips import ClipStream, RawClip
from mavil.data.stream.order import ShardPass
from mavil.data.stream.position import Team, hand_over
from mavil.data.stream.shard_set import ShardSet, open_shards
from mavil.data.stream.weights import Draws, check_enough, class_weights, clip_weights, draw_epoch, number_copies
from mavil.structs import UserError
from tests.data.shard_files import record_bytes, write_folder
from tests.data.stream.test_clips import WatchedStorage, block_of

SIZES = np.array([40, 0, 25, 35, 100])
WEIGHTS = np.tile([0.0, 1.0, 2.0, 7.0], 50)


def draw(draws: Draws, epoch: int, weights: np.ndarray = WEIGHTS, by_shard: bool = False) -> np.ndarray:
    sizes = SIZES if len(weights) == SIZES.sum() else np.array([len(weights)])
    return draw_epoch(draws, weights, ShardPass.shuffled(sizes, 3, epoch), by_shard, 3, epoch)


# --- what a clip weighs ---


def test_rare_classes_weigh_more_and_labels_add_up() -> None:
    labels = [[0], [0, 1], [], [0, 2], [0]]
    table = ClipTable.of([(0, 0, 0, 0, 0, 0.5 * n) for n in range(5)], labels)
    common, rare = 1000 / 4.01, 1000 / 1.01
    assert clip_weights(table, "classes") == pytest.approx([common, common + rare, 0, common + rare, common])
    assert clip_weights(table, "source").tolist() == [0, 0.5, 1, 1.5, 2]
    assert class_weights(np.array([0, 1])).tolist() == [100_000, 1000 / 1.01]


@pytest.mark.parametrize(
    ("weight", "labels", "kind", "why"),
    [
        (1.0, [], "classes", "no clip has a weight above 0"),
        (0.0, [0], "source", "no clip has a weight above 0"),
        (-1.0, [0], "source", "negative or no number"),
        (float("nan"), [0], "source", "negative or no number"),
        (float("inf"), [0], "source", "negative or no number"),
    ],
)
def test_weights_that_cannot_be_drawn_from_are_refused(weight: float, labels: list[int], kind: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        clip_weights(ClipTable.of([(0, 0, 0, 0, 0, weight)], [labels]), kind)  # type: ignore[arg-type]


# --- how often it is drawn ---


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """Of the clips that have a weight; about 150 +- 17 for the 150 of :data:`WEIGHTS`."""
    drawn = expected > 0
    assert not counts[~drawn].any()
    return float(((counts[drawn] - expected[drawn]) ** 2 / expected[drawn]).sum())


def test_with_replacement_the_frequencies_are_the_weights() -> None:
    counts = np.bincount(draw(Draws("classes", 100_000), 0), minlength=200)
    assert 80 < chi_square(counts, WEIGHTS / WEIGHTS.sum() * 100_000) < 220


def test_at_the_seams_between_clips_nothing_without_weight_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    seams = np.array([0.0, 0.25, 0.5, 0.75, 1 - 2**-53])
    monkeypatch.setattr(
        weights_module, "uniform_numbers", lambda count, *parts: seams if "draws" in parts else np.arange(5)
    )
    assert draw(Draws("source", 5), 0, np.array([0.0, 1, 0, 2, 1, 0])).tolist() == [1, 3, 3, 4, 4]


def test_without_replacement_the_first_draw_follows_the_weights() -> None:
    counts = np.zeros(200)
    for epoch in range(6000):
        counts[draw(Draws("classes", 1, replacement=False), epoch)] += 1
    assert 80 < chi_square(counts, WEIGHTS / WEIGHTS.sum() * 6000) < 220


def test_without_replacement_the_pairs_are_those_of_one_draw_after_the_other() -> None:
    weights = np.array([1.0, 2.0, 3.0, 0.0])
    pairs: Counter[tuple[int, ...]] = Counter()
    for epoch in range(6000):
        pairs[tuple(sorted(draw(Draws("source", 2, replacement=False), epoch, weights).tolist()))] += 1
    for (a, b), count in pairs.items():
        p, q = weights[[a, b]] / 6
        assert count / 6000 == pytest.approx(p * q / (1 - p) + q * p / (1 - q), abs=0.025)
    assert sorted(pairs) == [(0, 1), (0, 2), (1, 2)]


@pytest.mark.parametrize("by_shard", [True, False])
def test_without_replacement_nothing_comes_twice(by_shard: bool) -> None:
    drawn = draw(Draws("classes", 150, replacement=False), 0, by_shard=by_shard)
    assert sorted(drawn.tolist()) == np.flatnonzero(WEIGHTS).tolist()


def test_too_many_draws_without_replacement_are_refused() -> None:
    check_enough(Draws("classes", 150, replacement=False), WEIGHTS)
    with pytest.raises(UserError, match=r"151 draws an epoch need at least 151 clips .* there are 150 in 100%"):
        check_enough(Draws("classes", 151, replacement=False), WEIGHTS)
    with pytest.raises(UserError, match=r"there are \d+ in 40%"):
        draw(Draws("classes", 150, replacement=False, shard_share=0.4), 0)


# --- in which order ---


@pytest.mark.parametrize("replacement", [True, False])
def test_the_place_of_the_shards_changes_the_order_and_not_the_clips(replacement: bool) -> None:
    draws = Draws("classes", 100, replacement)
    anywhere, by_shard = draw(draws, 4), draw(draws, 4, by_shard=True)
    assert sorted(anywhere) == sorted(by_shard)
    place = {clip: n for n, clip in enumerate(ShardPass.shuffled(SIZES, 3, 4).clips_at(np.arange(200)).tolist())}
    assert (np.diff([place[clip] for clip in by_shard.tolist()]) >= 0).all()
    assert np.array_equal(draw(draws, 4), anywhere)
    assert sorted(draw(draws, 5)) != sorted(anywhere)


@pytest.mark.parametrize("replacement", [True, False])
def test_random_order_has_no_trend_and_copies_are_not_neighbours(replacement: bool) -> None:
    drawn = np.concatenate([draw(Draws("classes", 140, replacement), epoch) for epoch in range(200)])
    turn = np.tile(np.arange(140), 200)
    # A thousandfold sample: heavy clips come neither early nor late, high numbers neither.
    assert abs(np.corrcoef(turn, WEIGHTS[drawn])[0, 1]) < 0.025
    assert abs(np.corrcoef(turn, drawn)[0, 1]) < 0.025
    if replacement:
        probabilities = WEIGHTS / WEIGHTS.sum()
        assert (drawn[1:] == drawn[:-1]).mean() == pytest.approx((probabilities**2).sum(), rel=0.25)


def test_copies_are_numbered_in_the_order_in_which_they_come() -> None:
    assert number_copies(np.array([5, 2, 5, 5, 0, 2])).tolist() == [0, 0, 1, 2, 0, 1]
    assert number_copies(np.array([], dtype=np.int64)).tolist() == []


def test_a_share_of_the_shards_is_another_each_epoch() -> None:
    starts = np.cumsum(SIZES) - SIZES
    used = set()
    for epoch in range(40):
        drawn = draw(Draws("classes", 300, shard_share=0.4), epoch)
        used.add(frozenset((np.searchsorted(starts, drawn, side="right") - 1).tolist()))
    assert all(1 <= len(shards) <= 2 for shards in used)  # 0.4 of 5, of which one is empty
    assert frozenset.union(*used) == {0, 2, 3, 4}
    assert len(used) > 5


# --- through the stream ---


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Six shards of four clips; ``none`` has no label, the others are rarer the higher their number."""
    labels = {"a": ("common",), "b": ("common", "rare"), "c": ("common",), "none": ()}
    contents = [
        {f"s{shard}.{name}": {"mp4": f"{shard}{name}".encode() * 50, "json": record_bytes(name, labels=given)}
         for name, given in labels.items()}
        for shard in range(6)
    ]  # fmt: skip
    return open_shards(write_folder(tmp_path_factory.mktemp("shards"), contents))


def stream_of(shards: ShardSet, draws: Draws, reader: int = 0, num_readers: int = 1, **changes: object) -> ClipStream:
    settings = {"seed": 1, "training": True, "shuffle_buffer": 5, **changes}
    return ClipStream(shards, reader=reader, num_readers=num_readers, draws=draws, **settings)  # type: ignore[arg-type]


def first_epoch(shards: ShardSet, draws: Draws, num_readers: int = 1) -> list[RawClip]:
    readers = [stream_of(shards, draws, reader, num_readers).read() for reader in range(num_readers)]
    return [clip for r, read in enumerate(readers) for clip in islice(read, share_of(draws.draws, r, num_readers))]


def share_of(num_items: int, reader: int, num_readers: int) -> int:
    return num_items * (reader + 1) // num_readers - num_items * reader // num_readers


@pytest.mark.parametrize("num_readers", [1, 3])
@pytest.mark.parametrize("is_local", [True, False])
def test_an_epoch_has_so_many_draws_and_reads_nothing_else(shards: ShardSet, is_local: bool, num_readers: int) -> None:
    storage = WatchedStorage(shards.index.folder, is_local)
    clips = first_epoch(ShardSet(shards.index, storage), Draws("classes", 100), num_readers)
    assert len({(clip.key, clip.copy) for clip in clips}) == 100
    assert {clip.epoch for clip in clips} == {0}
    assert not [clip for clip in clips if clip.key.endswith("none") or clip.damage]
    assert {clip.media for clip in clips if clip.key == "s3.b"} == {b"3b" * 50}
    copies = Counter(clip.key for clip in clips)
    assert all({clip.copy for clip in clips if clip.key == key} == set(range(n)) for key, n in copies.items())
    if not is_local:
        assert set(storage.reads) == {block_of(shards, key) for key in copies}
        assert len(storage.reads) <= len(copies) + num_readers - 1  # once, but for the seams between readers


@pytest.mark.parametrize("is_local", [True, False])
def test_draws_continue_exactly_and_are_handed_over(shards: ShardSet, is_local: bool) -> None:
    shards = ShardSet(shards.index, WatchedStorage(shards.index.folder, is_local))
    draws = Draws("classes", 30)
    whole = list(islice(stream_of(shards, draws).read(), 70))
    assert whole[-1].epoch == 2
    for done in (1, 29, 30, 31, 60):
        last = whole[done - 1]
        assert list(islice(stream_of(shards, draws).read(last.epoch, last.consumed), 70 - done)) == whole[done:]
    history, epoch = hand_over((), Team(5, ((0, 11),)))
    rest = [
        clip
        for reader, count in enumerate((9, 10))
        for clip in islice(stream_of(shards, draws, reader, 2, history=history, shuffle_buffer=3).read(epoch), count)
    ]
    together = Counter((clip.key, clip.copy) for clip in whole[:11] + rest)
    assert together == Counter((clip.key, clip.copy) for clip in whole[:30])


def test_wrong_draws_are_refused_at_once(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="19 draws an epoch need at least 19 clips"):
        stream_of(shards, Draws("classes", 19, replacement=False))
    with pytest.raises(UserError, match="4 clips an epoch cannot feed 5 readers"):
        stream_of(shards, Draws("classes", 4), num_readers=5)
    with pytest.raises(ValueError, match="one whole pass"):
        stream_of(shards, Draws("classes", 4), training=False)


def test_weights_of_the_source_are_drawn_from(shards: ShardSet, tmp_path: Path) -> None:
    for name in [path.name for path in shards.index.folder.iterdir()]:
        (tmp_path / name).write_bytes((shards.index.folder / name).read_bytes())
    rows = np.load(tmp_path / CLIPS)
    rows["weight"] = 0
    rows["weight"][[3, 9]] = 1, 3
    np.save(tmp_path / CLIPS, rows)
    counts = Counter(clip.key for clip in first_epoch(open_shards(tmp_path), Draws("source", 400)))
    assert sorted(counts) == ["s0.none", "s2.b"]
    assert counts["s2.b"] / 400 == pytest.approx(0.75, abs=0.08)
