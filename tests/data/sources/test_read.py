"""Folders and own CSV to clips: order, labels, keys, mistakes; and how the formats are told apart."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from mavil.data.sources.listing import Reject, write_rejects
from mavil.data.sources.read import FORMATS, SourceOptions, read_source
from mavil.structs import UserError
from tests.data.sources.fake_files import touch, write


def write_list(folder: Path, text: str) -> Path:
    path = folder / "list.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_folder_gives_sorted_clips_with_their_class(tmp_path: Path) -> None:
    touch(tmp_path, "dog/b.mp4", "dog/a.MP4", "cat/deep/er.wav", "plain.ogg", "notes.txt", ".hidden.mp4", ".git/c.mp4")
    clips = read_source(tmp_path).clips
    assert [(clip.key, clip.labels) for clip in clips] == [
        ("cat__deep__er", ("cat",)),
        ("dog__a", ("dog",)),
        ("dog__b", ("dog",)),
        ("plain", ()),
    ]
    assert clips[1].path == str(tmp_path / "dog/a.MP4")


def test_keys_are_own_stable_and_without_dots_or_slashes(tmp_path: Path) -> None:
    touch(tmp_path, "a.b.mp4", "a_b.mp4", "a b.mp4", "a.b.wav", "é/ü.mp4")
    keys = [clip.key for clip in read_source(tmp_path).clips]
    assert len(set(keys)) == 5
    assert not any(set(key) & set("./ éü") for key in keys)
    assert keys == [clip.key for clip in read_source(tmp_path).clips]
    # A clip that shares its plain key with no other keeps it, whatever else is there.
    touch(tmp_path, "alone.mp4")
    assert "alone" in [clip.key for clip in read_source(tmp_path).clips]
    assert set(keys) < {clip.key for clip in read_source(tmp_path).clips}


def test_a_list_gives_spans_labels_and_metadata(tmp_path: Path) -> None:
    path = write_list(
        tmp_path,
        "\ufeffpath, start,end ,labels,speaker\n"
        "sub/v.mp4,1.5,4,dog; barking|outside,anna\n"
        "sub/v.mp4,,4,,\n"
        'sub/v.mp4,5,,"dog;dog",ben\n'
        "w.wav,,,,\n",
    )
    first, second, third, fourth = read_source(path).clips
    assert first.path == str(tmp_path / "sub/v.mp4")
    assert (first.start_seconds, first.end_seconds) == (1.5, 4.0)
    assert first.labels == ("dog", "barking", "outside")
    assert first.metadata == {"speaker": "anna"}
    assert (second.start_seconds, second.end_seconds, second.labels) == (None, 4.0, ())
    assert third.labels == ("dog",)
    assert (fourth.start_seconds, fourth.end_seconds) == (None, None)
    assert [clip.key for clip in (first, second, third, fourth)] == [
        "sub__v-1500-4000",
        "sub__v-end-4000",
        "sub__v-5000-end",
        "w",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty.*'path'"),
        ("path,start\n", "no clips"),
        ("file,start\nv.mp4,1\n", "no column 'path' among 'file', 'start'"),
        ("path,start,start\nv.mp4,1,2\n", "'start' is there 2 times"),
        ("path,start\nv.mp4,1\nw.mp4,soon\n", "line 3: start 'soon' is not a time"),
        ("path,start\nv.mp4,-1\n", "line 2: start '-1' is not a time"),
        ("path,end\nv.mp4,nan\n", "line 2: end 'nan' is not a time"),
        ("path,start,end\nv.mp4,4,4\n", "line 2: end 4 is not after start 4"),
        ("path\nv.mp4\nv.mp4\n", r"line 3: the same clip as in line 2 \(v\.mp4\)"),
        ("path,labels\n,dog\n", "line 2: the path is empty"),
        ("path,labels\nv.mp4,dog,cat\n", "line 2: not as many cells as columns"),
        ("path,labels\nv.mp4\n", "line 2: not as many cells as columns"),
        ('path\n"v.mp4\n', "cannot be read as CSV"),
    ],
)
def test_mistakes_in_a_list_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    path = write_list(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        read_source(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder or CSV"):
        read_source(tmp_path / "nothing")
    with pytest.raises(UserError, match="no media files in this folder; known endings are mp4"):
        read_source(tmp_path)
    touch(tmp_path, "one.mp4")
    with pytest.raises(UserError, match=r"not a single \.mp4"):
        read_source(tmp_path / "one.mp4")
    (tmp_path / "latin.csv").write_bytes("path\nä.mp4\n".encode("latin-1"))
    with pytest.raises(UserError, match="cannot be read as CSV in UTF-8"):
        read_source(tmp_path / "latin.csv")


def test_rejects_are_a_list_one_can_read_back(tmp_path: Path) -> None:
    write_rejects(tmp_path / "rejects.csv", [Reject("k", "a, b.mp4", "no_audio", 'the "file" has none')])
    with (tmp_path / "rejects.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"key": "k", "path": "a, b.mp4", "cause": "no_audio", "detail": 'the "file" has none'}
        ]


def test_folders_and_lists_name_their_recordings(tmp_path: Path) -> None:
    touch(tmp_path, "a/0_8-g2rof7E_000049.mp4", "b/my clip.wav")
    assert [clip.source_id for clip in read_source(tmp_path).clips] == ["0_8-g2rof7E", "my clip"]
    path = write_list(tmp_path, "path\na/0_8-g2rof7E_000049.mp4\nb/my clip.wav\n")
    assert [clip.source_id for clip in read_source(path).clips] == ["0_8-g2rof7E", "my clip"]


def test_formats_are_described_and_unknown_ones_answered_with_the_list(tmp_path: Path) -> None:
    assert {"auto", "folder", "csv", "audioset", "vggsound", "esc50", "speech_commands", "voxceleb1"} < set(FORMATS)
    assert {"librispeech", "msrvtt", "youcook2", "ast_json", "video2dataset"} < set(FORMATS)
    assert all(0 < len(text) < 80 for text in FORMATS.values())
    with pytest.raises(
        UserError, match="'audiosett' is no format of a source: choose one of auto, folder, csv, audioset"
    ):
        read_source(tmp_path, SourceOptions(format="audiosett"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SourceOptions(split="train"), "split has no meaning for the format folder, which takes no options"),
        (SourceOptions(weights=Path("w.csv")), "weights has no meaning for the format folder"),
        (SourceOptions(media=Path("m")), "media has no meaning for the format folder"),
        (
            SourceOptions("librispeech", classes=Path("c")),
            "classes has no meaning for the format librispeech, which takes split",
        ),
    ],
)
def test_an_option_that_a_format_would_not_read_is_refused(
    tmp_path: Path, options: SourceOptions, message: str
) -> None:
    touch(tmp_path, "a.mp4")
    with pytest.raises(UserError, match=message):
        read_source(tmp_path, options)


def test_a_csv_with_a_path_column_stays_an_own_list(tmp_path: Path) -> None:
    """Lists of data sets are told by how they begin; nothing that has a column ``path`` may be taken for one."""
    for header in ("path,video_id,sentence", "video_id,path", "path"):
        cells = ",".join("x.mp4" if name == "path" else "0_8-g2rof7E" for name in header.split(","))
        (clip,) = read_source(write_list(tmp_path, f"{header}\n{cells}\n")).clips
        assert clip.path == str(tmp_path / "x.mp4")


def test_shards_and_media_in_one_folder_are_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "00000.tar")
    assert [clip.key for clip in read_source(tmp_path).clips] == ["a"]


def test_a_list_of_nobody_is_answered_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a single \.txt; if it is a dataset's list, name its format"):
        read_source(write(tmp_path / "list.txt", "hello\n"))
    with pytest.raises(UserError, match="no column 'path' among 'video_id', 'text'"):
        read_source(write(tmp_path / "list.csv", "video_id,text\nx,y\n"))
