"""An exported folder in transformers: the same embeddings, there and back, and only what agrees with its checksum."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import mavil
from mavil.data.spectrogram import AudioFrontEnd
from mavil.structs import UserError
from tests.support.exports import films, random_export, waveforms, written_export

pytest.importorskip("transformers")
from transformers import AutoConfig, AutoModel

from mavil.export.transformers_model import MavilConfig, MavilModel, write_code

KINDS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "projection": (["task.contrast.projection={width: 16}", "task.contrast.pooled_from=fusion_alone"], {}),
    "norms of their own": (["fusion.alone_norms=true"], {}),
    "cls, slaney": (["task.contrast.pooling=cls", "audio.spectrogram=slaney"], {}),
    "classifier": ([], {"task": {"kind": "classify"}}),
    "classifier behind the fusion": ([], {"task": {"kind": "classify", "pooling": "mean"}}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_those_of_mavil_load(tmp_path: Path, kind: str) -> None:
    changes, parts = KINDS[kind]
    folder = written_export(tmp_path / "out", random_export(*changes, **parts))
    model, ours = AutoModel.from_pretrained(folder), mavil.load(folder, device="cpu")
    sound, frames = waveforms(2, ours.recipe), films(2, ours.recipe)
    with torch.no_grad():
        output = model(input_values=sound, pixel_values=frames)
    torch.testing.assert_close(output.audio_embeds, ours.embed_audio(list(sound), 16_000), atol=1e-5, rtol=1e-5)
    expected = ours.embed_video(list(frames.movedim(2, -1)), 4)
    torch.testing.assert_close(output.video_embeds, expected, atol=1e-5, rtol=1e-5)
    assert not model.training


def test_hidden_states_and_inputs_that_are_ready(tmp_path: Path) -> None:
    folder = written_export(tmp_path / "out", random_export())
    model = MavilModel.from_pretrained(folder)
    sound, frames = waveforms(2, model.recipe), films(2, model.recipe)
    front_end = AudioFrontEnd(64, 32, -4.0, 4.5, roll=False, gain=False).eval()
    spectrograms = front_end(sound, torch.full((2,), sound.shape[1]), torch.zeros(2, dtype=torch.long))[:, 0]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        raw, ready = model(sound, frames), model(spectrograms, (frames / 255 - mean) / std)
        (alone, hidden) = model(sound, return_dict=False)
    for name, values in raw.items():
        torch.testing.assert_close(ready[name], values, atol=1e-4, rtol=1e-4)
    assert torch.equal(alone, raw.audio_embeds)
    assert hidden.shape == (2, 9, 32)
    torch.testing.assert_close(torch.nn.functional.normalize(hidden[:, 1:].mean(1), dim=-1), alone)


def test_a_tuned_model_is_saved_as_an_export(tmp_path: Path) -> None:
    folder = written_export(tmp_path / "out", random_export())
    model = AutoModel.from_pretrained(folder).train()
    sound = waveforms(2, model.recipe)
    model(sound).audio_embeds[:, 0].sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad.sign()
        expected = model.eval()(sound).audio_embeds
    assert not torch.allclose(expected, mavil.load(folder, device="cpu").embed_audio(list(sound), 16_000), atol=1e-3)
    model.save_pretrained(tmp_path / "tuned")
    found = mavil.load(tmp_path / "tuned", device="cpu").embed_audio(list(sound), 16_000)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(AutoModel.from_pretrained(tmp_path / "tuned")(sound).audio_embeds, expected)


def test_half_the_memory(tmp_path: Path) -> None:
    folder = written_export(tmp_path / "out", random_export())
    model, whole = AutoModel.from_pretrained(folder, dtype=torch.bfloat16), AutoModel.from_pretrained(folder)
    sound = waveforms(2, model.recipe)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}
    with torch.no_grad():
        similarity = (model(sound).audio_embeds.float() * whole(sound).audio_embeds).sum(-1)
    assert similarity.min() > 0.99


OFFLINE = """
import sys, torch
from transformers import AutoModel
assert not [name for name in sys.modules if name.partition(".")[0] == "mavil"]
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules"), type(model)
with torch.no_grad():
    torch.save(model(torch.load(sys.argv[2])).audio_embeds, sys.argv[3])
model.save_pretrained(sys.argv[4])
"""


def test_a_folder_brings_its_code(tmp_path: Path) -> None:
    folder = written_export(tmp_path / "out", random_export())
    write_code(folder)
    ours = mavil.load(folder, device="cpu")
    sound = waveforms(2, ours.recipe)
    torch.save(sound, tmp_path / "sound.pt")
    places = [folder, tmp_path / "sound.pt", tmp_path / "found.pt", tmp_path / "again"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", OFFLINE, *map(str, places)], check=True, env=environment, cwd=root)
    expected = ours.embed_audio(list(sound), 16_000)
    torch.testing.assert_close(torch.load(places[2]), expected, atol=1e-5, rtol=1e-5)
    assert (places[3] / "modeling_mavil.py").read_text() == (folder / "modeling_mavil.py").read_text()
    assert torch.equal(mavil.load(places[3], device="cpu").embed_audio(list(sound), 16_000), expected)


def test_a_tampered_file_is_refused(tmp_path: Path) -> None:
    folder = written_export(tmp_path / "out", random_export())
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["audio_encoder.cls_token"] += 1
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="SHA-256"):
        AutoModel.from_pretrained(folder)


def test_other_inputs_are_refused(tmp_path: Path) -> None:
    exported = random_export(task={"kind": "classify", "modalities": ["audio"]})
    model = AutoModel.from_pretrained(written_export(tmp_path / "out", exported))
    for inputs, told in (
        ({}, "nothing to embed"),
        ({"input_values": torch.zeros(1, 100)}, "takes waveforms of 10560"),
        ({"input_values": torch.zeros(1, 32, 64)}, r"spectrograms \[B, 64, 32\]"),
        ({"pixel_values": torch.zeros(1, 4, 3, 32, 32)}, "no video"),
    ):
        with pytest.raises(UserError, match=told):
            model(**inputs)
    with pytest.raises(UserError, match="no recipe"):
        MavilModel(MavilConfig())


def test_the_config_alone_makes_a_model(tmp_path: Path) -> None:
    folder = written_export(tmp_path / "out", random_export())
    model = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    assert torch.isfinite(model(waveforms(1, model.recipe)).audio_embeds).all()
