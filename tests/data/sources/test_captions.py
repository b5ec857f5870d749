"""MSR-VTT and YouCook2: captions travel as metadata."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mavil.data.sources.read import SourceOptions, read_source
from mavil.structs import UserError
from tests.data.sources.fake_files import causes, touch, write

MSRVTT_CSV = """key,vid_key,video_id,sentence
ret0,msr9770,video9770,a person is connecting something to system
ret1,msr9771,video9771,"a girl, little, does gymnastics"
ret2,msr9770,video9770,somebody plugs in a cable
ret3,msr9772,video9772,a woman
"""
MSRVTT_JSON = {
    "info": {"year": "2016"},
    "videos": [
        {
            "category": 9,
            "url": "https://www.youtube.com/watch?v=9lZi22qLlEo",
            "video_id": "video0",
            "start time": 137.72,
            "split": "train",
        },
        {
            "category": 3,
            "url": "https://www.youtube.com/watch?v=w4JM08PDEng",
            "video_id": "video1",
            "split": "validate",
        },
    ],
    "sentences": [
        {"caption": "a car is  shown\n", "video_id": "video0", "sen_id": 0},
        {"caption": "a red car", "video_id": "video0", "sen_id": 1},
        {"caption": "of no video here", "video_id": "video7", "sen_id": 2},
    ],
}
YOUCOOK2 = {
    "database": {
        "-9GX8f5EwwE": {
            "duration": 241.64,
            "subset": "training",
            "recipe_type": "212",
            "annotations": [
                {"id": 0, "segment": [25, 37], "sentence": "cut the onion, dice"},
                {"id": 1, "segment": [37, 50], "sentence": "peel the carrots"},
                {"id": 2, "segment": [37, 50], "sentence": "chop the carrots"},
                {"id": 3, "segment": [37, 50], "sentence": "peel the carrots"},
                {"id": 4, "segment": [60, 60], "sentence": "nothing"},
            ],
        },
        "xHr8X2Wpmno": {
            "subset": "validation",
            "recipe_type": "226",
            "annotations": [{"id": 0, "segment": [47, 60], "sentence": "pick the ends"}],
        },
    }
}


def test_msrvtt_test_list(tmp_path: Path) -> None:
    source = write(tmp_path / "MSRVTT_JSFUSION_test.csv", MSRVTT_CSV)
    touch(tmp_path, "videos/video9770.mp4", "videos/video9771.mp4")
    listing = read_source(source)
    assert [(clip.key, clip.metadata, clip.labels) for clip in listing.clips] == [
        ("video9770", {"caption": "a person is connecting something to system\nsomebody plugs in a cable"}, ()),
        ("video9771", {"caption": "a girl, little, does gymnastics"}, ()),
    ]
    assert listing.clips[0].source_id == "video9770"
    assert [(r.key, r.cause) for r in listing.rejects] == [("video9772", "missing")]
    with pytest.raises(UserError, match="no split 'train': it names none"):
        read_source(source, SourceOptions(split="train"))


def test_msrvtt_json(tmp_path: Path) -> None:
    source = write(tmp_path / "MSRVTT_data.json", json.dumps(MSRVTT_JSON))
    touch(tmp_path, "video0.mp4", "video1.mp4")
    first, second = read_source(source).clips
    assert (first.key, first.source_id) == ("video0", "9lZi22qLlEo")
    assert first.metadata == {"caption": "a car is shown\na red car", "split": "train", "category": "9"}
    assert second.metadata["caption"] == ""
    assert [c.key for c in read_source(source, SourceOptions(split="validate")).clips] == ["video1"]
    with pytest.raises(UserError, match="no split 'test': train, validate"):
        read_source(source, SourceOptions(split="test"))


def test_a_list_of_training_videos_has_no_captions(tmp_path: Path) -> None:
    source = write(tmp_path / "MSRVTT_train.9k.csv", "video_id\nvideo0\n")
    touch(tmp_path, "video0.mp4")
    (clip,) = read_source(source, SourceOptions("msrvtt")).clips
    assert clip.metadata == {"caption": ""}


def test_youcook2_segments(tmp_path: Path) -> None:
    source = write(tmp_path / "youcookii_annotations_trainval.json", json.dumps(YOUCOOK2))
    touch(tmp_path, "raw/-9GX8f5EwwE.mkv", "raw/xHr8X2Wpmno_47_60.mp4")
    listing = read_source(source)
    onion, carrots, ends = listing.clips
    assert (onion.key, onion.source_id) == ("-9GX8f5EwwE_000025_000037", "-9GX8f5EwwE")
    assert (onion.start_seconds, onion.end_seconds, onion.may_be_cut) == (25.0, 37.0, False)
    assert onion.metadata == {"caption": "cut the onion, dice", "recipe_type": "212", "split": "training"}
    assert carrots.metadata["caption"] == "peel the carrots\nchop the carrots"
    assert (ends.key, ends.start_seconds) == ("xHr8X2Wpmno_000047_000060", None)
    assert causes(listing) == {"duplicate": 1, "empty_span": 1}
    assert [c.key for c in read_source(source, SourceOptions(split="validation")).clips] == [ends.key]


def test_youcook2_segments_of_mil_nce(tmp_path: Path) -> None:
    source = write(
        tmp_path / "validation_youcook.csv",
        "end,start,task,text,video_id\n60,47,226,pick the ends,xHr8X2Wpmno\n252,120,416, soak gram,oJZUxU9szWA\n",
    )
    touch(tmp_path, "xHr8X2Wpmno.mp4")
    listing = read_source(source)
    (clip,) = listing.clips
    assert (clip.key, clip.start_seconds, clip.end_seconds) == ("xHr8X2Wpmno_000047_000060", 47.0, 60.0)
    assert clip.metadata == {"caption": "pick the ends", "recipe_type": "226"}
    assert [(r.key, r.cause) for r in listing.rejects] == [("oJZUxU9szWA_000120_000252", "missing")]


@pytest.mark.parametrize(
    ("format_name", "text", "message"),
    [
        ("msrvtt", "{", "cannot be read as JSON"),
        ("msrvtt", '{"data": []}', "no entry 'videos'"),
        ("msrvtt", '{"videos": [{"id": 3}]}', "videos 1: no text 'video_id'"),
        ("youcook2", '{"videos": []}', "no entry 'database'"),
        ("youcook2", '{"database": {"xHr8X2Wpmno": {"annotations": [{"segment": [1]}]}}}', r"is not \[start, end\]"),
        (
            "youcook2",
            '{"database": {"xHr8X2Wpmno": {"annotations": [{"segment": [0, NaN]}]}}}',
            r"is not \[start, end\]",
        ),
    ],
)
def test_another_json_is_refused(tmp_path: Path, format_name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_source(write(tmp_path / "l.json", text), SourceOptions(format_name))
