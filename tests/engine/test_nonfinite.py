"""What a refused step leaves behind: who is blamed, which clips are kept, and a full disk that hides nothing."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mavil import distributed
from mavil.engine import nonfinite
from mavil.engine.nonfinite import ranks_to_blame, read_batches, read_report, refuse_update
from mavil.engine.process.runtime import random_state
from mavil.structs import Batch, UserError
from tests.support.ranks import run_in_ranks

NAN = float("nan")
FOLDER = "nonfinite_step_00000007"


def batch_of(first: int, num_clips: int = 3, spoilt: int | None = None) -> Batch:
    waveforms = torch.randn(num_clips, 16)
    numbers = range(first, first + num_clips)
    for row, number in enumerate(numbers):
        if number == spoilt:
            waveforms[row, 5] = NAN
    return Batch(
        [f"clip_{n}" for n in numbers],
        torch.arange(first, first + num_clips),
        waveforms,
        torch.full((num_clips,), 16),
        torch.randint(0, 256, (num_clips, 2, 3, 4, 4), dtype=torch.uint8),
        torch.full((num_clips, 2), 4),
        metadata=[{"number": str(n)} for n in numbers],
        position={"anything": 1},
    )


def metrics_of(*totals: float) -> list[dict[str, Tensor | float]]:
    return [{"loss/total": torch.tensor(total), "loss/error": total} for total in totals]


def refuse(run: Path, batches: list[Batch], *totals: float, **changes: Any) -> str:
    loss = sum(totals) / len(totals)
    with pytest.raises(UserError) as caught:
        refuse_update(run, 7, batches, loss, NAN, metrics_of(*totals), **changes)
    return str(caught.value)


def test_the_clips_of_the_step_come_back_as_the_loader_gave_them(tmp_path: Path) -> None:
    batches = [batch_of(0), batch_of(3, spoilt=4)]
    state = random_state(torch.device("cpu"))
    weights = {"layer.weight": torch.randn(2, 2)}
    message = refuse(
        tmp_path, batches, 1.0, NAN, random=state, precision="fp16", loss_scale=8.0, model_state=lambda: weights
    )
    names = "clip_0, clip_1, clip_2, clip_3, clip_4 and 1 more"
    assert "step 7: the loss (nan on rank 0) or its gradient (norm nan) is not finite; nothing was updated" in message
    assert f"Clips: rank 0: {names} (all in {tmp_path / FOLDER}; python tools/replay_step.py {tmp_path} 7)" in message
    assert message.endswith("trainer.precision=bf16 or fp32)")
    report = read_report(tmp_path / FOLDER)
    assert (report["step"], report["blamed"]) == (7, [0])
    assert report["ranks"][0]["clips_with_bad_sound"] == ["clip_4"]
    assert report["ranks"][0]["micro_steps"][1]["loss/error"] == "nan"
    (kept,) = read_batches(tmp_path / FOLDER).values()
    assert (kept["step"], kept["precision"], kept["loss_scale"], kept["num_clips"]) == (7, "fp16", 8.0, [3, 3])
    assert repr(kept["random"]) == repr(state)
    for own, other in zip(batches, kept["batches"], strict=True):
        assert (own.keys, own.metadata) == (other.keys, other.metadata)
        for name in ("seeds", "waveforms", "waveform_lengths", "frames", "frame_sizes"):
            torch.testing.assert_close(getattr(own, name), getattr(other, name), rtol=0, atol=0, equal_nan=True)
    saved = torch.load(tmp_path / FOLDER / "weights.pt", weights_only=True)
    assert torch.equal(saved["layer.weight"], weights["layer.weight"])
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER]


def test_failing_again_at_the_same_step_replaces_the_folder(tmp_path: Path) -> None:
    refuse(tmp_path, [batch_of(0)], NAN, model_state=lambda: {"weight": torch.zeros(1)})
    assert refuse(tmp_path, [batch_of(3)], NAN).endswith("lower optimizer.base_lr")
    assert read_report(tmp_path / FOLDER)["ranks"][0]["keys"] == ["clip_3", "clip_4", "clip_5"]
    assert not (tmp_path / FOLDER / "weights.pt").exists()


def test_too_many_clips_are_cut_to_the_guilty_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip_bytes = 16 * 4 + 8 + 8 + 2 * 3 * 4 * 4 + 2 * 8
    batches = [batch_of(0), batch_of(3), batch_of(6, num_clips=4, spoilt=8)]
    monkeypatch.setattr(nonfinite, "MOST_BYTES", 6 * clip_bytes)
    refuse(tmp_path, batches, 1.0, 1.0, NAN)
    kept = read_batches(tmp_path / FOLDER)[0]
    # The micro-step with the bad loss is kept whole, then what else fits.
    assert [batch.keys for batch in kept["batches"]] == [["clip_0", "clip_1"], ["clip_6", "clip_7", "clip_8", "clip_9"]]
    assert kept["num_clips"] == [3, 4]
    monkeypatch.setattr(nonfinite, "MOST_BYTES", clip_bytes)
    refuse(tmp_path, batches, 1.0, 1.0, NAN)
    kept = read_batches(tmp_path / FOLDER)[0]
    assert [batch.keys for batch in kept["batches"]] == [["clip_8"]]
    assert kept["batches"][0].seeds.tolist() == [8]
    assert (tmp_path / FOLDER / "batch.rank0.pt").stat().st_size < 3000 + clip_bytes


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [OSError, RuntimeError])
def test_a_disk_that_fills_up_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: type[Exception]
) -> None:
    def fail(*_: Any) -> None:
        raise error("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with caplog.at_level(logging.WARNING):
        message = refuse(tmp_path, [batch_of(0)], NAN, model_state=lambda: {"weight": torch.zeros(1)})
    assert "nothing was updated. Clips: rank 0: clip_0, clip_1, clip_2 (all in" in message
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert all("step 7 could not be kept as a whole" in line and "No space left" in line for line in told)
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["report.json"]
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER]


def test_where_nothing_can_be_written_the_message_names_every_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nonfinite, "write_text", full_disk)
    monkeypatch.setattr(torch, "save", full_disk)
    batches = [batch_of(0, num_clips=8)]
    names = ", ".join(batches[0].keys)
    assert f"Clips: rank 0: {names}. Look at these clips" in refuse(tmp_path, batches, NAN)
    assert not list(tmp_path.iterdir())
    assert f"Clips: rank 0: {names}. Look at these clips" in refuse(tmp_path / "gone", batches, NAN)


def test_weights_that_cannot_be_had_hide_nothing(tmp_path: Path) -> None:
    def fail() -> dict[str, Tensor]:
        raise RuntimeError("out of memory")

    assert "nothing was updated" in refuse(tmp_path, [batch_of(0)], NAN, model_state=fail)
    assert (tmp_path / FOLDER / "batch.rank0.pt").exists()


@pytest.mark.parametrize(
    ("terms", "blamed"),
    [
        ([{"loss/a": "nan", "loss/b": "1"}, {"loss/a": "1", "loss/b": "1"}], [0]),
        # A clip of rank 1 spoils what other ranks compare with it, but its own terms more.
        ([{"loss/a": "1", "loss/b": "nan"}, {"loss/a": "inf", "loss/b": "nan"}], [1]),
        ([{"loss/a": "1", "loss/b": "nan"}, {"loss/a": "1", "loss/b": "nan"}], [0, 1]),
        ([{"loss/a": "1"}, {"loss/a": "1"}], [0, 1]),
        ([{"loss/a": "1", "train/scalar": "nan"}, {"loss/a": "-inf"}], [1]),
    ],
)
def test_ranks_with_most_terms_that_are_not_finite_are_blamed(terms: list[dict[str, str]], blamed: list[int]) -> None:
    assert ranks_to_blame([{"micro_steps": [values]} for values in terms]) == blamed


def test_a_folder_of_something_else_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not the folder of a refused step"):
        read_report(tmp_path)
    (tmp_path / "batch.rank0.pt").write_bytes(b"no")
    with pytest.raises(UserError, match=r"batch\.rank0\.pt cannot be read"):
        read_batches(tmp_path)


# Functions below this line run in other processes.


def _refuse_in_rank(run: Path, spoilt_rank: int | None, fails_on: int | None) -> str:
    own = distributed.rank()
    spoilt = 10 * own if own == spoilt_rank else None
    total = NAN if own == spoilt_rank else 1.0
    with pytest.MonkeyPatch.context() as patch:
        if own == fails_on:
            patch.setattr(nonfinite, "_save", full_disk)
        with pytest.raises(UserError) as caught:
            refuse_update(run, 7, [batch_of(10 * own, spoilt=spoilt)], total, NAN, metrics_of(total))
    return str(caught.value)


@pytest.mark.parametrize(("spoilt_rank", "kept"), [(1, [1]), (None, [0, 1])])
def test_only_ranks_to_blame_keep_their_clips(tmp_path: Path, spoilt_rank: int | None, kept: list[int]) -> None:
    messages = run_in_ranks(_refuse_in_rank, tmp_path, spoilt_rank, None)
    for message in messages:
        assert ("rank 1: clip_10, clip_11, clip_12" in message) == (1 in kept)
        assert ("rank 0: clip_0" in message) == (0 in kept)
    assert list(read_batches(tmp_path / FOLDER)) == kept
    assert json.loads((tmp_path / FOLDER / "report.json").read_text())["blamed"] == kept


def test_a_rank_that_cannot_write_does_not_keep_the_others_waiting(tmp_path: Path) -> None:
    messages = run_in_ranks(_refuse_in_rank, tmp_path, 1, 1)
    assert all("nothing was updated. Clips: rank 1: clip_10" in message for message in messages)
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["report.json"]
