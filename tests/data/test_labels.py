"""Vocabularies, multi-hot targets and where class names come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from mavil.data.labels import Vocabulary, count_field_values, nearest_spelling, record_labels, refuse_look_alikes
from mavil.structs import UserError
from tests.data.shard_files import record_bytes


def test_classes_keep_their_order_and_are_unique() -> None:
    assert Vocabulary(("dog", "cat", "dog")).classes == ("dog", "cat")


def test_multi_hot_marks_each_label() -> None:
    vocabulary = Vocabulary(("a", "b", "c"))
    assert vocabulary.multi_hot(["c", "a"]).tolist() == [1.0, 0.0, 1.0]
    assert vocabulary.multi_hot([]).tolist() == [0.0, 0.0, 0.0]


def test_an_unknown_label_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'dgo' is none of the 3 classes \(nearest: dog"):
        Vocabulary(("dog", "cat", "rain")).multi_hot(["dgo"])


def test_no_labels_at_all() -> None:
    with pytest.raises(UserError, match="the shards have no labels"):
        Vocabulary(())


def test_file_has_one_class_per_line(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("rain\n\n sea waves \n")
    assert Vocabulary.from_file(path).classes == ("rain", "sea waves")
    path.write_text("\n")
    with pytest.raises(UserError, match="names no class"):
        Vocabulary.from_file(path)
    with pytest.raises(UserError, match="cannot be read"):
        Vocabulary.from_file(tmp_path / "absent.txt")


def test_classes_from_a_metadata_field() -> None:
    records = [
        record_bytes("a", speaker="theo"),
        b"no json",
        record_bytes("b", speaker="nicolas"),
        record_bytes("c", speaker="theo"),
        record_bytes("d", place="here"),
    ]
    assert list(count_field_values(records, "speaker").items()) == [("nicolas", 1), ("theo", 2)]
    with pytest.raises(UserError, match=r"no clip has a metadata field 'spaeker' \(fields: place, speaker\)"):
        count_field_values(records, "spaeker")


def test_labels_of_a_record() -> None:
    record = {"labels": ["dog"], "metadata": {"speaker": "theo", "blank": ""}}
    assert record_labels(record, None) == ("dog",)
    assert record_labels(record, "speaker") == ("theo",)
    assert record_labels(record, "blank") == ()
    assert record_labels(record, "absent") == ()


def test_classes_that_differ_in_capitals_or_spaces_are_told() -> None:
    refuse_look_alikes(["dog", "dogs", "hot dog", "hot-dog"], "here")
    for other in ("Dog", "dog ", "DOG"):
        with pytest.raises(UserError, match=f"here: the classes 'dog' and {other!r} differ only"):
            refuse_look_alikes(["dog", "cat", other], "here")
    assert nearest_spelling("Hot  Dog", ["dog", "hot dog"]) == "hot dog"
    assert nearest_spelling("dog", ["dog", "hot dog"]) is None
