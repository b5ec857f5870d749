"""The JSON of AST, SSAST and CAV-MAE: moved roots, frame folders, videos beside the sound, weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mavil.data.sources.read import SourceOptions, read_source
from mavil.structs import UserError
from tests.data.sources.fake_files import AUDIOSET_CLASSES, by_key, causes, touch, write

ONE, TWO = "--4gqARaEJE", "0_8-g2rof7E_000049"


def entry(name: str, root: Path | str, labels: str = "/m/068hy,/m/09x0r") -> dict[str, Any]:
    return {"video_id": name, "wav": f"{root}/audio/{name}.flac", "video_path": f"{root}/frames/", "labels": labels}


def write_json(path: Path, *entries: dict[str, Any]) -> Path:
    return write(path, json.dumps({"data": entries}, indent=1))


def test_paths_that_exist_are_taken_with_their_frames(tmp_path: Path) -> None:
    root = touch(tmp_path / "set", f"audio/{ONE}.flac", f"audio/{TWO}.flac", f"frames/frame_0/{ONE}.jpg")
    classes = write(tmp_path / "classes.csv", AUDIOSET_CLASSES)
    source = write_json(
        tmp_path / "lists/train.json", entry(ONE, root), entry(TWO, root), entry("gone", root), entry(ONE, root)
    )
    listing = read_source(source, SourceOptions(classes=classes))
    first, second = listing.clips
    assert (first.key, first.source_id, first.path) == (ONE, ONE, str(root / f"audio/{ONE}.flac"))
    assert first.labels == ("Domestic animals, pets", "Speech")
    assert first.stills == str(root / f"frames/frame_*/{ONE}.jpg")
    assert (second.source_id, second.stills) == ("0_8-g2rof7E", None)
    assert listing.classes[0] == "Speech"
    assert causes(listing) == {"missing": 1, "duplicate": 1}


def test_paths_may_be_relative_to_the_list(tmp_path: Path) -> None:
    touch(tmp_path, "data/1-100038-A-14.wav")
    source = write_json(tmp_path / "esc.json", {"wav": "./data/1-100038-A-14.wav", "labels": "/m/07rwj14"})
    (clip,) = read_source(source).clips
    assert (clip.key, clip.source_id, clip.labels) == ("1-100038-A-14", "100038", ("/m/07rwj14",))
    assert Path(clip.path) == tmp_path / "data/1-100038-A-14.wav"


@pytest.mark.parametrize("old_root", ["<YOUR_VGGS_PATH>", "/data/sls/audioset/dave_version"])
def test_a_moved_root_is_found_by_file_names(tmp_path: Path, old_root: str) -> None:
    media = touch(tmp_path / "m", f"audio/x/{ONE}.wav", f"pictures/frame_0/{ONE}.jpg", f"pictures/frame_1/{ONE}.jpg")
    source = write_json(tmp_path / "l.json", entry(ONE, old_root), entry(TWO, old_root))
    listing = read_source(source, SourceOptions(media=media))
    (clip,) = listing.clips
    assert clip.path == str(media / f"audio/x/{ONE}.wav")
    assert clip.stills == str(media / f"pictures/frame_*/{ONE}.jpg")
    assert causes(listing) == {"missing": 1}
    with pytest.raises(UserError, match=rf"none of its 2 clips.*no file {old_root}/audio/.*no media files"):
        read_source(source, SourceOptions(media=touch(tmp_path / "other", "readme.txt")))


def test_sound_may_be_named_otherwise_than_the_clip(tmp_path: Path) -> None:
    media = touch(tmp_path / "m", "00001.wav", f"{TWO}.wav")
    rows = [{"video_id": name, "wav": f"<ROOT>/{number:05d}.wav"} for number, name in enumerate((ONE, TWO), start=1)]
    source = write_json(tmp_path / "l.json", *rows)
    assert by_key(read_source(source, SourceOptions(media=media))) == {
        ONE: str(media / "00001.wav"),
        TWO: str(media / f"{TWO}.wav"),
    }


def test_a_video_holds_both_and_is_preferred(tmp_path: Path) -> None:
    root = touch(
        tmp_path / "set", f"audio/{ONE}.flac", f"frames/{ONE}.mp4", f"frames/frame_0/{ONE}.jpg", f"audio/{TWO}.flac"
    )
    videos = touch(tmp_path / "videos", f"{TWO}.mkv")
    source = write_json(tmp_path / "l.json", entry(ONE, root), entry(TWO, root))
    beside, _ = read_source(source).clips
    assert (Path(beside.path), beside.stills) == (root / f"frames/{ONE}.mp4", None)
    _, below_media = read_source(source, SourceOptions(media=videos)).clips
    assert below_media.path == str(videos / f"{TWO}.mkv")


def test_names_that_look_equal_when_plain_keep_keys_of_their_own(tmp_path: Path) -> None:
    names = ["a.b", "a_b", "a b", "alone"]
    touch(tmp_path, *(f"audio/{name}.flac" for name in names))
    keys = list(by_key(read_source(write_json(tmp_path / "l.json", *(entry(name, ".") for name in names)))))
    assert len(set(keys)) == 4
    assert keys[3] == "alone"
    assert keys[0].startswith("a_b-")
    assert not set("".join(keys)) & set(". ")


def test_weights_go_with_their_rows(tmp_path: Path) -> None:
    root = touch(tmp_path / "set", f"audio/{ONE}.flac", f"audio/{TWO}.flac")
    source = write_json(tmp_path / "l.json", entry("gone", root), entry(ONE, root), entry(TWO, root))
    weights = write(tmp_path / "l_weight.csv", "9.0\n2.500000000000000000e+00\n0.25\n")
    listing = read_source(source, SourceOptions(weights=weights))
    assert [(clip.key, clip.weight) for clip in listing.clips] == [(ONE, 2.5), (TWO, 0.25)]
    for text, message in (
        ("1\n2\n", "2 weights for 3 clips"),
        ("1\n2\nnan\n", "numbers of 0 or more"),
        ("w\n", "one number per line"),
    ):
        with pytest.raises(UserError, match=message):
            read_source(source, SourceOptions(weights=write(weights, text)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"database": {}}', "no list 'data'"),
        ('{"data": ["x"]}', "no list 'data'"),
        ('{"data": [{"labels": "/m/1"}]}', "entry 1: has neither 'video_id' nor 'wav'"),
        ('{"data": [', "cannot be read as JSON"),
    ],
)
def test_another_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_source(write(tmp_path / "l.json", text), SourceOptions("ast_json"))
