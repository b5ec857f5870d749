"""Front ends: spectrograms, frames and learning rates of the originals against ours, as far as ours offer the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mavil.data.frames import FrameFrontEnd, resample
from mavil.data.mixup import Mixing, mix_waveforms
from mavil.data.spectrogram import AudioFrontEnd, log_mel, mel_filter_bank
from mavil.engine.optim import warmup_cosine
from mavil.models.tokens import sincos_2d, sincos_3d
from tools.parity.checks import TABLE, Checks
from tools.parity.fixture import Key

LOG_MEL, NORMALISED, PIXELS = 2e-3, 5e-4, 1e-5
"""Limits of the absolute difference that the fixtures' authors suggest: near the floor of the logarithm float32 decides."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_BYTE = 255
STEPS_PER_EPOCH = 1000
"""Of a schedule that is stored by epochs and fractions of them."""


def check_cav_mae(checks: Checks) -> None:
    """Log-mel with and without normalisation, padded and cut; the picture behind its resizing."""
    fixture, number = checks.fixture, checks.fixture.number
    wave = fixture.tensor("waveform")
    mean, std = number("mean"), number("std")
    padded = fixture.tensor("fbank_padded_unnormalised")
    log_mels = _log_mel(wave, padded.shape[1])
    checks.exact(("n_real_frames",), len(log_mels))
    _absolute(checks, ("fbank_padded_unnormalised",), _fitted(log_mels, len(padded)), LOG_MEL)
    # Ours divides by twice the deviation, as Audio-MAE does; half of CAV-MAE's therefore is the same.
    for key, length in (("fbank", int(number("target_length"))), ("fbank_cut", int(number("cut_length")))):
        ours = _front_end(wave, length, padded.shape[1], mean, std / 2)
        _absolute(checks, (key,), ours, NORMALISED)
    _check_picture(checks)
    if fixture.has("waveform2"):
        other = fixture.tensor("waveform2")
        for key, first, second in (("fbank_mix", wave, other), ("fbank_mix_swapped", other, wave)):
            mixed = _log_mel(_mixed(first, second, number("mix_lambda")), padded.shape[1])
            _absolute(checks, (f"{key}_unnormalised",), _fitted(mixed, len(padded)), LOG_MEL)


def _check_picture(checks: Checks) -> None:
    """The original resizes with Pillow's bicubic filter, ours with its triangle: only what follows can be compared."""
    fixture = checks.fixture
    size = int(fixture.number("im_res"))
    pixels = fixture.tensor("image_uint8")  # [H, Wd, 3]
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    new = (int(size * width / shorter), int(size * height / shorter))
    resized = np.asarray(Image.fromarray(pixels.numpy()).resize(new, Image.Resampling.BICUBIC))
    frames = torch.from_numpy(resized.copy()).permute(2, 0, 1)[None, None]
    front_end = FrameFrontEnd(size, fixture.get("image_mean"), fixture.get("image_std"), (1.0, 1.0), flip=0.0).eval()
    ours = front_end(frames, torch.tensor([frames.shape[-2:]]), torch.zeros(1, dtype=torch.int64))[0, :, 0]
    _absolute(checks, ("image",), ours, PIXELS, "resized by Pillow (bicubic) first: ours is another filter")


def check_mavil(checks: Checks) -> None:
    """Log-mel of a stereo wave with both kinds of normalisation, resized frames, position tables."""
    _check_mavil_sound(checks)
    if checks.fixture.has("video"):
        for case in checks.fixture.keys("video"):
            _check_frames(checks, case)
        checks.notes.append(
            "video.*.selected_frames: the original counts frames, ours go by their time stamps; not compared"
        )
    fixture = checks.fixture
    number = fixture.number
    times, side, width = (int(number("position_tables", name)) for name in ("t", "grid", "dim"))
    _table(checks, "table_3d", sincos_3d(times, side, side, width))
    rows, columns = fixture.get("position_tables", "rect")
    _table(checks, "table_2d_rect", sincos_2d(rows, columns, width))


def _check_mavil_sound(checks: Checks) -> None:
    fixture, number = checks.fixture, checks.fixture.number
    waves = fixture.tensor("audio", "waveform")
    target, short = int(number("audio", "target_length")), int(number("audio", "short_target_length"))
    mean, std = number("audio", "dataset_mean"), number("audio", "dataset_std")
    frames = int(number("audio", "n_real_frames"))
    mono = waves.mean(dim=0, keepdim=True)
    bins = int(fixture.tensor("audio", "dataset_stats").shape[-1])
    ours = _front_end(mono, target, bins, mean, std)
    _absolute(checks, ("audio", "dataset_stats"), ours[None, :frames], NORMALISED)
    _absolute(checks, ("audio", "dataset_stats_pad_value"), ours[-1, 0], NORMALISED)
    checks.exact(("audio", "shape"), torch.tensor([1, *ours.shape]))
    _absolute(checks, ("audio", "cut_dataset_stats"), _front_end(mono, short, bins, mean, std)[None], NORMALISED)
    remark = "statistics of the clip: computed here, no recipe offers them"
    own = _clip_normalised(_fitted(_log_mel(mono, bins), target))
    _absolute(checks, ("audio", "clip_stats"), own[None, :frames], NORMALISED, remark)
    _absolute(checks, ("audio", "clip_stats_pad_value"), own[-1, 0], NORMALISED, remark)
    cut = _clip_normalised(_fitted(_log_mel(mono, bins), short))
    _absolute(checks, ("audio", "cut_clip_stats"), cut[None], NORMALISED, remark)
    first = _clip_normalised(_fitted(_log_mel(waves[:1], bins), target))
    step = int(number("audio", "channel0_only_row_step"))
    stored = fixture.tensor("audio", "channel0_only_clip_stats")
    _absolute(
        checks, ("audio", "channel0_only_clip_stats"), first[None, ::step][:, : stored.shape[1]], NORMALISED, remark
    )


