"""Graphs of torch.export and AOTInductor: raw waveform or frames in, our embeddings out, for batches of any size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mavil
from mavil.data.spectrogram import AudioFrontEnd, SpectrogramKind
from mavil.export.graphs import FACTS, check_compiler, write_compiled, write_torch_export
from mavil.export.parts import Exported
from mavil.export.waveforms import WaveformFrontEnd, front_end_of
from mavil.structs import UserError
from tests.support.exports import films, random_export, waveforms, written_export

KINDS: tuple[SpectrogramKind, ...] = ("kaldi_hann", "kaldi_povey", "slaney")


def sounds(num_samples: int) -> Tensor:
    """Silence, noise, a loud low tone under which noise is hidden, noise far from zero."""
    seconds = torch.arange(num_samples) / 16_000
    noise = torch.randn(num_samples, generator=torch.Generator().manual_seed(0))
    tone = 0.7 * torch.sin(2 * torch.pi * 50 * seconds)
    return torch.stack([torch.zeros(num_samples), 0.1 * noise, tone + 1e-3 * noise, 0.3 + 0.02 * noise])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_samples", "num_steps"), [(10_560, 64), (10_240, 80), (16_000, 64), (401, 4)])
def test_the_front_end_is_that_of_training(kind: SpectrogramKind, num_samples: int, num_steps: int) -> None:
    # 66 steps' worth for 64, padding behind, more than is looked at, and one window
    theirs = AudioFrontEnd(num_steps, 32, -4.0, 4.5, roll=False, gain=False, spectrogram=kind).eval()
    ours = WaveformFrontEnd(num_samples, num_steps, 32, -4.0, 9.0, kind)
    values = sounds(num_samples)
    lengths, seeds = torch.full((len(values),), num_samples), torch.zeros(len(values), dtype=torch.long)
    expected, found = theirs(values, lengths, seeds), ours(values)
    assert found.shape == expected.shape == (4, 1, num_steps, 32)
    # Single values of a tone's quiet bands differ more: both sums of float32 numbers cancel there, each in its own way.
    torch.testing.assert_close(found[:2], expected[:2], atol=1e-5, rtol=1e-5)
    assert (found - expected).abs().mean() < 1e-5
    assert (found - expected).abs().max() < 1e-3


def test_its_own_statistics_are_those_of_one_clip() -> None:
    theirs = AudioFrontEnd(64, 32, 0.0, 1.0, roll=False, gain=False, batch_statistics="evaluation").eval()
    audio = random_export("audio.batch_statistics=evaluation").recipe.audio
    assert audio is not None
    values = sounds(10_560)[1:]
    each = [theirs(value[None], torch.tensor([10_560]), torch.tensor([0])) for value in values]
    torch.testing.assert_close(front_end_of(audio)(values), torch.cat(each), atol=1e-4, rtol=1e-4)


def test_a_window_that_is_too_short_is_refused() -> None:
    with pytest.raises(UserError, match="at least 400"):
        WaveformFrontEnd(399, 4, 32, 0.0, 1.0)
    with pytest.raises(UserError, match="at least 201"):
        WaveformFrontEnd(200, 4, 32, 0.0, 1.0, "slaney")


@pytest.fixture(scope="module")
def exported() -> Exported:
    return random_export("audio.spectrogram=slaney", "task.contrast.projection={width: 16}")


def test_exported_programs_give_our_embeddings(tmp_path: Path, exported: Exported) -> None:
    ours = mavil.load(written_export(tmp_path / "out", exported), device="cpu")
    assert len(write_torch_export(tmp_path / "graphs", exported, "abc")) == 2
    told = {FACTS: ""}
    audio = torch.export.load(tmp_path / "graphs/audio.pt2", extra_files=told).module()
    video = torch.export.load(tmp_path / "graphs/video.pt2").module()
    about = json.loads(told[FACTS])
    assert (about["sample_rate_hz"], about["window_seconds"], about["weights_sha256"]) == (16_000, 0.66, "abc")
    for num_clips in (1, 3):
        sound, frames = waveforms(num_clips, exported.recipe), films(num_clips, exported.recipe)
        expected = ours.embed_audio(list(sound), 16_000)
        torch.testing.assert_close(audio(sound), expected, atol=1e-5, rtol=1e-5)
        expected = ours.embed_video(list(frames.movedim(2, -1)), 4)
        torch.testing.assert_close(video(frames), expected, atol=1e-5, rtol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "graphs"}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="AOTInductor needs a C++ compiler, and g++ is not there")
def test_a_compiled_program_gives_our_embeddings(tmp_path: Path) -> None:
    exported = random_export("audio.encoder.depth=1", task={"kind": "classify", "modalities": ["audio"]})
    ours = mavil.load(written_export(tmp_path / "out", exported), device="cpu")
    write_compiled(tmp_path / "compiled", exported, "abc")
    audio = torch._inductor.aoti_load_package(str(tmp_path / "compiled/audio.pt2"))
    assert audio.get_metadata()["weights_sha256"] == "abc"
    for num_clips in (1, 3):
        sound = waveforms(num_clips, exported.recipe)
        torch.testing.assert_close(audio(sound), ours.embed_audio(list(sound), 16_000), atol=1e-5, rtol=1e-5)


def test_without_a_compiler_nothing_is_compiled(
    tmp_path: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="no-such-compiler"):
        check_compiler()
    with pytest.raises(UserError, match="no-such-compiler"):
        write_compiled(tmp_path / "compiled", exported, "abc")
    assert not list(tmp_path.iterdir())
