"""Statistics of the sound: the numbers themselves, on which clips, that processes change nothing, and whose they are."""

from __future__ import annotations

import io
import json
import logging
import wave
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mavil.data.isolation import Outcome
from mavil.data.media import decode_audio
from mavil.data.shards import measure
from mavil.data.shards.index import read_index
from mavil.data.shards.measure import measure_statistics
from mavil.data.shards.statistics import STATISTICS, LogMel, read_statistics
from mavil.data.spectrogram import AudioFrontEnd, SpectrogramKind, num_spectrogram_steps
from mavil.structs import SAMPLE_RATE, UserError
from tests.data.shard_files import record_bytes, sound_clip, write_folder

BINS = 32
Members = Mapping[str, bytes]


def wav(samples: np.ndarray, rate: int = SAMPLE_RATE) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((samples * 32767).round().astype("<i2").tobytes())
    return file.getvalue()


def clip(key: str, samples: np.ndarray, rate: int = SAMPLE_RATE) -> Members:
    return {"wav": wav(samples, rate), "json": record_bytes(key, len(samples) / rate)}


def tone(hertz: float, seconds: float, loudness: float = 0.3) -> np.ndarray:
    noise = np.random.default_rng(int(hertz)).normal(0, 0.01, int(seconds * SAMPLE_RATE))
    return loudness * np.sin(2 * np.pi * hertz * np.arange(len(noise)) / SAMPLE_RATE) + noise


SOUNDS = {
    f"tone{hertz}": tone(hertz, seconds) for hertz, seconds in ((300, 0.21), (900, 0.4), (2500, 0.13), (5000, 0.3))
}
CLIPS = {key: clip(key, samples) for key, samples in SOUNDS.items()}


def folder_of(folder: Path, clips: Mapping[str, Members], per_shard: int = 2) -> Path:
    folder.mkdir(exist_ok=True)
    keys = list(clips)
    shards = [{key: clips[key] for key in keys[i : i + per_shard]} for i in range(0, len(keys), per_shard)]
    return write_folder(folder, shards)


def measured(folder: Path, bins: int = BINS, **options: Any) -> LogMel:
    found = measure_statistics(folder, num_mel_bins=bins, show_progress=False, **options)
    return found.log_mel[options.get("spectrogram", "kaldi_hann"), bins]


def plain_log_mel(samples: np.ndarray) -> np.ndarray:
    """``[S, M]`` float64, step by step: what Kaldi computes, in as few words as possible."""
    edges = np.linspace(1127 * np.log1p(20 / 700), 1127 * np.log1p(8000 / 700), BINS + 2)
    mel = 1127 * np.log1p(np.arange(257) * SAMPLE_RATE / 512 / 700)
    bank = [np.interp(mel, edges[i : i + 3], [0, 1, 0]) for i in range(BINS)]
    steps = []
    for first in range(0, len(samples) - 399, 160):
        window = samples[first : first + 400] - samples[first : first + 400].mean()
        window = (window - 0.97 * np.append(window[0], window[:-1])) * np.hanning(400)
        steps.append(np.log(np.maximum(bank @ np.abs(np.fft.rfft(window, 512)) ** 2, 2.0**-23)))
    return np.array(steps)


def test_mean_and_deviation_are_those_of_all_true_steps(tmp_path: Path) -> None:
    """Clips of four lengths: neither padding nor the mean of the clips' means would give these numbers."""
    found = measured(folder_of(tmp_path, CLIPS))
    expected = np.concatenate([plain_log_mel((samples * 32767).round() / 32768) for samples in SOUNDS.values()])
    assert found.mean == pytest.approx(expected.mean(), abs=1e-5)
    assert found.std == pytest.approx(expected.std(), abs=1e-5)
    assert (found.num_clips, found.num_silent, found.left_out) == (4, 0, {})
    assert found.seconds == pytest.approx(0.21 + 0.4 + 0.13 + 0.3)
    assert (found.shortest_seconds, found.longest_seconds) == (0.13, 0.4)
    means = [plain_log_mel(samples).mean() for samples in SOUNDS.values()]
    assert abs(found.mean - np.mean(means)) > 1e-3


