"""ESC-50, Speech Commands, VoxCeleb1 and LibriSpeech in their published layouts."""

from __future__ import annotations

import wave
from pathlib import Path

import pytest

from mavil.data.sources.read import SourceOptions, read_source
from mavil.structs import UserError
from tests.data.sources.fake_files import by_key, causes, touch, write

ESC50 = """filename,fold,target,category,esc10,src_file,take
1-100032-A-0.wav,1,0,dog,True,100032,A
1-100038-A-14.wav,1,14,chirping_birds,False,100038,A
2-100210-A-36.wav,2,36,vacuum_cleaner,False,100210,A
5-9032-A-1.wav,5,1,rooster,True,9032,A
"""
IDEN_SPLIT = """1 id10003/na8-QEFmj44/00003.wav
2 id10001/1zcIwhmdeo4/00001.wav
3 id10002/0_laIeN-Q44/00001.wav
1 id10002/xTV-jFAUKcw/00001.wav
"""


def esc50(root: Path) -> Path:
    write(root / "meta/esc50.csv", ESC50)
    touch(root / "audio", "1-100032-A-0.wav", "1-100038-A-14.wav", "5-9032-A-1.wav")
    return root


def test_esc50_keeps_folds_and_the_order_of_its_targets(tmp_path: Path) -> None:
    listing = read_source(esc50(tmp_path / "ESC-50-master"))
    assert [(c.key, c.labels, c.source_id, c.metadata["fold"]) for c in listing.clips] == [
        ("1-100032-A-0", ("dog",), "100032", "1"),
        ("1-100038-A-14", ("chirping_birds",), "100038", "1"),
        ("5-9032-A-1", ("rooster",), "9032", "5"),
    ]
    assert listing.classes == ("dog", "rooster", "chirping_birds", "vacuum_cleaner")
    assert [(r.key, r.cause) for r in listing.rejects] == [("2-100210-A-36", "missing")]


@pytest.mark.parametrize(
    ("split", "keys"),
    [
        ("esc10", ["1-100032-A-0", "5-9032-A-1"]),
        ("fold1", ["1-100032-A-0", "1-100038-A-14"]),
        ("fold1,fold5", ["1-100032-A-0", "1-100038-A-14", "5-9032-A-1"]),
        ("esc10, fold5", ["5-9032-A-1"]),
        ("without_fold1", ["5-9032-A-1"]),
        ("without_fold5,without_fold2", ["1-100032-A-0", "1-100038-A-14"]),
        ("without_fold5,esc10", ["1-100032-A-0"]),
    ],
)
def test_esc50_in_parts(tmp_path: Path, split: str, keys: list[str]) -> None:
    listing = read_source(esc50(tmp_path), SourceOptions(split=split))
    assert [clip.key for clip in listing.clips] == keys
    assert listing.classes[:2] == ("dog", "rooster")
    assert len(listing.classes) == (2 if "esc10" in split else 4)


def test_esc50_from_a_resampled_folder(tmp_path: Path) -> None:
    media = touch(tmp_path / "audio_16k", "1-100032-A-0.flac")
    listing = read_source(esc50(tmp_path), SourceOptions(media=media))
    assert by_key(listing) == {"1-100032-A-0": str(media / "1-100032-A-0.flac")}
    with pytest.raises(UserError, match="ESC-50 has no split 'fold6'"):
        read_source(tmp_path, SourceOptions(split="fold6"))
    with pytest.raises(UserError, match="write either fold1 or without_fold2"):
        read_source(tmp_path, SourceOptions(split="fold1,without_fold2"))


def speech_commands(root: Path) -> Path:
    touch(
        root,
        "right/bb05582b_nohash_3.wav",
        "right/aa05582b_nohash_0.wav",
        "cat/bb05582b_nohash_3.wav",
        "_background_noise_/white_noise.wav",
        "README.md",
        "old/right/cc05582b_nohash_0.wav",
        "old/right/aa05582b_nohash_0.wav",
    )
    write(root / "validation_list.txt", "cat/bb05582b_nohash_3.wav\n")
    write(root / "testing_list.txt", "right/bb05582b_nohash_3.wav\nright/gone0000_nohash_0.wav\n")
    return root


