"""Tokens of layers against the encoder's own, and their times against positions counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mavil
from mavil.embedder import layers
from mavil.models.tokens import patchify
from mavil.structs import UserError
from tests.embedder.conftest import FPS, MakeModel, distance, film, media, short_recipe, sound


def test_layers_are_those_of_the_encoder(make_model: MakeModel) -> None:
    model = make_model(short_recipe())
    found = model.tokens(sound(0, 2.5), "audio", rate=16_000)
    assert found.values.shape == (3, 3, 12, 32)
    assert found.layers == (0, 1, 2)
    encoder, clip = model.model.encoder("audio"), model.reader("audio").open(sound(0, 2.5), rate=16_000)
    spans = clip.spans()
    inputs = model.encoder.inputs([clip.sample(span) for span in spans], ("audio",))
    outputs = torch.stack(list(encoder.layers(patchify(inputs.of("audio"), encoder.grid))), dim=1)
    assert distance(found.values, outputs[:, :, 1:]) < 1e-5
    assert found.cls is not None
    assert distance(found.cls, outputs[:, :, 0]) < 1e-5
    last = model.tokens(sound(0, 2.5), "audio", "last", rate=16_000)
    assert last.layers == (2,)
    assert distance(last.values[:, 0], encoder.norm(outputs[:, 2])[:, 1:]) < 1e-5
    arrays = mavil.load(model.source, device="cpu", output="numpy")
    some = arrays.tokens(sound(0, 2.5), "audio", [2, 0], rate=16_000)
    assert all(isinstance(values, np.ndarray) for values in (some.values, some.cls, some.times, some.starts, some.ends))
    assert distance(some.values, found.values[:, [2, 0]]) == 0
    # A patch of 16 steps of 10 ms: its middle sample is 15 * 80 + 200 of 16,000; two mel bands each.
    middles = [(15 * 80 + 200 + 2560 * column) / 16_000 for column in range(6)]
    assert distance(found.times[0], np.repeat(middles, 2)) < 1e-6
    assert distance(found.times[2] - found.times[0], np.full(12, 1.5)) < 1e-6
    assert found.starts.tolist() == [0.0, 1.0, 1.5]


def test_pictures_have_times_too_and_lie_within_the_sound(make_model: MakeModel) -> None:
    model = make_model(short_recipe())
    alone = model.tokens(film(), "video", rate=None, frames_per_second=FPS)
    assert alone.values.shape == (8, 3, 8, 32)
    # Two tubelets of two frames at 0 and 1/8 s, 2/8 and 3/8 s; four places each.
    assert distance(alone.times[1], 0.5 + np.repeat([0.0625, 0.3125], 4)) < 1e-6
    within = model.tokens((sound(), film()), "video", "last", "fusion", 16_000, FPS)
    assert distance(within.times[1], 1.25 + np.repeat([0.0625, 0.3125], 4)) < 1e-6


def test_tokens_of_the_fusion_have_seen_the_other_modality(make_model: MakeModel) -> None:
    model = make_model(short_recipe())
    both = model.tokens((sound(), film()), "audio", "last", "fusion", 16_000, FPS)
    alone = model.tokens((sound(), None), "audio", "last", "fusion", 16_000)
    assert both.layers == (2,)
    assert distance(both.values, alone.values) > 1e-3
    halves = model.embed((sound(), film()), 16_000, FPS, windows=True, normalise=False)
    assert distance(both.values[:, 0].mean(dim=1), halves.values[:, :32]) < 1e-5
    assert model.tokens((sound(), film()), "audio", "all", "fusion", 16_000, FPS).layers == (1, 2)


def test_what_there_is_not_is_told(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = make_model(short_recipe()), make_model(short_recipe(fusion=None))
    for wrong in (3, -1, [], "first", True):
        with pytest.raises(UserError, match="choose all, last, or numbers from 0 to 2, the blocks of the encoder"):
            model.tokens(sound(), "audio", wrong, rate=16_000)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="numbers from 1 to 2, the blocks of the fusion"):
        model.tokens(media(), "audio", 0, "fusion")
    with pytest.raises(UserError, match="has no fusion"):
        plain.tokens(media(), "audio", "all", "fusion")
    with pytest.raises(UserError, match="of='decoder': choose encoder or fusion"):
        model.tokens(media(), "audio", of="decoder")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="has no audio"):
        model.tokens(media(has_sound=False), "audio", of="fusion")
    monkeypatch.setattr(layers, "LARGEST_BYTES", 1000)
    with pytest.raises(UserError, match="ask for fewer layers"):
        model.tokens(sound(), "audio", rate=16_000)
