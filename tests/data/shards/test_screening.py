"""The first look at every clip: what is found, how deep it looks, and that no clip stops it."""

from __future__ import annotations

import io
import os
import signal
import time
import wave
from pathlib import Path

import av
import pytest
import torch

from mavil.data.media.encoders import encode_clip
from mavil.data.shards.pack import make_shards
from mavil.data.shards.reading import Target
from mavil.data.shards.screening import Rules, Verdict, mark_duplicates, read_journal, screen_clips
from mavil.structs import SAMPLE_RATE, Clip, Modality

PICTURE = torch.randint(0, 255, (24, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SOUND = 0.3 * torch.sin(torch.arange(3 * SAMPLE_RATE) / 5)


def screen(clips: list[Clip], journal: Path, workers: int = 0, seconds: float = 30.0, **rules: object) -> list[Verdict]:
    return screen_clips(
        clips,
        journal,
        rules=Rules(**rules),  # type: ignore[arg-type]
        target=Target(),
        read=None,
        workers=workers,
        seconds_per_clip=seconds,
        show_progress=False,
    )


def clip_of(path: Path, media: bytes, **fields: object) -> Clip:
    path.write_bytes(media)
    return Clip(key=path.stem, path=str(path), **fields)  # type: ignore[arg-type]


def damaged(media: bytes) -> bytes:
    """The same file with nonsense in the place of its last frames."""
    start, end = media.index(b"mdat") + 4, media.index(b"moov") - 4
    first, last = start + (end - start) * 6 // 10, start + (end - start) * 9 // 10
    return media[:first] + (bytes(range(256)) * len(media))[: last - first] + media[last:]


@pytest.mark.parametrize("require", [("audio", "video"), ("video",), ("audio",)])
def test_a_broken_tail_is_found_unless_the_look_is_quick(tmp_path: Path, require: tuple[Modality, ...]) -> None:
    media = encode_clip(PICTURE if "video" in require else None, 8.0, SOUND if "audio" in require else None)
    clip = clip_of(tmp_path / "tail.mp4", damaged(media))
    assert [v.cause for v in screen([clip], tmp_path / "all", require=require)] == ["undecodable"]
    assert [v.cause for v in screen([clip], tmp_path / "quick", require=require, depth="quick")] == [""]
    whole = clip_of(tmp_path / "whole.mp4", media)
    assert [v.cause for v in screen([whole], tmp_path / "whole", require=require)] == [""]
    span = clip_of(tmp_path / "span.mp4", damaged(media), start_seconds=0.0, end_seconds=0.5)
    assert [v.cause for v in screen([span], tmp_path / "span", require=require)] == [""]  # the damage lies outside


def test_a_file_that_ends_before_it_says_is_found(tmp_path: Path, recording: bytes) -> None:
    clip = clip_of(tmp_path / "cut.mkv", recording)
    (verdict,) = screen([clip], tmp_path / "journal", require=("audio",))
    assert (verdict.cause, verdict.detail[:9]) == ("undecodable", "it ends a")


@pytest.fixture
def recording(tmp_path: Path) -> bytes:
    """A Matroska file cut off between two packets, which decodes without a complaint."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        audio = container.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="mono")
        for number in range(40):
            frame = av.AudioFrame.from_ndarray((torch.rand(1, 1600) * 999).short().numpy(), format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, 1600 * number
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return file.getvalue()[: len(file.getvalue()) // 2]


@pytest.mark.parametrize(("decibels", "is_silent"), [(-57.0, False), (-63.0, True)])
def test_silence_is_what_stays_below_60_dbfs(tmp_path: Path, decibels: float, is_silent: bool) -> None:
    peak = round(32768 * 10 ** (decibels / 20))
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        samples = torch.zeros(2 * SAMPLE_RATE, dtype=torch.int16)
        samples[-4000] = peak  # late: a look at the beginning alone would miss it
        out.writeframes(samples.numpy().tobytes())
    clip = clip_of(tmp_path / "a.wav", file.getvalue())
    (kept,) = screen([clip], tmp_path / "all", require=("audio",))
    assert (kept.cause, kept.is_silent) == ("", is_silent)
    (quick,) = screen([clip], tmp_path / "quick", require=("audio",), depth="quick")
    assert quick.is_silent is None
    for depth in ("all", "quick"):
        (rejected,) = screen([clip], tmp_path / f"{depth}2", require=("audio",), depth=depth, reject_silent=True)
        assert rejected.cause == ("silent" if is_silent else "")


def test_equal_content_is_found_under_other_names_but_not_in_other_spans(tmp_path: Path) -> None:
    media = encode_clip(PICTURE, 8.0, SOUND)
    clips = [
        clip_of(tmp_path / "a.mp4", media, labels=("dog",)),
        clip_of(tmp_path / "b.mp4", encode_clip(PICTURE.flip(0), 8.0, SOUND)),
        clip_of(tmp_path / "c.mp4", media, labels=("cat",)),
        Clip(key="d", path=str(tmp_path / "a.mp4"), start_seconds=0.0, end_seconds=1.0),
        Clip(key="e", path=str(tmp_path / "c.mp4"), start_seconds=0.0, end_seconds=1.0),
    ]
    verdicts = screen(clips, tmp_path / "journal")
    causes = {clips[v.number].key: (v.cause, v.detail) for v in mark_duplicates(clips, verdicts)}
    usable = ("", "")
    assert causes == {
        "a": usable,
        "b": usable,
        "c": ("duplicate", "the same content as a"),
        "d": usable,
        "e": ("duplicate", "the same content as d"),
    }
    index = make_shards(clips[:3], tmp_path / "out", keep_duplicates=True, show_progress=False)
    assert (index.num_clips, index.rejected) == (3, {})


def test_clips_without_sound_are_not_silent(tmp_path: Path) -> None:
    clips = [clip_of(tmp_path / f"{n}.mp4", encode_clip(PICTURE + n, 8.0, SOUND if n else None)) for n in range(2)]
    assert [v.is_silent for v in screen(clips, tmp_path / "all", require=())] == [False, False]
    assert make_shards(clips, tmp_path / "out", require=(), show_progress=False).num_silent == 0
    assert make_shards(clips, tmp_path / "quick", require=(), depth="quick", show_progress=False).num_silent is None


def read_or_not(clip: Clip) -> bytes:
    """A decoder that hangs, one that crashes, and clips that are usable."""
    if clip.key == "hangs":
        time.sleep(30)
    if clip.key == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    return Path(clip.path).read_bytes()


def test_clips_that_hang_or_crash_cost_only_themselves(tmp_path: Path) -> None:
    media = [encode_clip(PICTURE + number, 8.0, None) for number in range(2)]
    clips = [clip_of(tmp_path / f"{key}.mp4", media[0]) for key in ("hangs", "crashes", "good")]
    clips.append(clip_of(tmp_path / "better.mp4", media[1]))
    index = make_shards(
        clips,
        tmp_path / "out",
        read=read_or_not,
        workers=1,
        seconds_per_clip=0.5,
        require=("video",),
        show_progress=False,
    )
    assert index.rejected == {"killed": 1, "timeout": 1}
    assert index.num_clips == 2


def test_a_journal_that_was_cut_off_keeps_its_whole_lines(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.write_text('[0, "", "", "d0", null]\n[1, "missing", "no such')
    assert read_journal(journal) == {0: Verdict(0, "", "", "d0")}
    clips = [Clip(key=str(number), path=str(tmp_path / "gone.mp4")) for number in range(3)]
    assert [v.cause for v in screen(clips, journal)] == ["", "missing", "missing"]
    assert read_journal(journal).keys() == {0, 1, 2}