def test_speech_commands_split_by_its_lists(tmp_path: Path) -> None:
    source = speech_commands(tmp_path / "sc")
    listing = read_source(source)
    assert [(c.key, c.labels, c.metadata) for c in listing.clips] == [
        ("cat__bb05582b_nohash_3", ("cat",), {"split": "validation", "speaker": "bb05582b"}),
        ("right__aa05582b_nohash_0", ("right",), {"split": "train", "speaker": "aa05582b"}),
        ("right__bb05582b_nohash_3", ("right",), {"split": "test", "speaker": "bb05582b"}),
    ]
    assert listing.clips[1].path == str(source / "right/aa05582b_nohash_0.wav")
    assert listing.clips[0].source_id == "cat/bb05582b_nohash_3"
    assert listing.classes == ("cat", "right")
    assert causes(listing) == {"missing": 1}
    train = read_source(source, SourceOptions(split="train"))
    assert [clip.key for clip in train.clips] == ["right__aa05582b_nohash_0"]
    assert not train.rejects
    assert train.classes == ("cat", "right")


def test_speech_commands_in_the_order_of_a_class_file(tmp_path: Path) -> None:
    classes = write(tmp_path / "c.csv", 'index,mid,display_name\n0,/m/spcmd18,"right"\n1,/m/spcmd17,"cat"\n')
    source = speech_commands(tmp_path / "sc")
    assert read_source(source, SourceOptions(classes=classes)).classes == ("right", "cat")
    with pytest.raises(UserError, match="no split 'dev': choose one of train, validation, test"):
        read_source(source, SourceOptions(split="dev"))
    (source / "testing_list.txt").unlink()
    with pytest.raises(UserError, match=r"testing_list\.txt: cannot be read"):
        read_source(source, SourceOptions(format="speech_commands"))


