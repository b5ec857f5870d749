"""Spectrograms and frames against torchaudio and torchvision, and independence of the batch."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torchaudio
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from mavil.data.frames import ATTEMPTS, FrameFrontEnd, centre_boxes, random_boxes, resample
from mavil.data.loading.batches import stack_samples
from mavil.data.loading.samples import ClipDecoder
from mavil.data.media import FrameWindow
from mavil.data.prepare import Prepare, prepared
from mavil.data.spectrogram import (
    FLOOR,
    AudioFrontEnd,
    SpectrogramKind,
    log_mel,
    mel_filter_bank,
    num_spectrogram_steps,
)
from mavil.seeds import uniform_draws
from mavil.structs import Batch, Inputs, Sample

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUDIO_MEAN, AUDIO_STD = -4.2677393, 4.5689974


def kaldi(waveform: Tensor) -> Tensor:
    return torchaudio.compliance.kaldi.fbank(
        (waveform - waveform.mean())[None],
        htk_compat=True,
        sample_frequency=16000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )


def ragged_waveforms() -> list[Tensor]:
    seconds = torch.arange(24000) / 16000
    return [
        0.1 * torch.randn(16000),
        torch.sin(2 * math.pi * 440 * seconds)[:13777],
        torch.zeros(5000),
        torch.sin(2 * math.pi * (100 + 900 * seconds) * seconds) * torch.exp(-seconds),
        1e-4 * torch.randn(8321) + 0.5,
        torch.randn(400),
    ]


def some_samples(count: int = 5) -> list[Sample]:
    waveforms = ragged_waveforms()
    sizes = [(40, 56), (30, 24), (64, 64), (33, 80), (90, 41)]
    return [
        Sample(
            key=f"clip{i}",
            seed=1000 + i,
            waveform=waveforms[i],
            frames=torch.randint(0, 256, (2, 3, *sizes[i]), dtype=torch.uint8),
        )
        for i in range(count)
    ]


def front_ends(training: bool) -> Prepare:
    audio = AudioFrontEnd(num_steps=128, num_mel_bins=64, mean=AUDIO_MEAN, std=AUDIO_STD, roll=True, gain=True)
    return Prepare(audio, FrameFrontEnd(32, MEAN, STD, crop_scale=(0.3, 1.0), flip=0.5), training=training)


def test_mel_filter_bank_is_kaldis() -> None:
    for num_mel_bins in (64, 128):
        bank, _ = torchaudio.compliance.kaldi.get_mel_banks(num_mel_bins, 512, 16000.0, 20.0, 0.0, 100.0, -500.0, 1.0)
        torch.testing.assert_close(mel_filter_bank(num_mel_bins)[:, :256], bank, atol=5e-5, rtol=0)
        assert mel_filter_bank(num_mel_bins)[:, 256].eq(0).all()


def test_log_mel_of_a_ragged_batch_is_kaldis_for_each_clip() -> None:
    clips = ragged_waveforms()
    batch = stack_samples([Sample(str(i), i, waveform=clip - clip.mean()) for i, clip in enumerate(clips)], None)
    assert batch.waveforms is not None
    assert batch.waveform_lengths is not None
    out = log_mel(batch.waveforms, batch.waveform_lengths, mel_filter_bank(128))
    for row, clip in zip(out, clips, strict=True):
        expected = kaldi(clip)
        torch.testing.assert_close(row[: len(expected)], expected, atol=2e-3, rtol=0)
        assert row[len(expected) :].eq(0).all()
    assert num_spectrogram_steps(torch.tensor([160000, 80000, 400, 399, 0])).tolist() == [998, 498, 1, 0, 0]


@pytest.mark.parametrize("num_steps", [40, 200])
def test_padding_is_zero_before_normalising(num_steps: int) -> None:
    front_end = AudioFrontEnd(num_steps, 128, AUDIO_MEAN, AUDIO_STD, roll=False, gain=False).eval()
    clip = torch.randn(16000)
    out = front_end(torch.stack([clip, torch.zeros(16000)]), torch.tensor([16000, 300]), torch.tensor([1, 2]))
    assert out.shape == (2, 1, num_steps, 128)
    expected = (kaldi(clip)[:num_steps] - AUDIO_MEAN) / (2 * AUDIO_STD)
    torch.testing.assert_close(out[0, 0, : len(expected)], expected, atol=1e-4, rtol=0)
    pad = -AUDIO_MEAN / (2 * AUDIO_STD)
    torch.testing.assert_close(out[0, 0, len(expected) :], torch.full((num_steps - len(expected), 128), pad))
    torch.testing.assert_close(out[1, 0], torch.full((num_steps, 128), pad))


def test_digital_silence_is_the_floor() -> None:
    out = log_mel(torch.zeros(1, 4000), torch.tensor([4000]), mel_filter_bank(128))
    torch.testing.assert_close(out, torch.full_like(out, math.log(FLOOR)))


def test_gain_is_beta_distributed_around_one() -> None:
    clips, lengths = torch.randn(1, 400).expand(4000, -1), torch.full((4000,), 400)
    front_end = AudioFrontEnd(1, 128, 0.0, 0.5, roll=False, gain=True)  # mean 0, std 1/2: the output is the log energy
    loud = front_end.train()(clips, lengths, torch.arange(4000))[..., 0, 100]
    plain = front_end.eval()(clips[:1], lengths[:1], torch.arange(1))[..., 0, 100]
    gains = ((loud - plain) / 2).exp()
    # Beta(10, 10) + 1/2: mean 1, variance 1/84, between 1/2 and 3/2.
    assert gains.mean().item() == pytest.approx(1.0, abs=0.01)
    assert gains.var().item() == pytest.approx(1 / 84, rel=0.1)
    assert 0.5 < gains.min() < gains.max() < 1.5


def test_gain_and_roll_only_in_training() -> None:
    clip, length, seed = torch.randn(1, 16000), torch.tensor([16000]), torch.tensor([5])
    plain = AudioFrontEnd(64, 128, 0.0, 0.5, roll=False, gain=False).train()(clip, length, seed)
    loud = AudioFrontEnd(64, 128, 0.0, 0.5, roll=False, gain=True).train()(clip, length, seed)
    both = AudioFrontEnd(64, 128, 0.0, 0.5, roll=True, gain=True)
    # A gain adds the same to every log energy (the lowest mel bins are so narrow that some hold no FFT bin: always floor).
    shift = (loud - plain)[..., 40:].flatten()
    torch.testing.assert_close(shift, shift[:1].expand_as(shift), atol=1e-3, rtol=0)
    assert abs(shift[0]) > 1e-3
    assert not torch.allclose(both.train()(clip, length, seed), loud, atol=0.1)
    assert torch.equal(both.eval()(clip, length, seed), plain)


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_crops_are_torchvisions(size: int, is_mirrored: bool) -> None:
    boxes = torch.tensor([[3, 5, 20, 31], [0, 0, 61, 47], [10, 7, 40, 40], [0, 1, 1, 80]])
    sizes = [(40, 56), (61, 47), (64, 64), (33, 81)]
    samples = [
        Sample(str(i), i, frames=torch.randint(0, 256, (2, 3, *s), dtype=torch.uint8)) for i, s in enumerate(sizes)
    ]
    batch = stack_samples(samples, None)
    assert batch.frames is not None
    out = resample(batch.frames, boxes, size, torch.full((4,), is_mirrored))
    for row, sample, box in zip(out, samples, boxes.tolist(), strict=True):
        assert sample.frames is not None
        expected = vision.resized_crop(sample.frames.float(), *box, size=[size, size], antialias=True)
        expected = vision.horizontal_flip(expected) if is_mirrored else expected
        torch.testing.assert_close(row, expected, atol=2e-3, rtol=0)  # of 255


def test_evaluation_takes_the_central_square() -> None:
    samples = some_samples()
    batch = stack_samples(samples, None)
    out = front_ends(training=False)(batch).of("video")
    assert out.shape == (5, 3, 2, 32, 32)
    for row, sample in zip(out, samples, strict=True):
        assert sample.frames is not None
        side = min(sample.frames.shape[-2:])
        square = vision.center_crop(sample.frames, [side, side]).float()
        expected = vision.normalize(vision.resize(square, [32, 32], antialias=True) / 255, list(MEAN), list(STD))
        torch.testing.assert_close(row.transpose(0, 1), expected, atol=1e-4, rtol=0)


def test_random_boxes_lie_in_the_frame_and_keep_the_scale() -> None:
    count = 3000
    sizes = torch.tensor([[240, 320]]).repeat(count, 1)
    boxes = random_boxes(sizes, uniform_draws(torch.arange(count), "crop", 2 * ATTEMPTS + 2), (0.5, 1.0)).double()
    top, left, height, width = boxes.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 240).all()
    assert (left + width <= 320).all()
    share, aspect = height * width / (240 * 320), width / height
    assert 0.49 < share.min() < 0.51
    assert 0.95 < share.max() <= 1
    assert 0.74 < aspect.min() < 0.8
    assert 1.30 < aspect.max() < 1.35
    # Every place is reached, the last row and column included.
    assert (top + height == 240).any()
    assert (left + width == 320).any()
    assert (top == 0).any()


def test_a_frame_in_which_no_box_fits_gives_its_middle() -> None:
    sizes = torch.tensor([[20, 200], [200, 20]])
    boxes = random_boxes(sizes, uniform_draws(torch.arange(2), "crop", 2 * ATTEMPTS + 2), (0.9, 1.0))
    assert boxes.tolist() == [[0, 87, 20, 27], [87, 0, 27, 20]]
    assert centre_boxes(sizes).tolist() == [[0, 90, 20, 20], [90, 0, 20, 20]]


def test_half_of_the_clips_are_mirrored_whole() -> None:
    front_end = FrameFrontEnd(8, (0, 0, 0), (1, 1, 1), crop_scale=(1.0, 1.0), flip=0.5).train()
    ramp = torch.arange(8, dtype=torch.uint8).expand(200, 2, 3, 8, 8)
    out = front_end(ramp, torch.tensor([[8, 8]] * 200), torch.arange(200))
    falls = out[..., 0] > out[..., -1]  # [B, C, T, rows]
    per_clip = falls.flatten(1).float().mean(1)
    assert set(per_clip.tolist()) == {0.0, 1.0}
    assert 70 < per_clip.sum() < 130


@pytest.mark.parametrize("training", [True, False])
def test_a_clip_does_not_depend_on_its_batch(training: bool) -> None:
    samples = some_samples()
    prepare = front_ends(training)
    whole = prepare(stack_samples(samples, None))
    for i, sample in enumerate(samples):
        alone = prepare(stack_samples([sample], None))
        torch.testing.assert_close(alone.of("audio")[0], whole.of("audio")[i], atol=1e-4, rtol=0)
        torch.testing.assert_close(alone.of("video")[0], whole.of("video")[i], atol=1e-5, rtol=0)


def test_same_seeds_same_inputs_other_seeds_other_inputs() -> None:
    batch = stack_samples(some_samples(), None)
    prepare = front_ends(training=True)
    first, second = prepare(batch), prepare(batch)
    batch.seeds = batch.seeds + 1
    other = prepare(batch)
    for modality in ("audio", "video"):
        assert torch.equal(first.of(modality), second.of(modality))
        assert not torch.allclose(first.of(modality), other.of(modality), atol=0.05)


def test_prepare_passes_on_what_belongs_to_the_clips_and_leaves_out_modalities() -> None:
    batch = stack_samples(some_samples(), None)
    batch.targets = torch.eye(5)
    inputs = next(prepared([batch], Prepare(None, FrameFrontEnd(16, MEAN, STD, (1, 1), 0), training=False), "cpu"))
    assert isinstance(inputs, Inputs)
    assert inputs.audio is None
    assert inputs.keys == batch.keys
    assert torch.equal(inputs.seeds, batch.seeds)
    assert inputs.targets is batch.targets


def test_float32_under_autocast() -> None:
    batch = stack_samples(some_samples(), None)
    prepare = front_ends(training=False)
    expected = prepare(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inputs = prepare(batch)
    assert torch.equal(inputs.of("audio"), expected.of("audio"))
    assert torch.equal(inputs.of("video"), expected.of("video"))


def test_a_missing_modality_is_named() -> None:
    with pytest.raises(ValueError, match="no waveforms"):
        front_ends(training=False)(Batch(keys=[], seeds=torch.zeros(0, dtype=torch.int64)))


def incomplete(samples: list[Sample]) -> list[Sample]:
    """Clip 1 without sound, clip 3 without picture."""
    lacking = {1: {"waveform": None}, 3: {"frames": None}}
    return [dataclasses.replace(sample, **lacking.get(i, {})) for i, sample in enumerate(samples)]


@pytest.mark.parametrize("training", [True, False])
def test_absent_modalities_are_zero_and_change_no_other_clip(training: bool) -> None:
    samples = some_samples()
    prepare = front_ends(training)
    whole, gaps = prepare(stack_samples(samples, None)), prepare(stack_samples(incomplete(samples), None))
    assert whole.audio_present is None
    assert whole.video_present is None
    flags = {"audio": gaps.audio_present, "video": gaps.video_present}
    for modality, absent in (("audio", 1), ("video", 3)):
        present = flags[modality]
        assert present is not None
        assert present.tolist() == [row != absent for row in range(5)]
        assert gaps.of(modality)[absent].eq(0).all()
        assert torch.equal(gaps.of(modality)[present], whole.of(modality)[present])
        assert whole.of(modality)[absent].abs().sum() > 0


@pytest.mark.parametrize("training", [True, False])
def test_a_modality_that_no_clip_has_is_zero_in_its_usual_shape(training: bool) -> None:
    decoder = ClipDecoder(1.5, FrameWindow(2, 2.0, 64), 0, training)
    prepare = front_ends(training)
    whole = prepare(stack_samples(some_samples(), None))
    for modality, part in (("audio", "waveform"), ("video", "frames")):
        lacking = [dataclasses.replace(sample, **{part: None}) for sample in some_samples()]
        inputs = prepare(stack_samples(lacking, None, decoder.blanks))
        assert inputs.of(modality).shape == whole.of(modality).shape
        assert inputs.of(modality).eq(0).all()
        present = inputs.audio_present if modality == "audio" else inputs.video_present
        assert present is not None
        assert not present.any()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["kaldi_hann", "kaldi_povey", "slaney"])
def test_the_device_changes_nothing(kind: SpectrogramKind) -> None:
    """With everything that training can do to a clip."""
    batch = stack_samples(incomplete(some_samples()), None)
    batch.targets = torch.eye(5)

    def prepare() -> Prepare:
        audio = AudioFrontEnd(
            *(128, 64, AUDIO_MEAN, AUDIO_STD),
            roll=True,
            gain=True,
            noise=True,
            masked_steps=30,
            masked_mel_bins=9,
            spectrogram=kind,
            batch_statistics="training",
        )
        video = FrameFrontEnd(32, MEAN, STD, crop_scale=(0.3, 1.0), flip=0.5)
        return Prepare(audio, video, training=True, mixup_probability=1.0)

    expected = prepare()(batch)
    inputs = prepare().to("cuda")(batch)
    for modality in ("audio", "video"):
        torch.testing.assert_close(inputs.of(modality).cpu(), expected.of(modality), atol=2e-3, rtol=0)
    assert inputs.targets is not None
    torch.testing.assert_close(inputs.targets.cpu(), expected.targets)
