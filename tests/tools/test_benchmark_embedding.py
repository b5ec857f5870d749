"""The benchmark of embeddings: that its figures are what they are called; never how fast it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import mavil
from mavil.data.synthetic import make_synthetic_shards
from mavil.embedder.bulk_inputs import AllClips
from mavil.structs import UserError
from tests.support.random_runs import write_run
from tests.support.recipes import tiny_recipe
from tests.tools.conftest import Tool
from tools.benchmarks import embedding
from tools.benchmarks.embedding import DECODE, ENCODE, WHOLE, Job, SomeClips, measure_throughput, measure_variants

TOWERS = {"encoder": {"width": 32, "depth": 2, "num_heads": 2}, "decoder": {"width": 16, "depth": 1, "num_heads": 2}}
AUDIO = {"seconds": 4.0, "num_steps": 400, "num_mel_bins": 32, "mean": -4.0, "std": 4.0, **TOWERS}
VIDEO = {"num_frames": 4, "frames_per_second": 1, "size": 32, "decode_short_side": 32, **TOWERS}
"""A synthetic clip of four seconds is one window of either."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedding")
    make_synthetic_shards(4, folder / "shards", show_progress=False)
    write_run(folder / "run", tiny_recipe(audio=AUDIO, video=VIDEO))
    return folder


@pytest.fixture
def job(place: Path) -> Job:
    clips = SomeClips(list(AllClips([str(place / "shards")]).read(0, 4)))
    return Job(mavil.load(place / "run", device="cpu"), clips, batch=4, workers=0)


def test_rates_count_clips_and_shares_are_of_the_same_round(job: Job) -> None:
    times = iter(np.arange(0.0, 1000.0, 0.5))
    decode, encode, whole = measure_throughput(job._replace(clock=lambda: next(times)), rounds=2)
    assert [row["name"] for row in (decode, encode, whole)] == [DECODE, ENCODE, WHOLE]
    # By this clock everything takes half a second between two looks: all clips, or one batch of the encoders.
    assert decode["rounds"] == whole["rounds"] == [8.0, 8.0]
    assert [len(piece.places) for piece in embedding._decoded_here(job)] == [2, 2, 2, 2]
    assert encode["rounds"] == [4.0, 4.0]
    assert whole["percent_of_decode"] == 100
    assert whole["percent_of_encode"] == 200
    assert whole["percent_of_both"] == pytest.approx(100 * 8 / (8 / 3))


def test_the_clock_starts_when_the_workers_are_at_work(job: Job) -> None:
    now = [0.0]

    def counting() -> Iterator[int]:
        now[0] += 100.0  # processes start
        for done in range(1, 5):
            now[0] += 2.0
            yield done

    assert embedding._rate(job._replace(clock=lambda: now[0]), counting(), ahead=2) == 0.5


def test_too_few_clips_for_the_workers_are_told(job: Job) -> None:
    with pytest.raises(UserError, match="4 clips: more than 8 are needed to measure with 1 workers and batches of 4"):
        measure_throughput(job._replace(workers=1, batch=4), rounds=1)
    # None would be left to tell a rate by, behind those that come with the first batch.
    with pytest.raises(UserError, match="4 clips: more than 20 are needed to measure with 1 workers and batches of 16"):
        measure_throughput(job._replace(workers=1, batch=16), rounds=1)


def test_a_precision_that_loses_recall_is_seen(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second model embeds every clip alike."""
    real = embedding.encoder_of
    broken = mavil.load(job.model.source, device="cpu")

    def encoder_of(model: mavil.Embedder) -> Callable:
        encode = real(model)
        if model is broken:
            return lambda modality, arrays: np.ones_like(encode(modality, arrays))
        return lambda modality, arrays: np.eye(len(arrays), 32, dtype=np.float32)  # sound and picture of a clip alike

    monkeypatch.setattr(embedding, "encoder_of", encoder_of)
    good, bad = measure_variants({"float32": job.model, "alike": broken}, job.clips, 4, rounds=1)
    assert (good["precision"], good["times_as_fast"], good["gallery"]) == ("float32", 1.0, 4)
    assert good["audio_to_video"] == good["video_to_audio"] == 100.0
    assert good["lowest_cosine"] == pytest.approx(1.0, abs=1e-6)
    assert bad["lowest_cosine"] < 0.5
    assert bad["audio_to_video"] == bad["video_to_audio"] == 25.0  # chance among four


def test_the_command_measures_files_and_shards_and_all_precisions(
    place: Path, tool: Callable[[str], Tool], tmp_path: Path
) -> None:
    told = tmp_path / "told.json"
    arguments = [str(place / "run"), str(place / "shards"), "--workers", "0", "--rounds", "1", "--device", "cpu"]
    code, out, err = tool("benchmark")("embed", *arguments, "--json", str(told))
    assert (code, err) == (0, "")
    report = json.loads(told.read_text())
    assert [name.partition(", ")[2] for name in report["throughput"]] == [
        "by the clock, 0 workers",
        "by core time, one process",
    ]
    assert [row["precision"] for row in report["variants"]] == ["float32", "bf16", "int8"]
    assert all(row["gallery"] == 4 and row["lowest_cosine"] > 0.98 for row in report["variants"])
    assert "gallery of 4 clips" in out
    code, _, err = tool("benchmark")("embed", *arguments, "--variants", "int4")
    assert code == 2
    assert "choose of float32, bf16, int8" in err
