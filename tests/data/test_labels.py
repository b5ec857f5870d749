"""Vocabularies, multi-hot targets and where class names come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from mavil.data.labels import Vocabulary, count_field_values, record_labels
from mavil.structs import UserError
from tests.data.shard_files import sound_clip, write_tar


def test_classes_are_sorted_and_unique() -> None:
    assert Vocabulary(("dog", "cat", "dog")).classes == ("cat", "dog")
    assert Vocabulary.from_index({"siren": 3, "rain": 1}).classes == ("rain", "siren")


def test_multi_hot_marks_each_label() -> None:
    vocabulary = Vocabulary(("a", "b", "c"))
    assert vocabulary.multi_hot(["c", "a"]).tolist() == [1.0, 0.0, 1.0]
    assert vocabulary.multi_hot([]).tolist() == [0.0, 0.0, 0.0]


def test_an_unknown_label_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'dgo' is none of the 3 classes \(nearest: dog"):
        Vocabulary(("dog", "cat", "rain")).multi_hot(["dgo"])


def test_no_labels_at_all() -> None:
    with pytest.raises(UserError, match="the shards have no labels"):
        Vocabulary.from_index({})


def test_file_has_one_class_per_line(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("rain\n\n sea waves \n")
    assert Vocabulary.from_file(path).classes == ("rain", "sea waves")
    path.write_text("\n")
    with pytest.raises(UserError, match="names no class"):
        Vocabulary.from_file(path)
    with pytest.raises(UserError, match="cannot be read"):
        Vocabulary.from_file(tmp_path / "absent.txt")


def test_classes_from_a_metadata_field(tmp_path: Path) -> None:
    first = write_tar(
        tmp_path / "0.tar",
        {"a": sound_clip("a", speaker="nicolas"), "b": sound_clip("b", speaker="theo"), "c": {"json": b"no json"}},
    )
    second = write_tar(tmp_path / "1.tar", {"d": sound_clip("d", speaker="theo"), "e": sound_clip("e", place="here")})
    assert count_field_values([first, second], "speaker") == {"nicolas": 1, "theo": 2}
    with pytest.raises(UserError, match=r"no clip has a metadata field 'spaeker' \(fields: place, speaker\)"):
        count_field_values([first, second], "spaeker")


def test_a_broken_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(UserError, match=r"0\.tar: cannot be read as a shard"):
        count_field_values([tmp_path / "0.tar"], "speaker")


def test_labels_of_a_record() -> None:
    record = {"labels": ["dog"], "metadata": {"speaker": "theo", "blank": ""}}
    assert record_labels(record, None) == ("dog",)
    assert record_labels(record, "speaker") == ("theo",)
    assert record_labels(record, "blank") == ()
    assert record_labels(record, "absent") == ()
