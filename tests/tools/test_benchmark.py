"""The benchmark: that its numbers mean what they say, and that every part of it runs; never how fast this machine is."""

from __future__ import annotations

import json
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from mavil.data.media import FrameWindow, SoundWindow, decode_clip, probe
from mavil.data.stream.shard_set import open_shards
from mavil.structs import UserError
from tools.benchmarks import command, floor
from tools.benchmarks.clips import ClipShape, make_clip, read_clips, write_clips
from tools.benchmarks.rates import FLOOR, Contender, Rate, measure_rates
from tools.benchmarks.waiting import memory_of_workers, wait_share, wait_share_of_recipe

SCRIPT = Path(__file__).parents[2] / "tools" / "benchmark.py"
TINY = ClipShape(seconds=1.2, height=48, width=64, frames_per_second=(8, 10))
WINDOW = FrameWindow(num_frames=2, frames_per_second=2.0, short_side=32)


@pytest.fixture(scope="module")
def clips() -> list[bytes]:
    return [make_clip(number, TINY) for number in range(16)]


@pytest.fixture(scope="module")
def shards(clips: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_clips(folder, clips, TINY.seconds, num_shards=3)
    return folder


@pytest.fixture
def benchmark(
    shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``benchmark("--step-ms", "10")`` -> (exit code, standard output, standard error)."""
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # the script changes the first entry
    monkeypatch.setenv("COLUMNS", "200")
    for name, value in {"AUDIO_SECONDS": 1.0, "WINDOW": WINDOW, "BATCH_SIZE": 4, "SMALL_BATCH_SIZE": 8}.items():
        monkeypatch.setattr(command, name, value)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "loader", *arguments])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        answer = capsys.readouterr()
        return int(caught.value.code or 0), answer.out, answer.err

    return run


def test_clips_are_seeded_and_what_the_shape_says(clips: list[bytes]) -> None:
    info = probe(clips[1])
    assert (info.width, info.height, info.frames_per_second) == (64, 48, 10.0)
    assert info.duration_seconds == pytest.approx(TINY.seconds, abs=0.11)

    def pictures(media: bytes) -> Tensor:
        frames = decode_clip(media, None, FrameWindow(2, 2.0, 48))[1]
        assert frames is not None
        return frames.float()

    first = pictures(clips[1])
    assert (first[0] - first[1]).abs().mean() > 2, "nothing moves"
    assert (first - pictures(make_clip(1, TINY))).abs().mean() < 1
    for other in (clips[3], make_clip(1, TINY, seed=1)):
        assert (first - pictures(other)).abs().mean() > 10


def test_clips_come_back_out_of_their_shards(clips: list[bytes], shards: Path) -> None:
    assert open_shards(shards).index.num_clips == 16
    assert sorted(read_clips(shards, 16)) == sorted(clips)
    assert len(read_clips(shards, 5)) == 5


def test_the_floor_does_the_same_work_as_the_back_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The floor would be unfair if it decoded less: its sound and its pictures are those of the back end."""
    media, sound = make_clip(0, TINY), SoundWindow(0.0, 1.0)
    made: dict[str, list[np.ndarray]] = {"concatenate": [], "stack": []}

    class Kept:
        """numpy, of which the results are kept."""

        def __getattr__(self, name: str) -> Any:
            def call(*arguments: Any, **options: Any) -> np.ndarray:
                made[name].append(getattr(np, name)(*arguments, **options))
                return made[name][-1]

            return call

    monkeypatch.setattr(floor, "np", Kept())
    for start in (0.0, 0.2):
        floor.decode_plainly(media, sound, WINDOW, start)
        waveform, frames = decode_clip(media, sound, FrameWindow(2, 2.0, 48), start)
        assert waveform is not None
        assert frames is not None
        assert np.allclose(made["concatenate"][-1][0][: len(waveform)], waveform.numpy(), atol=1e-6)
        assert np.array_equal(made["stack"][-1].transpose(0, 3, 1, 2), frames.numpy())


def test_percents_are_of_the_floor_of_the_same_round() -> None:
    reference = Rate(FLOOR, by_clock=[10.0, 5.0, 20.0], per_core=[10.0, 20.0, 40.0])
    summary = Rate("other", by_clock=[5.0, 5.0, 5.0], per_core=[5.0, 20.0, 80.0]).summary(reference)
    assert summary["percent_of_floor"] == 100
    assert (summary["percent_of_floor_lowest"], summary["percent_of_floor_highest"]) == (50, 200)
    assert summary["percent_of_floor_by_clock"] == 50
    assert summary["clips_per_second"] == 5
    assert summary["clips_per_second_per_core"] == 20


def test_contenders_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    def contender(name: str) -> Contender:
        return Contender(name, lambda: order.append(name) or 3, set(), bool)  # type: ignore[func-returns-value]

    summaries = measure_rates([contender("a"), contender("b")], num_rounds=2)
    assert order == ["a", "b"] * 3
    assert [len(summary["rounds"]["clips_per_second"]) for summary in summaries] == [2, 2]  # type: ignore[index]


class Batches:
    """A loader that needs ``seconds`` per batch."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __iter__(self) -> Iterator[int]:
        while True:
            time.sleep(self.seconds)
            yield 0


def test_waiting_is_a_share_of_the_time() -> None:
    share = wait_share(Batches(0.03), step_seconds=0.01, num_steps=8)  # type: ignore[arg-type]
    assert 0.6 < share < 0.9
    assert memory_of_workers(Batches(0.0), 4, 40) == []  # type: ignore[arg-type]


def test_everything_is_measured_and_written(
    benchmark: Callable[..., tuple[int, str, str]], shards: Path, tmp_path: Path
) -> None:
    options = [
        "--shards",
        str(shards),
        "--clips",
        "4",
        "--rounds",
        "2",
        "--workers",
        "1",
        "--json",
        str(tmp_path / "r"),
    ]
    options += ["--step-ms", "5", "--steps", "3", "--samples", "160"]
    options += ["--start-up", "--start-up-shards", "20", "--start-up-clips", "16"]
    code, printed, errors = benchmark(*options)
    assert (code, errors) == (0, "")
    report = json.loads((tmp_path / "r").read_text())
    assert set(report) == {"machine", "rates", "bytes_per_clip", "waiting", "memory", "start_up"}
    assert report["machine"]["command"].endswith("--start-up-clips 16")
    rates = {rate["name"]: rate for rate in report["rates"]}
    assert {FLOOR, "decode, pyav", "loader, 0 workers", "loader, 1 worker"} <= set(rates)
    for rate in rates.values():
        mine, theirs = (r["rounds"]["clips_per_second_per_core"] for r in (rate, rates[FLOOR]))
        assert rate["percent_of_floor"] == pytest.approx(100 * median(a / b for a, b in zip(mine, theirs, strict=True)))
        assert all(value > 0 for value in mine)
        assert rate["name"] in printed
    assert 0 < report["bytes_per_clip"]["media"] < report["bytes_per_clip"]["read"]
    assert 0 <= report["waiting"]["share"] < 1
    [worker] = report["memory"]["workers"]
    assert 50 < worker["first_mib"] <= worker["highest_mib"]
    assert worker["drift_percent"] == pytest.approx(100 * (worker["last_mib"] / worker["first_mib"] - 1))
    assert [samples for samples, _ in worker["readings"]] == list(range(8, 161, 8))
    assert report["start_up"]["clips"] == 320
    assert all(seconds > 0 for seconds in report["start_up"]["seconds"].values())


def test_a_recipe_gives_real_steps(shards: Path, tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "configs" / "tiny" / "stage1.yaml"
    assert 0 < wait_share_of_recipe(recipe, shards, num_workers=0, num_steps=2) < 1


def test_mistakes_are_one_line(benchmark: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, _, errors = benchmark("--shards", str(tmp_path / "none"))
    assert code == 2
    assert errors.startswith("benchmark: ")
    assert len(errors.splitlines()) == 1
    write_clips(tmp_path, [b"no media"], 1.0, num_shards=1)
    with pytest.raises(UserError, match="sound and picture"):
        read_clips(tmp_path, 1)
