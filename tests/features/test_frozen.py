"""Frozen encoders against the encoder's own layers, written out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch

from mavil.commands.assemble import load_masked
from mavil.config import Recipe
from mavil.features.frozen import FrozenEncoders, FrozenOptions, load_frozen, recipe_of
from mavil.models.encoder import Encoder
from mavil.models.tokens import patchify
from mavil.structs import Modality, UserError
from tests.features.conftest import audio_recipe
from tests.support.recipes import random_inputs, tiny_recipe

BOTH: tuple[Modality, ...] = ("audio", "video")
MakeRun = Callable[[Recipe], Path]


def frozen_of(
    run: Path, layer: str = "last", pooling: str = "mean", modalities: tuple[Modality, ...] = BOTH
) -> FrozenEncoders:
    return load_frozen(run, recipe_of(run, []), modalities, FrozenOptions(layer, pooling))


def test_layers_and_poolings_are_those_of_the_encoder(make_run: MakeRun) -> None:
    run, inputs = make_run(tiny_recipe()), random_inputs(3)
    frozen = frozen_of(run)
    for modality in BOTH:
        encoder = cast(Encoder, frozen.encoders[modality])
        with torch.no_grad():
            outputs = list(encoder.layers(patchify(inputs.of(modality), encoder.grid)))
        expected = {"0": outputs[0], "1": outputs[1], "2": outputs[2], "last": encoder.norm(outputs[2])}
        expected["mean_of_last:2"] = (encoder.norm(outputs[1]) + encoder.norm(outputs[2])) / 2
        for layer, tokens in expected.items():
            found = frozen_of(run, layer, "mean+cls")(inputs, has_tokens=True)
            wanted = torch.cat([tokens[:, 1:].mean(dim=1), tokens[:, 0]], dim=1)
            assert torch.allclose(found[modality], wanted, atol=1e-6), layer
            stored = found[f"{modality}_tokens"]
            assert stored.dtype == torch.float16
            assert torch.allclose(stored.float(), tokens[:, 1:], atol=2e-3)
        assert torch.equal(frozen_of(run, pooling="cls")(inputs, False)[modality], expected["last"][:, 0])


def test_the_default_is_what_retrieval_compares_and_needs_no_batch_mates(make_run: MakeRun) -> None:
    run, inputs = make_run(tiny_recipe()), random_inputs(4)
    found = frozen_of(run)(inputs, False)
    assert set(found) == set(BOTH)
    model, _ = load_masked(run)
    for modality in BOTH:
        with torch.no_grad():
            embedded = model.embed(modality, patchify(inputs.of(modality), model.grid(modality)))
        assert torch.allclose(found[modality], embedded, atol=1e-6)
    alone = frozen_of(run)(random_inputs(1), False)
    assert torch.allclose(alone["video"], found["video"][:1], atol=1e-6)


def test_a_classifier_has_no_norm_behind_its_blocks(make_run: MakeRun) -> None:
    task = {"kind": "classify", "modalities": ["audio"]}
    run = make_run(audio_recipe(task=task))
    inputs = random_inputs(2)
    frozen = frozen_of(run, modalities=("audio",))
    assert torch.equal(
        frozen(inputs, False)["audio"], frozen_of(run, "2", modalities=("audio",))(inputs, False)["audio"]
    )
    assert frozen.identity()["norm"] == {"audio": False}


def test_the_size_is_known_beforehand(make_run: MakeRun) -> None:
    frozen = frozen_of(make_run(tiny_recipe()), pooling="mean+cls")
    found = frozen(random_inputs(1), True)
    assert frozen.bytes_per_clip(True) == sum(values.nbytes for values in found.values())
    assert frozen.bytes_per_clip(False) == found["audio"].nbytes + found["video"].nbytes


def test_a_control_is_drawn_by_the_seed_and_is_not_the_run(make_run: MakeRun) -> None:
    run = make_run(tiny_recipe())
    recipe = recipe_of(run, [])
    digests = [
        load_frozen(run, one, BOTH, FrozenOptions(), is_random=is_random).identity()["weights"]
        for one, is_random in ((recipe, False), (recipe, True), (recipe, True), (recipe_of(run, ["seed=1"]), True))
    ]
    assert digests[1] == digests[2]
    assert len(set(digests)) == 3


def test_what_an_encoder_cannot_give_is_told(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(audio_recipe("frames"))
    for pooling in ("cls", "mean+cls"):
        with pytest.raises(UserError, match="has no CLS token: use --pooling mean"):
            frozen_of(run, pooling=pooling, modalities=("audio",))
    with pytest.raises(UserError, match="--pooling max: write mean, cls or mean"):
        FrozenOptions(pooling="max")
    with pytest.raises(UserError, match="mean_of_last:9: the audio encoder has 2 blocks"):
        frozen_of(run, "mean_of_last:9", modalities=("audio",))
    with pytest.raises(UserError, match="not a run folder"):
        recipe_of(tmp_path, [])
    frozen = frozen_of(run, modalities=("audio",))
    with torch.no_grad():
        next(frozen.encoders["audio"].parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="audio features of layer last are not finite"):
        frozen(random_inputs(1), False)
