"""Which clips are chosen: by class, and by a list that names them in one of many ways."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from mavil.commands.retrieve_galleries import Wanted, class_members, match_names, read_list
from mavil.structs import UserError

KEYS = ["abcdefghijk_000030", "abcdefghijk_000040", "ABCDEFGHIJ__000000", "my__clip", "zbcdefghijk"]


def test_the_choice_of_a_class_does_not_depend_on_order_or_on_other_clips() -> None:
    keys = [f"clip{i}" for i in range(40)]
    labels = {key: (("rare",) if i % 10 == 0 else ()) + ("often",) for i, key in enumerate(keys)}
    members = class_members(keys, labels, 5)
    assert sorted(members["rare"]) == ["clip0", "clip10", "clip20", "clip30"]
    assert len(members["often"]) == 5
    assert not set(members["rare"]) & set(members["often"])
    assert members["often"] != sorted(keys, key=keys.index)[1:6]
    shuffled = random.Random(0).sample(keys, 40)
    assert class_members(shuffled, labels, 5) == members
    left = [key for key in keys if key not in members["often"][2:]]
    assert class_members(left, labels, 5)["often"][:2] == members["often"][:2]


@pytest.mark.parametrize(
    ("name", "start", "found"),
    [
        ("abcdefghijk_000030", None, "abcdefghijk_000030"),
        ("videos/abcdefghijk_000030.mp4", None, "abcdefghijk_000030"),
        ("abcdefghijk_30", None, "abcdefghijk_000030"),
        ("abcdefghijk_30.000", None, "abcdefghijk_000030"),
        ("abcdefghijk", 40.0, "abcdefghijk_000040"),
        ("YABCDEFGHIJ_", 0.0, "ABCDEFGHIJ__000000"),
        ("ABCDEFGHIJ_", None, "ABCDEFGHIJ__000000"),
        ("zbcdefghijk", 12.0, "zbcdefghijk"),
        ("zbcdefghijk_12", None, "zbcdefghijk"),
        ("my/clip.mp4", None, "my__clip"),
    ],
)
def test_a_clip_is_known_by_key_file_or_recording(name: str, start: float | None, found: str) -> None:
    assert match_names([Wanted(name, start)], KEYS) == ({found}, [], [])


def test_what_is_not_there_or_not_certain_is_named() -> None:
    wanted = [Wanted("abcdefghijk", 50.0), Wanted("abcdefghijk"), Wanted("nobody")]
    assert match_names(wanted, KEYS) == (set(), ["abcdefghijk,50", "nobody"], ["abcdefghijk"])


def test_lists_come_in_many_forms(tmp_path: Path) -> None:
    def written(name: str, text: str) -> list[Wanted]:
        (tmp_path / name).write_text(text)
        return read_list(tmp_path / name)

    assert written("a.txt", "# comment\nx\n\ny\nx\n") == [Wanted("x"), Wanted("y")]
    assert written("b.csv", 'x,30,"dog, barking",test\n') == [Wanted("x", 30.0)]
    assert written("c.csv", "number,video_id,label\n0,x,dog\n") == [Wanted("x")]
    assert written("d.json", json.dumps({"data": [{"video_id": "x", "labels": "a"}, {"wav": "y.wav"}]})) == [
        Wanted("x"),
        Wanted("y.wav"),
    ]
    with pytest.raises(UserError, match="lists no clip"):
        written("e.txt", "\n")
    with pytest.raises(UserError, match="has an entry 'data'"):
        written("f.json", "{}")
