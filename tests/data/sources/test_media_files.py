"""The scan of a media folder, and the names by which files of a data set are found in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mavil.data.sources.media_files import MediaFiles, SegmentFile, media_roots
from mavil.structs import UserError
from tests.data.sources.fake_files import touch

ID = "-a_b-000_30"
"""A YouTube id that looks like a name with a time in it, with a dash first."""


@pytest.mark.parametrize(
    ("name", "is_cut"),
    [
        (f"{ID}.mp4", False),
        (f"Y{ID}.wav", False),
        (f"deep/er/{ID}.mkv", False),
        (f"{ID}_30.mp4", True),
        (f"{ID}_30_40.mp4", True),
        (f"{ID}_30.0_40.0.mp4", True),
        (f"{ID}_30.000_40.000.FLAC", True),
        (f"{ID}_30000_40000.flac", True),
        (f"{ID}_30000.mp4", True),
        (f"{ID}_000030.mp4", True),
        (f"{ID}_000030_000040.mp4", True),
        (f"Y{ID}_30_40.webm", True),
    ],
)
def test_every_usual_name_of_a_segment_is_found(tmp_path: Path, name: str, is_cut: bool) -> None:
    touch(tmp_path, name, "aaaaaaaaaaa_30_40.mp4")
    assert MediaFiles([tmp_path]).segment(ID, 30.0, 40.0) == SegmentFile(str(tmp_path / name), is_cut)


@pytest.mark.parametrize(
    "name",
    [
        f"{ID}_31.mp4",
        f"{ID}_30_41.mp4",
        f"{ID}_0.mp4",
        f"{ID}0.mp4",
        f"x{ID}.mp4",
        f"{ID}_part.mp4",
        f"{ID}.txt",
        f"{ID}",
    ],
)
def test_a_name_that_says_something_else_is_not_taken(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    assert MediaFiles([tmp_path]).segment(ID, 30.0, 40.0) is None


def test_a_fraction_may_be_rounded_down_in_the_name(tmp_path: Path) -> None:
    touch(tmp_path, f"{ID}_239_249.mp4")
    assert MediaFiles([tmp_path]).segment(ID, 239.8, 249.8) is not None
    assert MediaFiles([tmp_path]).segment(ID, 240.8, 249.8) is None


def test_pictures_come_first_then_the_name_that_says_more(tmp_path: Path) -> None:
    names = [f"a/{ID}_30_40.wav", f"b/{ID}.mp4", f"c/{ID}_30.mp4", f"d/{ID}_30_40.mp4"]
    touch(tmp_path, names[0])
    for name in names[1:]:
        touch(tmp_path, name)
        found = MediaFiles([tmp_path]).segment(ID, 30.0, 40.0)
        assert found is not None
        assert found.path == str(tmp_path / name)


def test_an_id_may_begin_with_the_letter_that_copies_put_before_it(tmp_path: Path) -> None:
    touch(tmp_path, "YYYYYYYYYYY.wav", "Yaaaaaaaaaa_30.mp4")
    media = MediaFiles([tmp_path])
    assert media.segment("YYYYYYYYYYY", 0.0, 10.0) is not None
    assert media.segment("Yaaaaaaaaaa", 30.0, 40.0) is not None


def test_files_are_found_by_the_end_of_their_path(tmp_path: Path) -> None:
    touch(tmp_path, "one/id1/00001.wav", "one/id2/00001.wav", "two/id2/00001.mp4", ".hidden/id3/00001.wav")
    media = MediaFiles([tmp_path])
    assert media.named("id1/00001") == str(tmp_path / "one/id1/00001.wav")
    assert media.named("id2/00001") == str(tmp_path / "two/id2/00001.mp4")  # with a picture
    assert media.named("id3/00001") is None
    assert media.named("00001") == str(tmp_path / "two/id2/00001.mp4")
    assert len(media.paths) == 3


def test_frame_folders_are_told_and_not_entered(tmp_path: Path) -> None:
    touch(tmp_path, "frames/frame_0/a.jpg", "frames/frame_9/a.mp4", "a.wav")
    media = MediaFiles([tmp_path])
    assert media.frame_folders == [str(tmp_path / "frames")]
    assert media.paths == [str(tmp_path / "a.wav")]


def test_links_are_followed_once_and_never_in_a_circle(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "linked.mp4")
    root = touch(tmp_path / "root", "a/own.mp4")
    (root / "data").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "circle").symlink_to(root)
    (tmp_path / "elsewhere" / "back").symlink_to(root / "a")
    names = sorted(Path(path).name for path in MediaFiles([root]).paths)
    assert names.count("linked.mp4") == 1
    assert len(names) <= 3  # the circle over "back" may show a/own.mp4 by a second way


def test_a_link_to_a_folder_above_it_shows_nothing_twice(tmp_path: Path) -> None:
    touch(tmp_path, "a/b/own.mp4")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    assert MediaFiles([tmp_path]).paths == [str(tmp_path / "a/b/own.mp4")]


def test_several_folders_are_searched(tmp_path: Path) -> None:
    roots = touch(tmp_path / "a", "x.mp4"), touch(tmp_path / "b", "y.mp4")
    media = MediaFiles(media_roots(roots, tmp_path))
    assert media.named("x")
    assert media.named("y")
    assert media_roots(None, tmp_path) == (tmp_path,)
    assert media_roots(roots[0], tmp_path) == roots[:1]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: cannot be read as a folder"):
        MediaFiles([tmp_path / "nowhere"]).named("x")
