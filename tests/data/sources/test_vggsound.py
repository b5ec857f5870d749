"""VGGSound's lists: the whole set, the test list, and the two spellings of its classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mavil.data.sources.read import SourceOptions, read_source
from mavil.structs import UserError
from tests.data.sources.fake_files import causes, touch, write

WHOLE = """---g-f_I2yQ,1,people marching,test
--0PQM4-hqg,30,waterfall burbling,train
--56QUhyDQM,185,"male speech, man speaking",train
"""
TEST = """0_8-g2rof7E_000049.mp4,"heart sounds, heartbeat"
GteozUDpJRc_000030.mp4,"engine accelerating, revving, vroom"
glLQrEijrKg_000300.mp4,playing hammond organ
glLQrEijrKg_000300.mp4,playing hammond organ
"""
CLASSES = """index,mid,display_name
0,vgg_0,playing hammond organ
1,vgg_1,engine accelerating_ revving_ vroom
2,vgg_2,heart sounds_ heartbeat
"""


def test_the_whole_set_keeps_its_split(tmp_path: Path) -> None:
    source = write(tmp_path / "vggsound.csv", WHOLE)
    touch(tmp_path, "---g-f_I2yQ_000001.mp4", "--0PQM4-hqg.mp4", "--56QUhyDQM_185_195.mkv")
    listing = read_source(source)
    assert [(clip.key, clip.labels, clip.metadata["split"]) for clip in listing.clips] == [
        ("---g-f_I2yQ_000001", ("people marching",), "test"),
        ("--0PQM4-hqg_000030", ("waterfall burbling",), "train"),
        ("--56QUhyDQM_000185", ("male speech, man speaking",), "train"),
    ]
    first, second, _ = listing.clips
    assert (first.start_seconds, first.may_be_cut) == (None, False)
    assert (second.start_seconds, second.end_seconds, second.may_be_cut) == (30.0, 40.0, True)
    train = read_source(source, SourceOptions(split="train"))
    assert [clip.key for clip in train.clips] == ["--0PQM4-hqg_000030", "--56QUhyDQM_000185"]
    assert not train.rejects


def test_a_test_list_names_files(tmp_path: Path) -> None:
    source = write(tmp_path / "test.csv", TEST)
    touch(tmp_path, "0_8-g2rof7E_000049.mp4", "glLQrEijrKg_000300.mp4")
    classes = write(tmp_path / "class_labels_indices_vgg.csv", CLASSES)
    listing = read_source(source, SourceOptions(classes=classes))
    assert [(clip.key, clip.labels, clip.source_id) for clip in listing.clips] == [
        ("0_8-g2rof7E_000049", ("heart sounds, heartbeat",), "0_8-g2rof7E"),
        ("glLQrEijrKg_000300", ("playing hammond organ",), "glLQrEijrKg"),
    ]
    assert listing.classes == (
        "playing hammond organ",
        "engine accelerating, revving, vroom",
        "heart sounds, heartbeat",
    )
    assert causes(listing) == {"missing": 1, "duplicate": 1}


@pytest.mark.parametrize(
    ("text", "split", "message"),
    [
        (WHOLE, "dev", "VGGSound has no split 'dev': choose one of train, test"),
        (TEST, "test", "does not say which split"),
        ('--PJHxphWEs, 30, 40, "/m/09x0r"\n', None, "line 1: .* is neither ID,start,label,split"),
        ("glLQrEijrKg_a.mp4,playing hammond organ\n", None, "'a' is not a time"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, split: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_source(write(tmp_path / "l.csv", text), SourceOptions(format="vggsound", split=split))


def test_a_mangled_id_is_told(tmp_path: Path) -> None:
    source = write(tmp_path / "vggsound.csv", WHOLE + "#NAME?,30,waterfall burbling,train\n")
    touch(tmp_path, "--0PQM4-hqg.mp4")
    assert causes(read_source(source)) == {"missing": 2, "mangled_id": 1}