def test_training_sees_mean_zero_and_deviation_one_half(tmp_path: Path) -> None:
    """A padded batch through the front end with the measured numbers; 1/2 because it divides by twice the deviation."""
    found = measured(folder_of(tmp_path, CLIPS))
    waveforms = [decode_audio(members["wav"], 1.0) for members in CLIPS.values()]
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    front_end = AudioFrontEnd(48, BINS, found.mean, found.std, roll=False, gain=False).eval()
    spectrograms = front_end(padded, lengths, torch.arange(4))[:, 0]
    is_real = torch.arange(48) < num_spectrogram_steps(lengths)[:, None]
    assert spectrograms[is_real].mean().item() == pytest.approx(0, abs=1e-6)
    assert spectrograms[is_real].std(correction=0).item() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("kind", ["kaldi_povey", "slaney"])
def test_each_kind_of_spectrogram_has_numbers_of_its_own(tmp_path: Path, kind: SpectrogramKind) -> None:
    """Those that make its front end's output mean 0 and deviation 1, of the true steps alone."""
    found = measured(folder_of(tmp_path, CLIPS), spectrogram=kind)
    assert found.front_end == (kind, BINS)
    assert abs(found.mean - measured(tmp_path).mean) > 0.01
    total = []
    for members in CLIPS.values():
        waveform = decode_audio(members["wav"], 1.0)
        length = torch.tensor([len(waveform)])
        steps = int(num_spectrogram_steps(length, kind))
        front_end = AudioFrontEnd(
            steps, BINS, found.mean, found.std, roll=False, gain=False, spectrogram=kind, std_factor=1.0
        )
        total.append(front_end.eval()(waveform[None], length, torch.zeros(1, dtype=torch.int64)).flatten())
    assert torch.cat(total).mean().item() == pytest.approx(0, abs=1e-5)
    assert torch.cat(total).std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_files_from_before_there_were_kinds_are_those_of_hann_windows(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, CLIPS)
    before = measured(folder)
    tree = json.loads((folder / STATISTICS).read_text())
    assert tree["log_mel"][0].pop("spectrogram") == "kaldi_hann"
    (folder / STATISTICS).write_text(json.dumps(tree))
    found = read_statistics(folder, read_index(folder))
    assert found is not None
    assert found.log_mel == {("kaldi_hann", BINS): before}


def test_processes_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "CLIPS_PER_BLOCK", 2)
    folder = folder_of(tmp_path, {f"noise{n}": sound_clip(f"noise{n}", 0.1 + 0.01 * n) for n in range(9)}, per_shard=3)
    alone = measured(folder)
    text = (folder / STATISTICS).read_bytes()
    assert measured(folder, workers=2) == alone
    assert (folder / STATISTICS).read_bytes() == text
    assert alone.num_clips == 9


def test_the_number_of_threads_changes_nothing_and_is_left_alone(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, CLIPS)
    on_one = measured(folder)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert measured(folder) == on_one
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_silence_counts_and_what_has_no_sound_does_not(tmp_path: Path) -> None:
    odd = {
        "silent": clip("silent", np.zeros(1600)),
        "slow": clip("slow", tone(200, 0.2), rate=8000),
        "garbage": {"wav": b"no media" * 99, "json": record_bytes("garbage")},
        "nothing": {"json": record_bytes("nothing")},
        "short": clip("short", tone(300, 0.02)),
    }
    found = measured(folder_of(tmp_path, {**CLIPS, **odd}))
    assert found.num_clips == 6
    assert found.num_silent == 1
    assert found.sample_rates == {"8000": 1, "16000": 5}
    assert found.left_out == {"empty": 1, "too_short": 1, "undecodable": 1}
    louder = measured(folder_of(tmp_path / "audible", {**CLIPS, "slow": odd["slow"]}))
    steps = [int(num_spectrogram_steps(torch.tensor(n))) for n in (*map(len, SOUNDS.values()), 2 * len(tone(200, 0.2)))]
    silent_steps = int(num_spectrogram_steps(torch.tensor(1600)))
    expected = (louder.mean * sum(steps) + np.log(2.0**-23) * silent_steps) / (sum(steps) + silent_steps)
    assert found.mean == pytest.approx(expected, abs=1e-6)