def _check_frames(checks: Checks, case: str) -> None:
    """Our resampling with the whole frame as its box; in training and evaluation ours cuts a square out instead."""
    fixture = checks.fixture
    frames = fixture.tensor("video", case, "frames_uint8")[fixture.get("video", case, "selected_rows")]
    channels, count, size, _ = fixture.get("video", case, "shape")
    boxes = torch.tensor([[0, 0, *frames.shape[-2:]]])
    resized = resample(frames[None], boxes, size, torch.zeros(1, dtype=torch.bool))[0]  # [T, C, size, size]
    scale = MAX_BYTE * torch.tensor([IMAGENET_MEAN, IMAGENET_STD]).reshape(2, channels, 1, 1)
    ours = ((resized - scale[0]) / scale[1]).transpose(0, 1)  # [C, T, size, size]
    assert ours.shape[1] == count
    index = fixture.tensor("video", case, "pixel_index")
    corner = ours.index_select(2, index).index_select(3, index)
    # Another routine than torchvision's, with weights in float64: relative differences decide, the limit is for the same one.
    remark = "the whole frame as the box; ours cuts a square out"
    checks.compare(("video", case, "antialias"), corner, PIXELS, remark=remark)
    checks.compare(("video", case, "antialias_mean"), ours.mean(dim=(2, 3)), PIXELS)


def check_audio_mae(checks: Checks) -> None:
    """Log-mel, its normalisation for every data set, learning rates."""
    fixture, number = checks.fixture, checks.fixture.number
    wave = fixture.tensor("waveform")
    stored = fixture.tensor("logmel")
    _absolute(checks, ("logmel",), _log_mel(wave, stored.shape[1]), LOG_MEL)
    checks.exact(("n_real_frames",), len(stored))
    for name in [name for name in fixture.content if fixture.has(name, "normalised")]:
        mean, std, length = (number(name, key) for key in ("mean", "std", "target_length"))
        ours = _front_end(wave, int(length), stored.shape[1], mean, std)
        _absolute(checks, (name, "normalised"), ours[None], NORMALISED)
    if fixture.has("logmel_mix"):
        mixed = _log_mel(_mixed(wave, fixture.tensor("waveform2"), number("mix_lambda")), stored.shape[1])
        _absolute(checks, ("logmel_mix",), mixed, LOG_MEL)
    checks.notes.append("stereo: the original takes the first channel, ours the mean of both")
    for name in fixture.keys("lr_schedules"):
        _check_schedule(checks, name)


def _check_schedule(checks: Checks, name: str) -> None:
    settings: dict[str, Any] = checks.fixture.get("lr_schedules", name, "settings")
    pairs = torch.tensor(checks.fixture.get("lr_schedules", name, "epoch_lr"), dtype=torch.float64)
    ours = [
        warmup_cosine(
            round(epoch * STEPS_PER_EPOCH),
            peak=settings["lr"],
            warmup_steps=settings["warmup_epochs"] * STEPS_PER_EPOCH,
            total_steps=settings["epochs"] * STEPS_PER_EPOCH,
            minimum=settings["min_lr"],
        )
        for epoch in pairs[:, 0].tolist()
    ]
    key = f"lr_schedules.{name}.epoch_lr"
    checks.add(key, torch.tensor(ours, dtype=torch.float64), pairs[:, 1], float(settings["lr"]) * TABLE, "absolute")


def _absolute(checks: Checks, key: Key, ours: Tensor, limit: float, remark: str = "") -> None:
    checks.compare(key, ours, limit, rule="absolute", remark=remark)


def _table(checks: Checks, name: str, ours: Tensor) -> None:
    """A table with its row of zeros for CLS."""
    _absolute(checks, ("position_tables", name), F.pad(ours, (0, 0, 1, 0)), TABLE)


def _log_mel(wave: Tensor, num_mel_bins: int) -> Tensor:
    """``[1, L]`` to ``[S, M]``, the mean taken off first."""
    centred = wave - wave.mean(dim=1, keepdim=True)
    return log_mel(centred, torch.tensor([wave.shape[1]]), mel_filter_bank(num_mel_bins))[0]


def _mixed(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Two waves ``[1, L]`` each, the second cut or padded to the first, as training mixes the clips of a batch: ``[1, L]``."""
    lengths = torch.tensor([first.shape[1], second.shape[1]])
    waves = torch.cat([F.pad(wave, (0, int(lengths.max()) - wave.shape[1])) for wave in (first, second)])
    mixing = Mixing(partners=torch.tensor([1, 1]), shares=torch.tensor([share, 1.0]))
    return mix_waveforms(waves, lengths, mixing)[:1, : first.shape[1]]


def _front_end(wave: Tensor, num_steps: int, num_mel_bins: int, mean: float, std: float) -> Tensor:
    """``[1, L]`` to ``[num_steps, M]`` by the front end of evaluation."""
    front_end = AudioFrontEnd(num_steps, num_mel_bins, mean, std, roll=False, gain=False).eval()
    return front_end(wave, torch.tensor([wave.shape[1]]), torch.zeros(1, dtype=torch.int64))[0, 0]


def _fitted(log_mels: Tensor, num_steps: int) -> Tensor:
    """Zero-padded or cut at the end."""
    return F.pad(log_mels[:num_steps], (0, 0, 0, max(0, num_steps - len(log_mels))))


def _clip_normalised(log_mels: Tensor) -> Tensor:
    """By mean and unbiased deviation of the clip, its padding included."""
    return (log_mels - log_mels.mean()) / (2 * log_mels.std())
