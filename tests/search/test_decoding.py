from __future__ import annotations

import os
import time
import wave
from pathlib import Path

import numpy as np
import pytest

from mavil.search.decoding import DecodedQuery, QueryDecoder, Wanted, decode_query
from mavil.structs import UserError
from tests.support.stored_embeddings import searchable

WANTED = Wanted(("audio", "video"), 60.0, 4.0, 32)


def write_wav(path: Path, seconds: float, level: float = 0.3) -> Path:
    samples = level * np.sin(2 * np.pi * 440 * np.arange(round(8000 * seconds)) / 8000)
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes((32767 * samples).astype("<i2").tobytes())
    return path


def test_a_film_is_decoded_whole_and_a_long_one_is_cut() -> None:
    path = str(searchable().files[0])
    whole = decode_query(path, WANTED)
    assert whole.sound is not None
    assert whole.frames is not None
    assert len(whole.sound) / 16000 == pytest.approx(4.0, abs=0.05)
    assert whole.frames.shape == (16, 32, 32, 3)
    assert (whole.problems, whole.cut) == ({}, {})
    cut = decode_query(path, Wanted(("audio", "video"), 1.5, 4.0, 32))
    assert cut.cut == {"audio": 1.5, "video": 1.5}
    assert cut.sound is not None
    assert cut.frames is not None
    assert len(cut.sound) == 24000
    np.testing.assert_array_equal(cut.frames, whole.frames[:6])
    np.testing.assert_allclose(cut.sound, whole.sound[:24000], atol=1e-6)


def test_frames_are_cut_to_what_memory_is_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mavil.search.decoding.MOST_FRAME_BYTES", 5 * 32 * 32 * 3)
    cut = decode_query(str(searchable().files[0]), WANTED)
    assert cut.frames is not None
    assert len(cut.frames) == 5
    assert cut.cut == {"video": 1.25}


def test_hours_of_sound_cost_no_more_than_what_is_looked_at(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "long.wav", 1.0)
    with path.open("r+b") as file:  # ten hours of silence behind it, which no disk has to hold
        size = 2 * 8000 * 36000
        file.seek(4)
        file.write((size + 36).to_bytes(4, "little"))
        file.seek(40)
        file.write(size.to_bytes(4, "little"))
        file.truncate(44 + size)
    begin = time.process_time()
    decoded = decode_query(str(path), Wanted(("audio", "video"), 10.0, 4.0, 32))
    assert time.process_time() - begin < 2
    assert decoded.sound is not None
    assert len(decoded.sound) == 160_000
    assert decoded.cut == {"audio": 10.0}
    assert decoded.problems == {"video": "the file has no picture track"}


def misbehave(path: str, wanted: Wanted) -> DecodedQuery:
    kind = Path(path).stem
    if kind == "hangs":
        time.sleep(60)
    if kind == "dies":
        os.abort()
    if kind == "swallows":
        return DecodedQuery(np.ones(2**28))  # 2 GiB
    return decode_query(path, wanted)


def test_a_decoder_that_hangs_dies_or_swallows_memory_costs_one_query(tmp_path: Path) -> None:
    reasons = {"dies": "crashed", "swallows": "too much memory", "hangs": "takes longer than 3 s"}
    good = write_wav(tmp_path / "good.wav", 1.0)
    with QueryDecoder(deadline_seconds=3.0, memory_bytes=2**29, function=misbehave) as decoder:
        for kind, reason in reasons.items():
            with pytest.raises(UserError, match=f"query: .*{reason}"):
                decoder.decode(tmp_path / f"{kind}.wav", WANTED, "query")
            assert decoder.decode(good, WANTED, "good").has("audio")


def test_what_cannot_be_used_is_said_in_one_line(tmp_path: Path) -> None:
    sound, text, empty = write_wav(tmp_path / "a.wav", 0.5), tmp_path / "b.mp4", tmp_path / "c.wav"
    text.write_text("not a film " * 1000)
    empty.write_bytes(b"")
    with QueryDecoder() as decoder:

        def told(path: Path, wanted: Wanted = WANTED) -> str:
            with pytest.raises(UserError) as caught:
                decoder.decode(path, wanted, "query")
            assert str(tmp_path) not in str(caught.value)
            return str(caught.value)

        assert told(sound, Wanted(("video",), 60.0, 4.0, 32)).startswith(
            "query: the file has no picture track, and only"
        )
        assert told(text).startswith("query: it cannot be decoded (Invalid data")
        assert "cannot be decoded" in told(empty)
        assert "the sound track has no samples" in told(write_wav(tmp_path / "none.wav", 0.0))  # 0 s
