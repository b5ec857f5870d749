"""What a fine-tuned classifier pools is what is embedded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mavil
from mavil.engine.checkpoints.reading import load_weights
from mavil.models.build import build_classifier
from mavil.models.tokens import patchify
from mavil.models.weights import load_parts
from tests.embedder.conftest import MakeModel, distance, media, short_recipe

ALONE_NORMS = {"kind": "joint", "alone_norms": True}
TASKS: dict[str, dict[str, Any]] = {
    "concatenate": {"modalities": ["audio", "video"]},
    "concatenate_alone": {"modalities": ["audio"]},
    "mean": {"modalities": ["audio", "video"], "pooling": "mean"},
    "mean_alone": {"modalities": ["video"], "pooling": "mean"},
    "separate": {"modalities": ["audio", "video"], "heads": "separate"},
}


@pytest.mark.parametrize("kind", TASKS)
def test_a_classifier_embeds_what_its_heads_pool(kind: str, make_model: MakeModel) -> None:
    fusion = None if kind == "separate" else ALONE_NORMS
    recipe = short_recipe(task={"kind": "classify", **TASKS[kind]}, fusion=fusion)
    model = make_model(recipe)
    classifier = build_classifier(recipe, 3).eval()
    load_parts(classifier.parts(), load_weights(model.source), "the run")
    embedders = {"audio": model.embed_audio, "video": model.embed_video}
    for shown in {model.modalities, *((m,) for m in model.modalities)}:
        clip = model.reader(shown[0] if len(shown) == 1 else None).open(media())
        sample = clip.sample(clip.spans()[0])
        inputs = model.encoder.inputs([sample], shown)
        with torch.no_grad():
            features = classifier.features({m: patchify(inputs.of(m), classifier.grids()[m]) for m in shown})
        halves = model.encoder.embed([sample], joint=True)[0]
        if kind == "mean":
            counts = {m: classifier.grids()[m].num_tokens for m in shown}
            pooled = sum(counts[m] * halves[m] for m in shown) / sum(counts.values())
            assert distance(features["joint"][0], pooled) < 1e-5
        elif kind == "separate":
            assert all(distance(features[m][0], halves[m]) < 1e-5 for m in shown)
        else:
            zeros = torch.zeros(32)
            own = torch.cat([halves.get(m, zeros) for m in model.modalities])
            assert distance(features["joint"][0], own) < 1e-5
        if kind.endswith("_alone"):
            found = embedders[shown[0]](media(), windows=True, normalise=False)
            assert distance(found.values[0], features["joint"][0]) < 1e-5


def test_the_digest_is_of_weights_and_of_what_they_look_at(make_model: MakeModel) -> None:
    model = make_model(short_recipe())
    same, other = mavil.load(model.source), mavil.load(model.source, changes=["audio.mean=-5.0"])
    assert same.weights_digest == model.weights_digest
    assert other.weights_digest != model.weights_digest
    with torch.no_grad():
        next(same.model.encoder("video").parameters()).add_(1e-3)
    del same.__dict__["weights_digest"]
    assert same.weights_digest != model.weights_digest