def test_a_shard_that_breaks_off_costs_the_clips_behind_the_break(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, CLIPS, per_shard=4)
    shard = folder / "000000.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    found = measured(folder)
    assert 0 < found.num_clips < 4
    assert found.left_out == {"undecodable": 4 - found.num_clips}


@pytest.mark.parametrize(
    ("members", "message"),
    [(clip("a", np.zeros(3200)), "silent"), ({"wav": b"x" * 99, "json": b"{}"}, "no clip has sound.*undecodable 1")],
)
def test_sound_that_gives_no_numbers_is_refused(tmp_path: Path, members: Members, message: str) -> None:
    folder = folder_of(tmp_path, {"a": members})
    with pytest.raises(UserError, match=message):
        measured(folder)
    assert not (folder / STATISTICS).exists()


def test_a_draw_depends_on_its_seed_and_says_so(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path, {f"noise{n}": clip(f"noise{n}", tone(100 + 50 * n, 0.1)) for n in range(12)}, per_shard=5
    )
    one, again, other = (measured(folder, clips=3, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert (one.num_clips, one.drawn, one.seed) == (3, 3, 1)
    assert one.mean != other.mean
    everything = measured(folder, clips=12)
    assert everything == measured(folder)
    assert everything.drawn is None


def test_a_clip_that_kills_its_process_costs_itself_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "all", CLIPS, per_shard=4)
    whole = len(CLIPS["tone900"]["wav"])

    def dying(function: Callable, items: Iterable, **_options: object) -> Iterator[Outcome]:
        for item in items:
            is_fatal = any(size == whole for _, size in item.places.tolist())
            yield Outcome(item, None, "killed") if is_fatal else Outcome(item, function(item))

    with monkeypatch.context() as patch:
        patch.setattr(measure, "map_isolated", dying)
        found = measured(folder)
    assert found.left_out == {"killed": 1}
    others = measured(folder_of(tmp_path / "others", {key: c for key, c in CLIPS.items() if key != "tone900"}))
    assert (found.mean, found.std) == pytest.approx((others.mean, others.std), rel=1e-12)
    assert found.num_clips == 3


def test_what_is_written_reads_back_beside_other_front_ends(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"a": sound_clip("a", labels=("dog",)), "b": sound_clip("b", labels=("cat", "dog"))})
    index = read_index(folder)
    assert read_statistics(folder, index) is None
    first = measured(folder, bins=16)
    second = measured(folder, bins=32)
    third = measured(folder, bins=32, spectrogram="slaney")
    found = read_statistics(folder, index)
    assert found is not None
    assert found.log_mel == {("kaldi_hann", 16): first, ("kaldi_hann", 32): second, ("slaney", 32): third}
    assert found.label_counts == {"dog": 2, "cat": 1}
    assert not list(folder.glob("*.tmp"))


def test_statistics_of_other_shards_are_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(tmp_path, CLIPS)
    measured(folder, bins=16)
    folder_of(folder, {"other": sound_clip("other", 0.2)})
    with caplog.at_level(logging.WARNING):
        assert read_statistics(folder, read_index(folder)) is None
    assert "stats.json is ignored" in caplog.text
    assert "mavil shards stats" in caplog.text
    caplog.clear()
    new = measured(folder)
    found = read_statistics(folder, read_index(folder))
    assert found is not None
    assert found.log_mel == {("kaldi_hann", BINS): new}, "numbers of the old shards must not come along"
    assert not caplog.records


@pytest.mark.parametrize("text", ["", "[]", '{"format_version": 99}', '{"format_version": 1, "log_mel": [{}]}'])
def test_a_damaged_file_is_told_and_can_be_measured_anew(tmp_path: Path, text: str) -> None:
    folder = folder_of(tmp_path, {"a": sound_clip("a")})
    (folder / STATISTICS).write_text(text)
    with pytest.raises(UserError, match=r"stats\.json: damaged .*mavil shards stats"):
        read_statistics(folder, read_index(folder))
    measured(folder)
    assert json.loads((folder / STATISTICS).read_text())["log_mel"][0]["num_clips"] == 1


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"a": sound_clip("a")})
    (folder / f"{STATISTICS}.tmp").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        measured(folder)
