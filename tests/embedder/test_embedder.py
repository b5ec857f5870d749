"""Embeddings against the training graph's, whatever shares a list with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import mavil
from mavil.commands.assemble import load_masked
from mavil.commands.embedding import embed_shards
from mavil.config import Recipe
from mavil.models.tokens import patchify
from mavil.structs import UserError
from tests.embedder.conftest import (
    FPS,
    LONG_AUDIO,
    SHORT_AUDIO,
    MakeModel,
    distance,
    film,
    long_recipe,
    media,
    media_in,
    recipe_of_sound,
    short_recipe,
    sound,
)

PROJECTED = {"kind": "pretrain", "contrast": {"projection": {"hidden_width": 24, "width": 16}}}
FUSED_ALONE = {"kind": "pretrain", "contrast": {"pooled_from": "fusion_alone", "pooling": "cls"}}
STAGE_2 = {"kind": "pretrain", "teacher": {"run": "runs/nowhere"}}
ALONE_NORMS = {"kind": "joint", "alone_norms": True}
RECIPES: dict[str, Recipe] = {
    "plain": long_recipe(),
    "projected": long_recipe(task=PROJECTED),
    "fusion_alone": long_recipe(task=FUSED_ALONE, fusion=ALONE_NORMS),
    "stage_2": long_recipe(task=STAGE_2, fusion={"kind": "bottleneck"}),
    "sound": recipe_of_sound(**LONG_AUDIO),
}


@pytest.mark.parametrize("kind", RECIPES)
def test_a_clip_of_one_window_has_the_embedding_of_the_training_graph(
    kind: str, make_model: MakeModel, clips: Path
) -> None:
    model, files = make_model(RECIPES[kind]), media_in(clips)
    masked, recipe = load_masked(Path(model.source))
    expected = embed_shards(masked, recipe, clips, torch.device("cpu"))
    assert expected.keys == list(files)
    for modality, embed in (("audio", model.embed_audio), ("video", model.embed_video)):
        if modality not in model.modalities:
            continue
        found, wanted = embed(list(files.values())), normalize(getattr(expected, modality), dim=1)
        assert found.shape == (3, model.width[modality])
        assert found.dtype == torch.float32
        assert distance(found, wanted) < 1e-5
        assert distance(found[0], found[1]) > 1e-3  # or everything would agree with everything


@pytest.mark.parametrize("kind", ["joint", "bottleneck", "none"])
def test_both_together_are_the_means_behind_the_fusion_side_by_side(kind: str, make_model: MakeModel) -> None:
    model = make_model(long_recipe(fusion=None if kind == "none" else {"kind": kind}))
    network, clip = model.model, model.reader().open(media())
    inputs = model.encoder.inputs([clip.sample(span) for span in clip.spans()], model.modalities)
    raw = {m: network.encoder(m)(patchify(inputs.of(m), network.grid(m))) for m in model.modalities}
    if network.fusion is None:
        tokens = {m: network.encoder(m).norm(raw[m]) for m in raw}
    else:
        tokens = {m: network.fusion.norm(network.fusion(raw).output(m)) for m in raw}
    halves = [tokens[m][0, 1:].mean(dim=0) for m in ("audio", "video")]
    assert distance(model.embed(media()), normalize(torch.cat(halves), dim=0)) < 1e-5
    assert model.fused_width == 64
    alone = {m: {m: raw[m]} for m in raw}
    for modality, clip_alone, half in (("audio", media(has_picture=False), 0), ("video", media(has_sound=False), 32)):
        found = model.embed(clip_alone, windows=True, normalise=False)
        assert {m: bool(flag.item()) for m, flag in found.present.items()} == {m: m == modality for m in raw}
        if network.fusion is None:
            own = network.encoder(modality).norm(raw[modality])
        else:
            # The other half is there but hidden from everybody: the same as nothing in its place.
            hidden = {m: torch.tensor([m == modality]) for m in raw}
            own = network.fusion.norm(network.fusion(raw, hidden).output(modality))
            passed = network.fusion.norm(network.fusion(alone[modality]).output(modality))
            assert distance(own, passed) < 1e-5
        assert distance(found.values[0, half : half + 32], own[0, 1:].mean(dim=0)) < 1e-4
        assert not found.values[0, 32 - half : 64 - half].any()


def test_norms_that_nobody_trained_are_not_used(make_model: MakeModel) -> None:
    """Sound without pictures in a model that never passed one modality alone: as in a model without such norms."""
    model = make_model(short_recipe(fusion=ALONE_NORMS))
    before = model.embed((sound(), None), rate=16_000)
    assert model.model.fusion is not None
    for norms in model.model.fusion.norms_alone():
        for parameter in norms.parameters():
            parameter.data.fill_(3.0)
    assert distance(model.embed((sound(), None), rate=16_000), before) == 0


@pytest.mark.parametrize("statistics", ["never", "evaluation"])
def test_what_shares_the_list_changes_nothing(statistics: str, make_model: MakeModel) -> None:
    model = make_model(short_recipe(audio={**SHORT_AUDIO, "batch_statistics": statistics}))
    listed: list[Any] = [
        (sound(0), film(0)),
        (sound(1, 0.4), None),
        (None, film(2, 3)),
        (sound(3, 2.2), film(3, 20)),
        (0.01 * sound(4, 0.9), film(4, 32)[:, :40]),
    ]
    together = model.embed(listed, 16_000, FPS, hop_seconds=0.7)
    alone = torch.stack([model.embed(clip, 16_000, FPS, hop_seconds=0.7) for clip in listed])
    assert together.shape == (5, 64)
    assert distance(together, alone) < 1e-5
    mixed = model.embed_audio([media(1), sound(1), media(0)], 16_000)
    assert (
        distance(mixed, torch.stack([model.embed_audio(one, 16_000) for one in (media(1), sound(1), media(0))])) < 1e-5
    )


def test_windows_follow_each_other_and_their_mean_is_the_clip(make_model: MakeModel) -> None:
    model = make_model(short_recipe())
    found = model.embed_audio(sound(0, 3.3), 16_000, windows=True)
    assert torch.allclose(found.starts, torch.tensor([0.0, 1.0, 2.0, 2.3]))
    assert torch.allclose(found.ends, torch.tensor([1.0, 2.0, 3.0, 3.3]))
    for start, row in zip((0, 16_000, 32_000, 36_800), found.values, strict=True):
        assert distance(model.embed_audio(sound()[start : start + 16_000], 16_000), row) < 1e-5
    raw = model.embed_audio(sound(0, 3.3), 16_000, windows=True, normalise=False)
    assert distance(normalize(raw.values, dim=1), found.values) < 1e-6
    assert distance(model.embed_audio(sound(0, 3.3), 16_000, normalise=False), raw.values.mean(dim=0)) < 1e-6
    assert distance(model.embed_audio(sound(0, 3.3), 16_000), normalize(raw.values.mean(dim=0), dim=0)) < 1e-6
    both = model.embed_video([media(), media(1)], windows=True, hop_seconds=1.0)
    assert [list(one.starts) for one in both] == [[0.0, 1.0, 2.0, 3.0, 3.5]] * 2


def test_a_picture_lies_in_the_middle_of_the_longer_sound(make_model: MakeModel) -> None:
    """0.5 s of pictures in each second of sound; behind the end of the sound only pictures are left."""
    model = make_model(short_recipe(fusion=None))
    halves = model.embed((sound(0, 1.5), film()), 16_000, FPS, windows=True, normalise=False)
    assert halves.present["audio"].tolist() == [True, True, False, False]
    assert halves.present["video"].all()
    for number, row in enumerate(halves.values):
        picture = film()[8 * number + 2 : 8 * number + 6]
        assert distance(row[32:], model.embed_video(picture, FPS, normalise=False)) < 1e-4
    assert distance(halves.values[1, :32], model.embed_audio(sound()[16_000:24_000], 16_000, normalise=False)) < 1e-4
    mean = model.embed((sound(0, 1.5), film()), 16_000, FPS, normalise=False)
    expected = torch.cat([halves.values[:2, :32].mean(dim=0), halves.values[:, 32:].mean(dim=0)])
    assert distance(mean, expected) < 1e-5


def test_arrays_and_tensors_come_back_as_asked(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(short_recipe(), output="numpy")
    (tmp_path / "clip.mp4").write_bytes(media())
    found = model.embed_audio(tmp_path / "clip.mp4")
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    again = mavil.load(model.source, device="cpu").embed_audio(str(tmp_path / "clip.mp4"))
    assert isinstance(again, torch.Tensor)
    assert not again.is_inference()  # a probe may be trained on it
    assert distance(found, again) == 0
    windows = model.embed(media(), windows=True)
    assert all(isinstance(values, np.ndarray) for values in (windows.values, windows.starts, windows.present["audio"]))


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_cheap_precision_is_near_and_has_the_same_digest(make_model: MakeModel, precision: str) -> None:
    model = make_model(short_recipe(task=PROJECTED))
    half = mavil.load(model.source, device="cpu", precision=precision)
    found, exact = (m.embed_audio(sound(), 16_000, windows=True).values for m in (half, model))
    assert found.dtype == torch.float32
    assert 0 < distance(found, exact) < 0.03
    assert half.weights_digest == model.weights_digest
    assert len(model.weights_digest) == 64


def test_silence_is_a_sound_and_no_track_is_none(make_model: MakeModel, tmp_path: Path) -> None:
    model, deaf = make_model(short_recipe()), make_model(recipe_of_sound())
    silence = model.embed_audio(torch.zeros(16_000), 16_000)
    assert torch.isfinite(silence).all()
    assert abs(float(silence.norm()) - 1) < 1e-5
    (tmp_path / "mute.mp4").write_bytes(media(has_sound=False))
    with pytest.raises(UserError, match=r"mute\.mp4 has no sound"):
        model.embed_audio([media(), tmp_path / "mute.mp4"])
    with pytest.raises(UserError, match="has no sound"):
        deaf.embed(tmp_path / "mute.mp4")
    with pytest.raises(UserError, match="takes audio only, no pictures"):
        deaf.embed_video(film(), FPS)
    assert deaf.embed(media()).shape == (32,)


def test_bad_input_is_told_by_its_name(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(short_recipe())
    (tmp_path / "broken.mp4").write_bytes(b"this is no film" * 100)
    with pytest.raises(UserError, match=r"broken\.mp4: .*\(undecodable\)"):
        model.embed([media(), tmp_path / "broken.mp4"])
    with pytest.raises(UserError, match=r"gone\.wav: no such file.*\(missing\)"):
        model.embed_audio(str(tmp_path / "gone.wav"))
    with pytest.raises(UserError, match=r"clip 1 of the list: .*0 samples"):
        model.embed_audio([sound(), torch.zeros(0)], 16_000)
    with pytest.raises(UserError, match="an empty list"):
        model.embed_audio([])
    with pytest.raises(
        UserError, match=r"the clip: a Tensor alone does not say what it is: give a path, \(sound, film\)"
    ):
        model.embed(sound(), 16_000)
    with pytest.raises(UserError, match="hop_seconds=0: give the seconds"):
        model.embed_audio(sound(), 16_000, hop_seconds=0)
    with torch.no_grad():
        next(model.model.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="not finite: the model has diverged"):
        model.embed_audio(sound(), 16_000)
