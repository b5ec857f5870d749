"""Class files: their order, and the spellings by which lists name a class."""

from __future__ import annotations

from pathlib import Path

import pytest

from mavil.data.sources.class_names import read_classes
from mavil.structs import UserError
from tests.data.sources.fake_files import AUDIOSET_CLASSES, write


def test_the_index_is_the_order_and_mids_are_names(tmp_path: Path) -> None:
    lines = AUDIOSET_CLASSES.splitlines()
    path = write(tmp_path / "classes.csv", "\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    classes = read_classes(path)
    assert classes is not None
    assert classes.names == ("Speech", "Male speech, man speaking", "Domestic animals, pets", "Gush")
    assert classes.name_of("/m/05zppz", path) == "Male speech, man speaking"
    assert classes.name_of("Gush", path) == "Gush"


def test_vggsound_names_come_out_as_vggsound_writes_them(tmp_path: Path) -> None:
    path = write(
        tmp_path / "vgg.csv",
        "index,mid,display_name\n0,vgg_0,ambulance siren\n1,vgg_1,engine accelerating_ revving_ vroom\n",
    )
    classes = read_classes(path)
    assert classes is not None
    assert classes.names == ("ambulance siren", "engine accelerating, revving, vroom")
    for spelling in ("vgg_1", "engine accelerating_ revving_ vroom", "engine accelerating, revving, vroom"):
        assert classes.name_of(spelling, path) == "engine accelerating, revving, vroom"
    # Only VGGSound's file has that spelling: elsewhere an underscore belongs to the name.
    esc = read_classes(write(tmp_path / "esc.csv", "index,mid,display_name\n0,/m/07rwj11,sea_ waves\n"))
    assert esc is not None
    assert esc.names == ("sea_ waves",)


def test_a_plain_list_is_an_order_too(tmp_path: Path) -> None:
    classes = read_classes(write(tmp_path / "names.txt", "zebra\n\nape, great\n"))
    assert classes is not None
    assert classes.names == ("zebra", "ape, great")
    assert read_classes(None) is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.csv", "index,mid,display_name\n0,/m/a,A\n0,/m/b,B\n", "two classes have the same index"),
        ("c.csv", "index,mid,display_name\nx,/m/a,A\n", "column 'index' must count"),
        ("c.csv", "index,display_name\n0,A\n", "no column 'mid'"),
        ("c.txt", "A\nB\nA\n", "class 'A' is there twice"),
        ("c.txt", "\n", "names no class"),
        ("ontology.json", "[]", "give class_labels_indices.csv"),
    ],
)
def test_mistakes_in_a_class_file(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(UserError, match=message) as caught:
        read_classes(path)
    assert str(path) in str(caught.value)


def test_a_class_file_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("dog\nhühner\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt: cannot be read"):
        read_classes(tmp_path / "latin.txt")


def test_an_unknown_class_is_named_with_its_line(tmp_path: Path) -> None:
    classes = read_classes(write(tmp_path / "classes.csv", AUDIOSET_CLASSES))
    assert classes is not None
    with pytest.raises(UserError, match=r"list\.csv, line 7: class '/m/other' is not among the 4 of .*classes\.csv"):
        classes.name_of("/m/other", Path("list.csv"), 7)