def noise(path: Path, seconds: float, rate: int = 16000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(bytes(2 * int(seconds * rate)))


def test_speech_commands_with_the_twelve_classes_of_superb(tmp_path: Path) -> None:
    source = speech_commands(tmp_path / "sc")
    noise(source / "_background_noise_/white_noise.wav", 21.7)
    noise(source / "_background_noise_/pink_noise.wav", 1.0, rate=8000)
    listing = read_source(source, SourceOptions(split="12"))
    assert listing.classes == (
        *("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "_unknown_", "_silence_"),
    )
    words = [(clip.labels, clip.metadata["word"]) for clip in listing.clips if clip.start_seconds is None]
    assert words == [(("_unknown_",), "cat"), (("right",), "right"), (("right",), "right")]
    silence = [clip for clip in listing.clips if clip.labels == ("_silence_",)]
    assert [Path(clip.path).stem for clip in silence] == ["pink_noise", *21 * ["white_noise"]]
    assert [(clip.start_seconds, clip.end_seconds) for clip in silence[1:3]] == [(0.0, 1.0), (1.0, 2.0)]
    assert len({clip.key for clip in listing.clips}) == len(listing.clips)
    parts = {part: read_source(source, SourceOptions(split=f"12,{part}")) for part in ("train", "validation", "test")}
    counts = {part: sum(clip.labels == ("_silence_",) for clip in found.clips) for part, found in parts.items()}
    assert counts == {"train": 18, "validation": 2, "test": 2}
    assert sum(len(found.clips) for found in parts.values()) == len(listing.clips)
    assert all(found.classes == listing.classes for found in parts.values())


def test_speech_commands_without_usable_noise_has_no_twelve_classes(tmp_path: Path) -> None:
    source = speech_commands(tmp_path / "sc")
    with pytest.raises(UserError, match=r"white_noise\.wav: cannot be read as a WAV file"):
        read_source(source, SourceOptions(split="12"))  # an empty file
    (source / "_background_noise_/white_noise.wav").unlink()
    with pytest.raises(UserError, match="no WAV file of noise here"):
        read_source(source, SourceOptions(split="12,test"))
    with pytest.raises(UserError, match="no split 'train,test'"):
        read_source(source, SourceOptions(split="train,test"))


def test_voxceleb_speakers_are_labels(tmp_path: Path) -> None:
    source = write(tmp_path / "iden_split.txt", IDEN_SPLIT)
    touch(
        tmp_path,
        "dev/wav/id10003/na8-QEFmj44/00003.wav",
        "test/wav/id10001/1zcIwhmdeo4/00001.wav",
        "dev/wav/id10002/xTV-jFAUKcw/00001.m4a",
    )
    listing = read_source(source)
    assert [(c.key, c.labels, c.source_id, c.metadata["split"]) for c in listing.clips] == [
        ("id10003_na8-QEFmj44_00003", ("id10003",), "na8-QEFmj44", "train"),
        ("id10001_1zcIwhmdeo4_00001", ("id10001",), "1zcIwhmdeo4", "validation"),
        ("id10002_xTV-jFAUKcw_00001", ("id10002",), "xTV-jFAUKcw", "train"),
    ]
    assert causes(listing) == {"missing": 1}
    train = read_source(tmp_path, SourceOptions(split="train"))  # the folder is told by its list
    assert len(train.clips) == 2
    assert train.classes == listing.classes == ("id10001", "id10002", "id10003")
    with pytest.raises(UserError, match="no split 'dev'"):
        read_source(source, SourceOptions(split="dev"))
    write(source, "1 id10003 00003.wav\n")
    with pytest.raises(UserError, match=r"line 1: .* is not like"):
        read_source(source, SourceOptions(format="voxceleb1"))


def test_librispeech_gives_words_and_speakers(tmp_path: Path) -> None:
    root = touch(
        tmp_path / "LibriSpeech",
        "SPEAKERS.TXT",
        "dev-clean/84/121123/84-121123-0000.flac",
        "dev-clean/84/121123/84-121123-0001.flac",
        "dev-other/116/288045/116-288045-0000.flac",
    )
    write(
        root / "dev-clean/84/121123/84-121123.trans.txt",
        "84-121123-0000 GO DO YOU HEAR\n84-121123-0001 BUT IN\n84-121123-0002 AT THIS MOMENT\n",
    )
    listing = read_source(root)
    assert [(clip.key, clip.labels) for clip in listing.clips] == [
        ("84-121123-0000", ()),
        ("84-121123-0001", ()),
        ("116-288045-0000", ()),
    ]
    assert listing.clips[0].metadata == {
        "transcript": "GO DO YOU HEAR",
        "speaker": "84",
        "chapter": "121123",
        "split": "dev-clean",
    }
    assert listing.clips[2].metadata["transcript"] == ""
    assert [(r.key, r.cause) for r in listing.rejects] == [("84-121123-0002", "missing")]
    for options, source in (
        (SourceOptions("librispeech", split="dev-other"), root),
        (SourceOptions("librispeech"), root / "dev-other"),
    ):
        (clip,) = read_source(source, options).clips
        assert (clip.key, clip.metadata["split"]) == ("116-288045-0000", "dev-other")
    with pytest.raises(UserError, match="has dev-clean, dev-other"):
        read_source(root, SourceOptions("librispeech", split="train-clean-100"))
    with pytest.raises(UserError, match="is it LibriSpeech"):
        read_source(touch(tmp_path / "x", "a.flac"), SourceOptions("librispeech"))


def test_an_utterance_in_two_splits_is_taken_once(tmp_path: Path) -> None:
    root = touch(tmp_path, "a/84/121123/84-121123-0000.flac", "b/84/121123/84-121123-0000.flac")
    listing = read_source(root, SourceOptions("librispeech"))
    assert [clip.metadata["split"] for clip in listing.clips] == ["a"]
    assert causes(listing) == {"duplicate": 1}
