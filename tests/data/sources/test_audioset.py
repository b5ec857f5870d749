"""AudioSet's segment lists, as published and as people damage them."""

from __future__ import annotations

import random
import string
from pathlib import Path

import pytest

from mavil.data.sources.read import SourceOptions, read_source
from mavil.structs import UserError
from tests.data.sources.fake_files import AUDIOSET_CLASSES, by_key, causes, touch, write

SEGMENTS = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=5, num_segs=5, num_unique_labels=4, num_positive_labels=7
# YTID, start_seconds, end_seconds, positive_labels
--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"
--4gqARaEJE, 0.000, 10.000, "/m/068hy"
-0p7hKXZ1ww, 30.000, 40.000, "/m/05zppz,/m/09x0r"
0_8-g2rof7E, 239.800, 249.800, "/m/09x0r"
zzz_000_300, 20.000, 30.000, "/m/09x0r"
"""


def test_segments_become_clips_by_their_usual_names(tmp_path: Path) -> None:
    source = write(tmp_path / "lists/balanced_train_segments.csv", SEGMENTS)
    media = touch(
        tmp_path / "media",
        "a/--PJHxphWEs.mp4",
        "Y--4gqARaEJE.wav",
        "deep/er/-0p7hKXZ1ww_30_40.webm",
        "0_8-g2rof7E_239800_249800.flac",
    )
    classes = write(tmp_path / "class_labels_indices.csv", AUDIOSET_CLASSES)
    listing = read_source(source, SourceOptions(format="audioset", media=media, classes=classes))
    assert listing.classes == ("Speech", "Male speech, man speaking", "Domestic animals, pets", "Gush")
    whole, copy, cut, fraction = listing.clips
    assert (whole.key, whole.source_id, whole.labels) == ("--PJHxphWEs_000030", "--PJHxphWEs", ("Speech", "Gush"))
    assert whole.path == str(media / "a/--PJHxphWEs.mp4")
    assert (whole.start_seconds, whole.end_seconds, whole.may_be_cut) == (30.0, 40.0, True)
    assert (copy.key, copy.start_seconds, copy.may_be_cut) == ("--4gqARaEJE_000000", 0.0, True)
    assert (cut.start_seconds, cut.end_seconds, cut.may_be_cut) == (None, None, False)
    assert cut.labels == ("Male speech, man speaking", "Speech")
    assert fraction.key == "0_8-g2rof7E_000239-800"
    assert causes(listing) == {"missing": 1}
    (missing,) = listing.rejects
    assert (missing.key, missing.path) == ("zzz_000_300_000020", str(source))
    assert missing.detail.startswith("line 8: no media file zzz_000_300, Yzzz_000_300, zzz_000_300_000020")


def test_without_a_classes_file_the_mids_are_the_labels(tmp_path: Path) -> None:
    source = write(tmp_path / "eval_segments.csv", SEGMENTS)
    touch(tmp_path, "--PJHxphWEs.mp4")  # beside the list
    listing = read_source(source)
    assert listing.clips[0].labels == ("/m/09x0r", "/t/dd00088")
    assert listing.classes == ()


def test_duplicates_mangled_ids_and_empty_spans_have_causes_of_their_own(tmp_path: Path) -> None:
    source = write(
        tmp_path / "list.csv",
        SEGMENTS
        + '--PJHxphWEs, 30.000, 40.000, "/m/09x0r"\n'
        + '--PJHxphWEs, 50.000, 60.000, "/m/09x0r"\n'
        + '#NAME?, 30.000, 40.000, "/m/09x0r"\n'
        + '-1.2E+10, 30.000, 40.000, "/m/09x0r"\n'
        + 'bbbbbbbbbbb, 40.000, 40.000, "/m/09x0r"\n',
    )
    media = touch(tmp_path / "m", "--PJHxphWEs.mp4", "bbbbbbbbbbb.mp4")
    listing = read_source(source, SourceOptions(format="audioset", media=media))
    assert [clip.key for clip in listing.clips] == ["--PJHxphWEs_000030", "--PJHxphWEs_000050"]
    assert causes(listing) == {"missing": 4, "duplicate": 1, "mangled_id": 2, "empty_span": 1}
    details = {reject.cause: reject.detail for reject in listing.rejects}
    assert details["duplicate"] == "line 9: the same clip as in line 4"
    assert "line 12: '-1.2E+10' is not a YouTube id" in details["mangled_id"]
    assert "'#NAME?'" in next(r.detail for r in listing.rejects if r.cause == "mangled_id")


def test_a_folder_with_none_of_the_clips_shows_both_sides(tmp_path: Path) -> None:
    source = write(tmp_path / "list.csv", SEGMENTS)
    media = touch(tmp_path / "m", "other-clip-1.mp4")
    with pytest.raises(
        UserError, match=r"none of its 5 clips.*--PJHxphWEs_000030.*1 media files, e\.g\. .*other-clip-1"
    ):
        read_source(source, SourceOptions(media=media))
    write(source, '#NAME?, 30.000, 40.000, "/m/09x0r"\n' + SEGMENTS)
    with pytest.raises(UserError, match=r"mangled_id 1.*e\.g\. line 5: no media file --PJHxphWEs"):
        read_source(source, SourceOptions("audioset", media=media))
    with pytest.raises(UserError, match="no media files"):
        read_source(source, SourceOptions(media=touch(tmp_path / "empty", "readme.txt")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--PJHxphWEs,30,waterfall burbling,train\n", "line 1: 'waterfall burbling' is not a time in seconds"),
        ("glLQrEijrKg_000300.mp4,playing hammond organ\n", "line 1: 2 cells where AudioSet's lists have 4"),
        ("# YTID\n", "lists no clip"),
        ('--PJHxphWEs, 30.000, 40.000, "/m/unknown"\n', "class '/m/unknown' is not among the 4"),
    ],
)
def test_another_list_is_refused(tmp_path: Path, text: str, message: str) -> None:
    source = write(tmp_path / "list.csv", text)
    classes = write(tmp_path / "classes.csv", AUDIOSET_CLASSES)
    with pytest.raises(UserError, match=message):
        read_source(source, SourceOptions(format="audioset", classes=classes))


def test_a_long_list_is_read_whole_and_in_order(tmp_path: Path) -> None:
    rng = random.Random(0)
    ids = ["".join(rng.choices(string.ascii_letters + string.digits + "_-", k=11)) for _ in range(50_000)]
    write(tmp_path / "unbalanced_train_segments.csv", "".join(f'{i}, 30.000, 40.000, "/m/09x0r"\n' for i in ids))
    touch(tmp_path, *(f"{i}.mp4" for i in ids[::100]))
    listing = read_source(tmp_path / "unbalanced_train_segments.csv", SourceOptions(format="audioset"))
    assert list(by_key(listing)) == [f"{i}_000030" for i in ids[::100]]
    assert causes(listing) == {"missing": 49_500}
