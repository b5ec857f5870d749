"""Damaged, cut-off and absurd files: a valid result or a DecodeError, without crash, hang, or memory spent on claims."""

from __future__ import annotations

import contextlib
import functools
import io
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from mavil.data.media import DecodeError, FrameWindow, cut_clip, decode_audio, decode_frames, limits, probe
from mavil.data.media.containers import open_media, read_packets
from mavil.structs import SAMPLE_RATE
from tests.data.media.media_files import Pictures, Sound, growing_pictures, make_media, numbered, numbers_in, tone
from tools.fuzz_media import examine, mutant

CORPUS = Path(__file__).parent / "corpus"
WINDOW = FrameWindow(4, 4.0, 64)
EIGHT = Fraction(8)
VPX = {"deadline": "realtime", "cpu-used": "8", "b": "100k"}


@functools.cache
def clip(movflags: str = "") -> bytes:
    """Two seconds of numbered pictures and a tone; about 16 KB."""
    options = {"movflags": movflags} if movflags else None
    return make_media("mp4", Pictures(numbered(16), EIGHT), Sound(tone(2.0)[None]), options)


def patched(media: bytes, name: bytes, offset: int, layout: str, *values: int, occurrence: int = 0) -> bytes:
    """``media`` with other values ``offset`` bytes after a box's name."""
    place = -1
    for _ in range(occurrence + 1):
        place = media.index(name, place + 1)
    changed = bytearray(media)
    struct.pack_into(layout, changed, place + len(name) + offset, *values)
    return bytes(changed)


def table_of(num_frames: int) -> bytes:
    """An MP4 of 16 KB whose picture track claims that many frames of one byte, all in one piece."""
    media = patched(clip(), b"stsz", 4, ">II", 1, num_frames)
    media = patched(media, b"stsc", 8, ">III", 1, num_frames, 1)
    return patched(media, b"stts", 8, ">II", num_frames, 512)


def box(name: bytes, *content: bytes) -> bytes:
    joined = b"".join(content)
    return struct.pack(">I", 8 + len(joined)) + name + joined


def fragments_of(num_frames: int, num_runs: int) -> bytes:
    """An MP4 in fragments: as many runs, each of which claims ``num_frames`` frames of one byte and lists none."""
    pictures = Pictures(numbered(8), EIGHT)
    media = make_media("mp4", pictures, None, {"movflags": "frag_keyframe+empty_moov+default_base_moof"})
    header = media[: media.index(b"moof") - 4]
    track = box(b"tfhd", struct.pack(">5I", 0x020038, 1, 512, 1, 0)) + box(b"tfdt", bytes(8))
    runs = box(b"trun", struct.pack(">II", 0, num_frames)) * num_runs
    moof = box(b"moof", box(b"mfhd", struct.pack(">II", 0, 1)), box(b"traf", track, runs))
    return header + moof + box(b"mdat", bytes(1000))


def wav_header(rate: int, num_channels: int) -> bytes:
    data = b"\1\0" * 3200
    sample_format = struct.pack("<HHIIHH", 1, num_channels, rate, rate * 2 % 2**32, 2 * num_channels, 16)
    chunks = b"WAVEfmt " + struct.pack("<I", 16) + sample_format + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def many_tracks() -> bytes:
    file = io.BytesIO()
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 160), np.int16), format="s16", layout="mono")
    frame.sample_rate, frame.pts = SAMPLE_RATE, 0
    with av.open(file, "w", format="matroska") as container:
        tracks = [container.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="mono") for _ in range(200)]
        for track in tracks:
            container.mux(track.encode(frame))
    return file.getvalue()


