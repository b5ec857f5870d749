"""Stored features: whole or not there, and never those of something else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mavil.features import cached
from mavil.features.cached import Writer
from mavil.structs import UserError

IDENTITY = {"weights": "abc", "clips": [["000000.tar", 3]], "tokens": False}
ROWS = torch.arange(12, dtype=torch.float32).reshape(4, 3)


def filling(*, dies: bool = False) -> Callable[[Writer], None]:
    """Four clips in two batches, not in the order of their keys."""

    def fill(writer: Writer) -> None:
        for first, keys in ((0, ["d", "a"]), (2, ["c", "b"])):
            part = ROWS[first : first + 2]
            tokens = part[:, None].repeat(1, 5, 1).half()
            present = {"audio": torch.tensor([first == 0, True])}
            writer.add(keys, present, {"audio": part, "audio_tokens": tokens})
            if dies:
                raise KeyboardInterrupt
        writer.left_out["no_media"] = 2

    return fill


def test_rows_come_back_by_key(tmp_path: Path) -> None:
    assert cached.find(tmp_path, IDENTITY) is None
    made = cached.make(tmp_path / "features", IDENTITY, 1000, filling())
    for found in (made, cached.find(tmp_path / "features", IDENTITY)):
        assert found is not None
        assert found.keys == ["a", "b", "c", "d"]
        assert np.array_equal(found.arrays["audio"][found.rows], ROWS[[1, 3, 2, 0]].numpy())
        assert found.arrays["audio_tokens"].dtype == np.float16
        assert found.arrays["audio_tokens"].shape == (4, 5, 3)
        assert found.present["audio"].tolist() == [True, True, False, True]
        assert found.left_out == {"no_media": 2}
        assert found.num_bytes == 4 * 3 * 4 + 4 * 15 * 2


def test_anything_in_the_identity_makes_another_entry(tmp_path: Path) -> None:
    cached.make(tmp_path, IDENTITY, 1000, filling())
    for change in ({"weights": "abd"}, {"clips": [["000000.tar", 4]]}, {"tokens": True}, {"layer": "last"}):
        assert cached.find(tmp_path, {**IDENTITY, **change}) is None
    # Somebody's entry under our name.
    other = {**IDENTITY, "weights": "other"}
    os.rename(tmp_path / cached.digest_of(IDENTITY), tmp_path / cached.digest_of(other))
    assert cached.find(tmp_path, other) is None


def test_half_written_or_damaged_entries_are_made_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cached.make(tmp_path, IDENTITY, 1000, filling(dies=True))
    assert list(tmp_path.iterdir()) == []
    cached.make(tmp_path, IDENTITY, 1000, filling())
    array = tmp_path / cached.digest_of(IDENTITY) / "audio.npy"
    os.truncate(array, array.stat().st_size - 4)
    assert cached.find(tmp_path, IDENTITY) is None
    assert cached.make(tmp_path, IDENTITY, 1000, filling()).keys == ["a", "b", "c", "d"]


def test_what_killed_jobs_left_goes_a_day_later(tmp_path: Path) -> None:
    old, young = tmp_path / ".x.1.partial", tmp_path / ".x.2.partial"
    for folder in (old, young):
        folder.mkdir()
        (folder / "audio.npy").write_bytes(b"half")
    for path in (old / "audio.npy", old):
        os.utime(path, (0, 0))
    cached.make(tmp_path, IDENTITY, 1000, filling())
    assert not old.exists()
    assert young.exists()


def test_the_faster_of_two_jobs_is_taken(tmp_path: Path) -> None:
    def overtaken(writer: Writer) -> None:
        cached.make(tmp_path, IDENTITY, 1000, filling())
        filling()(writer)

    assert cached.make(tmp_path, IDENTITY, 1000, overtaken).keys == ["a", "b", "c", "d"]
    assert [path.name for path in tmp_path.iterdir()] == [cached.digest_of(IDENTITY)]


def test_a_disk_without_room_is_told_before_anything_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    with pytest.raises(UserError, match="take about 2 GiB, but the disk has 1 GiB left"):
        cached.make(tmp_path, IDENTITY, 2**31, filling(dies=True))


def test_the_digest_of_weights_is_of_every_name_type_shape_and_value() -> None:
    state = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}
    others = [
        {"a": torch.tensor([1.0, 2.5]), "b": torch.tensor(3)},
        {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor(3)},
        {"a": torch.tensor([1.0, 2.0]).bfloat16(), "b": torch.tensor(3)},
        {"c": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)},
    ]
    digests = [cached.weights_digest(one) for one in (state, *others)]
    assert len(set(digests)) == 5
    assert cached.weights_digest(dict(reversed(state.items()))) == digests[0]
