"""Where models come from, and what is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mavil
from mavil.export import hub
from mavil.features import load_features
from mavil.structs import UserError
from tests.embedder.conftest import FPS, MakeModel, distance, film, media, recipe_of_sound, short_recipe, sound
from tests.support import foreign_weights
from tests.support.random_runs import write_run

PROJECTED = {"kind": "pretrain", "contrast": {"projection": {"hidden_width": 24, "width": 16}}}


def test_importing_the_package_takes_no_torch() -> None:
    code = "import sys, mavil; assert 'torch' not in sys.modules and 'mavil.config' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = mavil.lod  # type: ignore[attr-defined]


@pytest.mark.parametrize("task", [PROJECTED, {"kind": "classify", "modalities": ["audio", "video"]}])
def test_an_export_gives_what_the_run_gives(task: dict[str, Any], make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(short_recipe(task=task))
    model.save_pretrained(tmp_path / "out")
    again = mavil.load(tmp_path / "out")
    assert again.weights_digest == model.weights_digest
    assert mavil.load(tmp_path / "out" / "model.safetensors").weights_digest == model.weights_digest
    assert (again.width, again.fused_width, again.window_seconds) == (
        model.width,
        model.fused_width,
        model.window_seconds,
    )
    assert distance(again.embed(media()), model.embed(media())) == 0
    assert distance(again.embed_video(film(), FPS), model.embed_video(film(), FPS)) == 0
    with torch.no_grad():
        sounds = [load_features(source)(sound(0, 1.5)[None]).values for source in (tmp_path / "out", model.source)]
    assert distance(*sounds) == 0
    with pytest.raises(UserError, match="loaded with changes"):
        mavil.load(model.source, changes=["audio.mean=-5.0"]).exported()
    twice = mavil.Embedder.from_pretrained(tmp_path / "out", precision="bf16", device="cpu")
    assert isinstance(twice, mavil.Embedder)
    assert 0 < distance(twice.embed_audio(sound(), 16_000), model.embed_audio(sound(), 16_000)) < 0.02
    with open(tmp_path / "out" / "model.safetensors", "r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\1\2\3")
    for source in (tmp_path / "out", tmp_path / "out" / "model.safetensors"):
        with pytest.raises(UserError, match="SHA-256"):
            mavil.load(source)
        changed = mavil.load(source, device="cpu", allow_changed=True)
        assert changed.weights_digest != model.weights_digest
    changed.save_pretrained(tmp_path / "anew")
    assert mavil.load(tmp_path / "anew", device="cpu").weights_digest == changed.weights_digest


def test_a_checkpoint_is_chosen_by_its_step(make_model: MakeModel) -> None:
    model = make_model(short_recipe())
    write_run(Path(model.source), model.recipe, step=7, seed=9)
    assert mavil.load(model.source).weights_digest == mavil.load(model.source, checkpoint="7").weights_digest
    with pytest.raises(UserError, match="no checkpoint '3'"):
        mavil.load(model.source, checkpoint="3")


def test_a_public_checkpoint_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "80x48p16x16.pth"
    torch.save({"model": foreign_weights.msm_mae()}, file)
    heads = ["audio.encoder.num_heads=2", "audio.decoder.num_heads=2"]
    model = mavil.load(file, changes=heads)
    assert model.modalities == ("audio",)
    assert model.embed_audio(sound(), 16_000).shape == (32,)
    with pytest.raises(UserError, match="mavil convert"):
        model.save_pretrained(tmp_path / "out")
    torch.save({"model": foreign_weights.msm_mae(), "what": Path("x")}, file)
    with pytest.raises(UserError, match="allow_pickle"):
        mavil.load(file, changes=heads)


def test_an_id_of_the_hub_is_fetched_and_nothing_else_is(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = make_model(recipe_of_sound()), []
    model.save_pretrained(tmp_path / "out")

    def download(repository: str, revision: str | None, **options: Any) -> str:
        asked.append((repository, revision, sorted(options["allow_patterns"])))
        return str(shutil.copytree(tmp_path / "out", tmp_path / "cache", dirs_exist_ok=True))

    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    assert mavil.load("someone/sounds").weights_digest == model.weights_digest
    assert mavil.load("someone/sounds@v1.0").source == "someone/sounds@v1.0"
    files = ["README.md", "config.json", "model.safetensors"]
    assert asked == [("someone/sounds", None, files), ("someone/sounds", "v1.0", files)]
    for absent in ("out/sounds", "someone/sounds.pt", "a/b/c", str(tmp_path / "gone")):
        with pytest.raises(UserError, match="no such folder and no such checkpoint file"):
            mavil.load(absent)
    assert len(asked) == 2

    def offline(*_: Any, **__: Any) -> str:
        raise hub.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(UserError, match="someone/sounds: no such folder or file here, and as a Hub id: ") as told:
        mavil.load("someone/sounds")
    assert "\n" not in str(told.value)


def test_what_cannot_be_loaded_is_told(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(recipe_of_sound())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither a run folder"):
        mavil.load(tmp_path / "empty")
    with pytest.raises(UserError, match="belongs to a run folder"):
        mavil.load(tmp_path / "empty", checkpoint="best")
    with pytest.raises(UserError, match="no model is named"):
        mavil.load("")
    for options in ({"precision": "fp16"}, {"device": "tpu"}, {"output": "jax"}, {"device": "cuda:99"}):
        ((name, value),) = options.items()
        with pytest.raises(UserError, match=f"{name}={value}: "):
            mavil.load(model.source, **options)


def test_int8_is_for_cpus(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_model(short_recipe()).source
    monkeypatch.setattr("mavil.embedder.loading._device", lambda device: torch.device("cuda"))
    with pytest.raises(UserError, match="precision=int8 is for CPUs"):
        mavil.load(source, precision="int8")