ABSURD: dict[str, tuple[Callable[[], bytes], str]] = {
    "a thousand million frames": (lambda: table_of(10**9), "1000000033 frames in"),
    "85 million frames": (lambda: table_of(85_000_000), "85000033 frames in"),
    "a large table that is not there": (lambda: patched(clip(), b"stsz", 8, ">I", 60_000_000), "frames in"),
    "a run of 80 million frames": (lambda: fragments_of(80_000_000, 1), "80000000 frames in"),
    "100 runs of a million frames": (lambda: fragments_of(1_000_000, 100), "100000000 frames in"),
    "a packed header": (lambda: clip() + box(b"moov", box(b"cmov", bytes(64))), "its header is compressed"),
    "boxes without end": (lambda: clip() + box(b"free") * 200_000, "more than 200000 boxes"),
    "two days": (lambda: patched(clip(), b"stts", 8, ">II", 16, 2**31 - 1), "its packets span"),
    "200 tracks": (many_tracks, "200 tracks"),
    "2 GHz": (lambda: wav_header(2_000_000_000, 1), "2000000000 samples a second"),
    "1 Hz": (lambda: wav_header(1, 1), "1 samples a second"),
    "200 channels": (lambda: wav_header(SAMPLE_RATE, 200), "200 channels"),
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_claims_are_too_large(name: str, tmp_path: Path) -> None:
    make, detail = ABSURD[name]
    path = tmp_path / "absurd"
    path.write_bytes(make())
    calls: list[Callable[[], object]] = [lambda: probe(make()), lambda: cut_clip(str(path), None, None)]
    if name != "two days":  # the decoders read the window and not to the end
        calls += [lambda: decode_audio(make(), 1.0), lambda: decode_frames(make(), WINDOW)]
        calls.append(lambda: cut_clip(str(path), 0.0, 1.0))
    for call in calls:
        with pytest.raises(DecodeError, match=detail) as caught:
            call()
        assert caught.value.cause == "too_large"
        assert "\n" not in caught.value.detail


def test_absurd_claims_cost_no_memory() -> None:
    """Each of these takes gigabytes where FFmpeg believes it: 3 GB for 85 million frames, 6 GB for the late sound."""
    late = Sound(tone(1.0)[None], start_seconds=100_000.0)
    files = [make() for make, _ in ABSURD.values()]
    files.append(make_media("mp4", Pictures(numbered(16), EIGHT), late))
    before = _reset_peak_mib()
    for media in files:
        _, finding = examine(media, "pyav")
        assert not finding
    assert _peak_mib() - before < 150


def _reset_peak_mib() -> int:
    """Start the measure of this process' largest memory anew, and what it is now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        pytest.skip(f"the largest memory of a process cannot be measured here: {error}")
    return _peak_mib()


def _peak_mib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def test_silence_before_a_very_late_sound_is_not_longer_than_the_window() -> None:
    late = Sound(tone(1.0)[None], start_seconds=50_000.0)
    media = make_media("mp4", Pictures(numbered(16), EIGHT), late)
    waveform = decode_audio(media, 2.0)
    assert waveform.shape == (2 * SAMPLE_RATE,)
    assert not waveform.any()


def test_picture_sizes_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    media = clip()
    monkeypatch.setattr(limits, "MAX_PIXELS", 64 * 48)
    monkeypatch.setattr(limits, "MAX_SIDE", 64)
    assert probe(media).width == 64
    for name, value in (("MAX_PIXELS", 64 * 48 - 1), ("MAX_SIDE", 63)):
        with monkeypatch.context() as patch:
            patch.setattr(limits, name, value)
            with pytest.raises(DecodeError, match="64x48 pixels") as caught:
                decode_frames(media, WINDOW)
        assert caught.value.cause == "too_large"


def test_pictures_larger_than_the_header_says_are_refused_by_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    media = growing_pictures()  # claims 64 x 48; the ninth picture has 80 x 60
    monkeypatch.setattr("mavil.data.media.containers.MAX_PIXELS", 64 * 48)
    assert decode_frames(media, WINDOW).shape == (4, 3, 48, 64)
    with pytest.raises(DecodeError) as caught:
        decode_frames(media, FrameWindow(2, 8.0, 64), 1.5)
    assert caught.value.cause == "undecodable"
    monkeypatch.undo()
    assert decode_frames(media, FrameWindow(2, 8.0, 64), 1.5).shape == (2, 3, 60, 80)


@pytest.mark.parametrize(
    ("limit", "value", "detail"),
    [
        ("mavil.data.media.limits.MAX_PACKETS", 10, "more than 10 packets"),
        ("mavil.data.media.limits._SPARE_BYTES", -40_000, "more bytes than the file"),
        ("mavil.data.media.containers.MAX_SECONDS", 1.9, "its packets span 2 s"),
    ],
)
def test_packets_are_limited(limit: str, value: float, detail: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe(clip()).duration_seconds == 2.0
    monkeypatch.setattr(limit, value)
    with pytest.raises(DecodeError, match=detail) as caught:
        probe(clip())
    assert caught.value.cause == "too_large"


def test_decoded_sound_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mavil.data.media.sound_track.MAX_SOUND_BYTES", 6 * SAMPLE_RATE)
    assert len(decode_audio(clip(), 1.0)) == SAMPLE_RATE
    with pytest.raises(DecodeError, match="its sound takes more") as caught:
        decode_audio(clip(), 2.0)
    assert caught.value.cause == "too_large"


def test_bytes_that_many_entries_point_at_are_not_read_for_ever() -> None:
    """Every frame of the picture track at the same place, as long as half the file, in a table as long as the other half."""
    num_frames = 4000
    pictures = Pictures(numbered(1), EIGHT)
    media = make_media("mp4", pictures)
    size = b"".join(struct.pack(">I", 60_000) for _ in range(num_frames))
    offsets = b"".join(struct.pack(">I", 48) for _ in range(num_frames))
    tables = {
        b"stts": struct.pack(">IIII", 0, 1, num_frames, 512),
        b"stsc": struct.pack(">IIIII", 0, 1, 1, 1, 1),
        b"stsz": struct.pack(">III", 0, 0, num_frames) + size,
        b"stco": struct.pack(">II", 0, num_frames) + offsets,
    }
    moov = rebuilt(media[media.index(b"moov") - 4 :].replace(b"edts", b"free"), tables)
    body = media[: media.index(b"mdat") - 4] + box(b"mdat", bytes(61_000))
    with open_media(body + moov) as container:
        with pytest.raises(DecodeError, match="more bytes than the file") as caught:
            for _ in read_packets(container, container.streams.video[0]):
                pass
        assert caught.value.cause == "too_large"


def rebuilt(boxes: bytes, tables: dict[bytes, bytes]) -> bytes:
    """The boxes with other content for those in ``tables``, and the sizes of those around them set right."""
    parts = []
    while boxes:
        size, name = struct.unpack_from(">I4s", boxes)
        content, boxes = boxes[8:size], boxes[size:]
        if name in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
            content = rebuilt(content, tables)
        parts.append(box(name, tables.get(name, content)))
    return b"".join(parts)


def test_real_tables_pass() -> None:
    """A table may be as long as the file; sound without compression comes close to that."""
    sound = Sound(tone(2.0, 8000)[None], 8000, codec="pcm_u8")
    media = make_media("mov", None, sound)
    assert media.count(b"stsz") == 1
    assert len(decode_audio(media, 2.0)) == 2 * SAMPLE_RATE
    assert limits.excess_in_tables(io.BytesIO(media)) is None
    assert limits.excess_in_tables(io.BytesIO(clip("frag_keyframe+delay_moov+default_base_moof"))) is None


def test_a_clip_that_ends_before_it_begins_has_no_length() -> None:
    with pytest.raises(DecodeError, match="end before it begins") as caught:
        probe((CORPUS / "mutant_504_front.mp4").read_bytes())
    assert caught.value.cause == "undecodable"


WHOLE: dict[str, Callable[[], bytes]] = {
    "mp4, header first": lambda: clip("faststart"),
    "mp4, header last": clip,
    "mp4 in fragments": lambda: clip("frag_keyframe+delay_moov+default_base_moof"),
    "webm": lambda: make_media(
        "webm",
        Pictures(numbered(16), EIGHT, codec="libvpx", options=VPX),
        Sound(tone(2.0, 48_000)[None], 48_000, codec="libopus"),
    ),
    "ogg": lambda: make_media("ogg", None, Sound(tone(2.0, 48_000)[None], 48_000, codec="libopus")),
    "flac": lambda: make_media("flac", None, Sound(tone(2.0)[None], codec="flac")),
    "mp3": lambda: make_media("mp3", None, Sound(tone(2.0)[None], codec="libmp3lame")),
    "wav": lambda: make_media("wav", None, Sound(tone(2.0)[None], codec="pcm_s16le")),
}


# Strict by choice: a clip whose window holds a damaged packet is refused; cut-off packets of these are noticed as damage.
FEWEST_READ = {"mp4, header first": 3, "mp4, header last": 0, "mp4 in fragments": 1, "flac": 1, "ogg": 20}
"""Of 64 lengths, those whose sound is read; other containers give what came before the cut."""


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_cut_off_anywhere_gives_its_beginning_or_an_error(name: str) -> None:
    """What comes back is never anything else than the beginning of what the whole file gives."""
    media = WHOLE[name]()
    whole, info = decode_audio(media, 2.0), probe(media)
    num_read = 0
    for step in range(64):
        cut = media[: len(media) * step // 64]
        with contextlib.suppress(DecodeError):
            assert probe(cut).duration_seconds <= info.duration_seconds + 1e-6
        with contextlib.suppress(DecodeError):
            waveform = decode_audio(cut, 2.0)
            num_read += 1
            certain = max(0, len(waveform) - 800)  # the resampler and an overlapping codec miss what came after
            assert len(waveform) <= len(whole)
            assert torch.allclose(waveform[:certain], whole[:certain], atol=0.02), step
        with contextlib.suppress(DecodeError):
            numbers = numbers_in(decode_frames(cut, FrameWindow(2, 8.0, 64)))
            assert numbers in ([0, 1], [0, 0]), step  # one frame is left: it is looped
    assert num_read >= FEWEST_READ.get(name, 30)


def test_the_corpus_and_fresh_mutants_give_valid_results_or_decode_errors() -> None:
    files = sorted(path for path in CORPUS.iterdir() if path.suffix != ".md")
    whole = [path for path in files if not path.name.startswith(("mutant", "decord"))]
    assert len(whole) == 15
    num_decoded = 0
    for path in files:
        calls, finding = examine(path.read_bytes(), "pyav")
        assert not finding, path
        num_decoded += calls["sound"] == "ok"
        assert path not in whole or calls["sound"] == "ok"
    assert len(whole) < num_decoded < len(files), "the mutants are all alike, the test tests nothing"
    for number in range(60):
        _, finding = examine(mutant(whole, 0, number)[1], "pyav")
        assert not finding, f"mutant {number} of seed 0: {finding}"


def test_the_same_seed_makes_the_same_mutant() -> None:
    whole = [CORPUS / "front.mp4", CORPUS / "mp3.mp3"]
    assert mutant(whole, 3, 5) == mutant(whole, 3, 5)
    assert len({mutant(whole, seed, number)[1] for seed in range(3) for number in range(10)}) == 30
