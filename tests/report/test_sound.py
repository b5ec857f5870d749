import io
import math
import wave

import numpy as np
import pytest
import torch
from torch import Tensor
from torchaudio.compliance.kaldi import fbank
from torchaudio.transforms import MelSpectrogram

from mavil.report.sound import Kind, num_samples_of, num_steps_of, spectrogram_to_sound, wav_bytes

KINDS: tuple[Kind, ...] = ("kaldi_hann", "kaldi_povey", "slaney")


def front_end(waveform: Tensor, kind: Kind = "kaldi_hann") -> Tensor:
    """The project's log-mel, as its reference implementation computes it."""
    if kind == "slaney":
        slaney = {"norm": "slaney", "mel_scale": "slaney"}
        mel = MelSpectrogram(16_000, 400, 400, 160, f_min=50.0, f_max=8000.0, n_mels=80, **slaney)
        return (mel(waveform) + torch.finfo(torch.float32).eps).log().T
    waveform = waveform - waveform.mean()
    window = {"kaldi_hann": "hanning", "kaldi_povey": "povey"}[kind]
    return fbank(waveform[None], htk_compat=True, window_type=window, num_mel_bins=128, dither=0.0)


def tone(hz: float, num_samples: int = 16_000) -> Tensor:
    return 0.3 * torch.sin(2 * math.pi * hz * torch.arange(num_samples) / 16_000)


def spectrum_peak_hz(waveform: Tensor) -> float:
    return torch.fft.rfft(waveform).abs().argmax().item() * 16_000 / len(waveform)


@pytest.mark.parametrize(("hz", "kind"), [(440.0, "kaldi_hann"), *((2000.0, kind) for kind in KINDS)])
def test_a_tone_comes_back_at_its_pitch_and_level(hz: float, kind: Kind) -> None:
    sound = spectrogram_to_sound(front_end(tone(hz), kind), num_samples=16_000, spectrogram=kind)
    assert sound.shape == (16_000,)
    assert abs(spectrum_peak_hz(sound) - hz) < 8
    level = sound[2000:-2000].square().mean().sqrt() / tone(hz).square().mean().sqrt()
    assert abs(20 * math.log10(level)) < 0.15


@pytest.mark.parametrize("kind", ["kaldi_hann", "slaney"])
def test_a_click_comes_back_at_its_moment(kind: Kind) -> None:
    waveform = 1e-3 * torch.randn(16_000)
    waveform[9_000:9_080] += 0.5 * torch.randn(80)
    sound = spectrogram_to_sound(front_end(waveform, kind), num_samples=16_000, spectrogram=kind)
    assert abs(sound.abs().argmax().item() - 9_040) < 160


@pytest.mark.parametrize("kind", KINDS)
def test_spectrogram_of_the_sound_resembles_the_spectrogram_it_was_made_of(kind: Kind) -> None:
    # Voice-like: harmonics of 150 Hz that come and go, over faint noise.
    time = torch.arange(16_000) / 16_000
    voice = torch.stack([torch.sin(2 * math.pi * 150 * k * time) / k for k in range(1, 20)]).sum(0)
    wanted = front_end(0.1 * voice * (1 + torch.sin(2 * math.pi * 3 * time)) + 0.003 * torch.randn(16_000), kind)
    made = front_end(spectrogram_to_sound(wanted, spectrogram=kind), kind)
    assert made.shape == wanted.shape
    heard = wanted > wanted.max() - 10
    assert (made - wanted)[heard].abs().mean() < 0.35


def test_padding_beyond_the_clip_is_cut_off() -> None:
    # Zero-padded steps are zeros of the log-mel itself: a roar as loud as full scale.
    log_mel = torch.cat([front_end(tone(440, 8_000)), torch.zeros(60, 128)])
    sound = spectrogram_to_sound(log_mel, num_samples=8_000)
    assert len(sound) == 8_000
    assert sound.abs().max() < 0.6
    assert spectrogram_to_sound(log_mel).abs().max() > 0.6


def test_seed_decides_and_nobody_elses_randomness_is_touched() -> None:
    log_mel = front_end(tone(440, 4_000))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = spectrogram_to_sound(log_mel, seed=1)
    assert torch.rand(1) == expected
    assert torch.equal(first, spectrogram_to_sound(log_mel, seed=1))
    assert not torch.equal(first, spectrogram_to_sound(log_mel, seed=2))


def test_silence_is_silent_and_too_little_is_refused() -> None:
    assert spectrogram_to_sound(front_end(torch.zeros(4_000))).abs().max() < 1e-4
    with pytest.raises(ValueError, match="1 spectrogram steps are too few"):
        spectrogram_to_sound(torch.zeros(50, 128), num_samples=400)


@pytest.mark.parametrize("kind", ["kaldi_hann", "slaney"])
@pytest.mark.parametrize("num_samples", [400, 559, 560, 16_000])
def test_steps_and_samples_agree_with_the_front_end(num_samples: int, kind: Kind) -> None:
    steps = len(front_end(torch.zeros(num_samples), kind))
    assert num_steps_of(num_samples, kind) == steps
    assert num_steps_of(num_samples_of(steps, kind), kind) == steps
    assert num_samples_of(steps, kind) <= num_samples
    assert num_steps_of(0, kind) == 0


def test_wav_holds_sixteen_bit_samples() -> None:
    with wave.open(io.BytesIO(wav_bytes(torch.tensor([0.0, 0.5, -1.0, 3.0])))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16_000)
        assert np.frombuffer(file.readframes(4), "<i2").tolist() == [0, 16384, -32767, 32767]
