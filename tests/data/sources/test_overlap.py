"""Ids of any list, and which clips two lists share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mavil.data.sources.listing import write_rejects
from mavil.data.sources.overlap import Overlap, overlaps, read_ids
from mavil.data.sources.read import SourceOptions, read_source
from mavil.data.sources.recordings import recording_of, youtube_id_of_url
from mavil.structs import Clip, UserError
from tests.data.sources.fake_files import touch, write


@pytest.mark.parametrize(
    ("name", "recording"),
    [
        ("--4gqARaEJE", "--4gqARaEJE"),
        ("a/b/0_8-g2rof7E_000049.mp4", "0_8-g2rof7E"),
        ("0_8-g2rof7E_30.000_40.000.wav", "0_8-g2rof7E"),
        ("Y--4gqARaEJE.wav", "--4gqARaEJE"),
        ("Y--4gqARaEJE_30", "--4gqARaEJE"),
        ("id10003/na8-QEFmj44/00003.wav", "na8-QEFmj44"),
        ("sc/right/bb05582b_nohash_3.wav", "right/bb05582b_nohash_3"),
        ("1-100032-A-0.wav", "100032"),
        ("1-100032-A.ogg", "100032"),
        ("84-121123-0000.flac", "84-121123-0000"),
        ("clips\\my holiday.mp4", "my holiday"),
        ("video9770", "video9770"),
        ("synthetic_0_001090", "synthetic_0_001090"),
        ("no.ending.here", "no.ending.here"),
    ],
)
def test_the_recording_in_a_name(name: str, recording: str) -> None:
    assert recording_of(name) == recording


@pytest.mark.parametrize(
    ("url", "youtube_id"),
    [
        ("https://www.youtube.com/watch?v=9lZi22qLlEo", "9lZi22qLlEo"),
        ("https://m.youtube.com/watch?list=a&v=9lZi22qLlEo&t=3", "9lZi22qLlEo"),
        ("https://youtu.be/9lZi22qLlEo?t=4", "9lZi22qLlEo"),
        ("https://www.youtube.com/shorts/9lZi22qLlEo", "9lZi22qLlEo"),
        ("https://www.dailymotion.com/video/x29ryo7", None),
        ("https://example.org/watch?v=9lZi22qLlEo", None),
        ("https://www.youtube.com/watch?v=9lZi22qLlEoX", None),
    ],
)
def test_the_id_in_an_address(url: str, youtube_id: str | None) -> None:
    assert youtube_id_of_url(url) == youtube_id


A, B = "--4gqARaEJE", "0_8-g2rof7E"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "audioset.csv",
            f'# YTID, start_seconds\n{A}, 30.000, 40.000, "/m/09x0r,/m/05"\n{B}, 0.000, 10.000, "/m/09x0r"\n',
        ),
        ("vggsound.csv", f'{A},30,"male speech, man speaking",train\n{B},1,rapping,test\n'),
        ("test.csv", f"{A}_000030.mp4,rapping\n{B}_000001.mp4,rapping\n{B}_000011.mp4,rapping\n"),
        (
            "vggsounder.csv",
            f'video_id,label,modality\n{A}_000000,"child speech, kid speaking",AV\n{B}_000001,rapping,A\n',
        ),
        ("own.csv", f"start,path\n1,a/{A}.mp4\n2,Y{B}.wav\n"),
        ("audiocaps.csv", f"audiocap_id,youtube_id,start_time,caption\n1,{A},30,a\n2,{B},4,b\n"),
        ("plain.txt", f"{A}\n\n{B}\n"),
        ("mangled.csv", f"{A},30,40,/m/09x0r\n#NAME?,30,40,/m/09x0r\n{B},30,40,/m/09x0r\n"),
        ("iden_split.txt", f"1 id10003/{A}/00003.wav\n3 id10003/{B}/00003.wav\n"),
        ("cavmae.json", json.dumps({"data": [{"video_id": A, "wav": "x.wav"}, {"wav": f"<ROOT>/{B}_000030.wav"}]})),
        ("youcook2.json", json.dumps({"database": {A: {}, B: {}}})),
        ("names.json", json.dumps([A, f"{B}.mp4"])),
    ],
)
def test_ids_of_every_list(tmp_path: Path, name: str, text: str) -> None:
    assert read_ids(write(tmp_path / name, text)) == {A, B}


def test_ids_of_the_audio_sets(tmp_path: Path) -> None:
    esc = write(
        tmp_path / "esc50.csv",
        "filename,fold,target,category,esc10,src_file,take\n1-100032-A-0.wav,1,0,dog,True,100032,A\n",
    )
    assert read_ids(esc) == {"100032"}
    commands = write(tmp_path / "testing_list.txt", "right/bb05582b_nohash_3.wav\n")
    assert read_ids(commands) == {"right/bb05582b_nohash_3"}


def test_shared_recordings_are_counted_and_named(tmp_path: Path) -> None:
    training = write(tmp_path / "vggsound.csv", f"{A},30,rapping,train\n{B},30,rapping,train\n{B},90,rapping,train\n")
    touch(tmp_path, f"{A}.mp4", f"{B}.mp4")
    evaluation = write(
        tmp_path / "eval.csv", f'{B}, 0.000, 10.000, "/m/09x0r"\nzzzzzzzzzzz, 0.000, 10.000, "/m/09x0r"\n'
    )
    nothing = write(tmp_path / "nothing.txt", "yyyyyyyyyyy\n")
    assert overlaps(read_source(training).clips, [evaluation, nothing]) == (
        Overlap(evaluation, 2, (f"{B}_000030", f"{B}_000090")),
        Overlap(nothing, 1, ()),
    )


def test_msrvtt_is_compared_by_its_own_names_and_by_youtube_ids(tmp_path: Path) -> None:
    data = {"videos": [{"video_id": "video0", "url": f"https://www.youtube.com/watch?v={A}"}], "sentences": []}
    source = write(tmp_path / "MSRVTT_data.json", json.dumps(data))
    touch(tmp_path, "video0.mp4")
    clips = read_source(source).clips
    lists = [
        write(tmp_path / "jsfusion.csv", "key,vid_key,video_id,sentence\nret0,msr0,video0,a\n"),
        write(tmp_path / "a.txt", A),
        source,
    ]
    assert [found.keys for found in overlaps(clips, lists)] == [("video0",)] * 3


def test_rejects_can_be_compared_too(tmp_path: Path) -> None:
    source = write(tmp_path / "vggsound.csv", f"{A},30,rapping,train\n{B},30,rapping,train\n")
    touch(tmp_path, f"{A}.mp4")
    write_rejects(tmp_path / "rejects.csv", read_source(source, SourceOptions("vggsound")).rejects)
    assert read_ids(tmp_path / "rejects.csv") == {B}


def test_what_is_no_list(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "nowhere.csv", "cannot be read"),
        (write(tmp_path / "empty.csv", ""), "names no clip"),
        (write(tmp_path / "config.json", '{"a": 1}'), "no list 'data'"),
        (write(tmp_path / "classes.csv", "index,mid,display_name\n0,/m/1,A\n"), "list of classes"),
    ):
        with pytest.raises(UserError, match=message):
            overlaps([Clip("k", "p")], [path])
