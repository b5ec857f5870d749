"""MAViL: the inference copy inside AV-SUPERB, pre-trained, with one head for both modalities or one for each."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from mavil.models.classifier import Classifier
from mavil.models.encoder import Encoder
from mavil.models.fusion import JointFusion
from mavil.models.masking import random_masking, structured_masking
from mavil.models.tokens import patchify
from mavil.structs import MODALITIES, Modality, TokenGrid
from tools.parity.building import Weights, at, bce, build_encoder, stack_of
from tools.parity.checks import FEATURES, LOSS, Checks

Tokens = dict[Modality, Tensor]


class Model:
    """Both encoders, the fusion and the heads that a file has, with its weights and inputs."""

    def __init__(self, checks: Checks) -> None:
        config: dict[str, Any] = checks.fixture.get("config")
        audio = TokenGrid.of(tuple(config["audio_size"]), tuple(config["audio_patch"]), 1)
        size = (int(config["video_frames"]), *config["video_size"])
        video = TokenGrid.of(size, tuple(config["video_tubelet"]), int(config["in_chans"]))
        self.encoders: dict[Modality, Encoder] = {
            "audio": build_encoder(audio, stack_of(config, "audio_blocks")),
            "video": build_encoder(video, stack_of(config, "video_blocks")),
        }
        self.fusion = JointFusion(stack_of(config, "fusion_blocks")) if config["fusion_blocks"] else None
        parts: dict[str, nn.Module] = {f"{m}_encoder": encoder for m, encoder in self.encoders.items()}
        if self.fusion is not None:
            parts["fusion"] = self.fusion
        self.classifier: Classifier | None = None
        if config["head"] != "pretrained":
            heads = "joint" if config["head"] == "av" else "separate"
            self.classifier = Classifier(self.encoders, self.fusion, int(config["num_classes"]), heads=heads)  # type: ignore[arg-type]
            parts = self.classifier.parts()
        self.weights = Weights(checks)
        self.weights.fill(parts)
        # Frames beyond the model's number are cut off, as the original does.
        inputs = {"audio": checks.input("inputs", "audio"), "video": checks.input("inputs", "video")[:, :, : size[0]]}
        self.patches: Tokens = {m: patchify(inputs[m], self.encoders[m].grid) for m in MODALITIES}


def check(checks: Checks) -> None:
    """Features after every block, scores, pooled features, gradients, and the masked forward of fine-tuning."""
    model = Model(checks)
    with torch.no_grad():
        encoded = _check_encoders(checks, model)
        if model.fusion is not None:
            _check_fusion(checks, model, encoded)
    if model.classifier is not None:
        _check_heads(checks, model, model.classifier)
        if checks.fixture.has("masked"):
            _check_masked(checks, model, model.classifier)


def _check_encoders(checks: Checks, model: Model) -> Tokens:
    """What the encoders put out ``[B, 1 + N, D]``, CLS first."""
    encoded: Tokens = {}
    for modality, encoder in model.encoders.items():
        layers = list(encoder.layers(model.patches[modality]))
        patches = torch.stack(layers)[:, :, encoder.num_prefix :]
        checks.compare(("features", modality), patches.mean(dim=2), FEATURES, f64=("f64", modality))
        index = checks.fixture.tensor("features", f"{modality}_token_index")
        checks.compare(("features", f"{modality}_tokens"), at(patches, index), FEATURES)
        encoded[modality] = layers[-1]
    return encoded


def _check_fusion(checks: Checks, model: Model, encoded: Tokens) -> None:
    assert model.fusion is not None
    layers = model.fusion(encoded).layers
    both = {m: torch.stack([encoded[m], *layers[m]]) for m in MODALITIES}  # [1 + blocks, B, 1 + N, D]
    means = torch.cat([both[m][:, :, model.encoders[m].num_prefix :].mean(dim=2) for m in MODALITIES], dim=-1)
    if model.classifier is not None:
        # In files with a joint head the last entry has passed the head's norm.
        normed = model.classifier.get_submodule("fc_norm")(means[-1:])
        means = torch.cat([means[:-1], normed])
    checks.compare(("features", "fusion"), means, FEATURES, f64=("f64", "fusion"))
    joint = torch.cat([both[m] for m in MODALITIES], dim=2)
    index = checks.fixture.tensor("features", "fusion_token_index")
    checks.compare(("features", "fusion_tokens"), at(joint, index), FEATURES)


def _letter(output: str) -> str:
    """What the originals call an output of ours."""
    return "av" if output == "joint" else output[0]


def _check_heads(checks: Checks, model: Model, classifier: Classifier) -> None:
    scores = classifier(model.patches)
    targets = checks.input("inputs", "targets")
    with torch.no_grad():
        for output, values in classifier.features(model.patches).items():
            norm = classifier.get_submodule("fc_norm" if output == "joint" else f"{output}_fc_norm")
            letter = _letter(output)
            checks.compare(("logits", f"logits_{letter}"), scores[output], FEATURES, f64=("f64", f"logits_{letter}"))
            checks.compare((f"pooled_{letter}",), norm(values), FEATURES)
        if checks.fixture.has("audio_only_pooled"):
            alone = classifier.features({"audio": model.patches["audio"]})["audio"]
            normed = classifier.get_submodule("audio_fc_norm")(alone)
            checks.compare(("audio_only_pooled",), normed, FEATURES)
    loss = torch.stack([bce(values, targets) for values in scores.values()]).sum()
    checks.compare(("bce",), loss, LOSS)
    model.weights.forget_gradients()
    loss.backward()
    checks.gradients(("grad_norms",), model.weights.gradient_norms(), ("params_without_grad",))


def _check_masked(checks: Checks, model: Model, classifier: Classifier) -> None:
    """Time and frequency masks on sound, random ones on pictures; scores from what is left."""
    grids = {m: encoder.grid for m, encoder in model.encoders.items()}
    shares = [1.0 - checks.fixture.number("masked", f"mask_{which}_prob") for which in ("t", "f", "v")]
    noise = [checks.fixture.tensor("masked", f"noise_{which}") for which in ("t", "f", "v")]
    kept = [
        int(count * share)
        for count, share in zip((*grids["audio"].cells, grids["video"].num_tokens), shares, strict=True)
    ]
    for which, count in zip(("t", "f", "v"), kept, strict=True):
        checks.exact(("masked", f"visible_{which}"), count)
    ids = {
        "audio": structured_masking(noise[:2], kept[:2]).visible_ids,
        "video": random_masking(noise[2], kept[2]).visible_ids,
    }
    with torch.no_grad():
        scores = classifier(model.patches, visible_ids=cast(Tokens, ids))
    for output, values in scores.items():
        name = f"logits_{_letter(output)}"
        checks.compare(("masked", name), values, FEATURES, f64=("f64", f"masked_{name}"))
