"""CAV-MAE after fine-tuning: scores from both modalities, from one, and from one that was fine-tuned jointly; retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from mavil.evaluation.retrieval import retrieval_metrics
from mavil.models.classifier import JOINT, AlonePooling, Classifier
from mavil.models.fusion import JointFusion
from mavil.models.weights import convert
from mavil.structs import Modality
from tools.parity.building import Weights, bce, stack_of, tapped
from tools.parity.cav_mae import check_retrieval_features, encoders_of, patches_of
from tools.parity.checks import FEATURES, LOSS, Checks

ROUNDING = 1e-12
"""Between shares and percent."""
CASES: dict[str, tuple[tuple[Modality, ...], AlonePooling]] = {
    "multimodal": (("audio", "video"), "own"),
    "audioonly": (("audio",), "own"),
    "videoonly": (("video",), "own"),
    "missingaudioonly": (("audio",), "average"),
    "missingvideoonly": (("video",), "average"),
}
"""The original's modes: what the classifier is given, and what stands for a clip with one modality."""


def check(checks: Checks) -> None:
    """Scores of every mode, taps, loss, gradients, features and scores of retrieval."""
    config: dict[str, Any] = checks.fixture.get("config")
    encoders = encoders_of(config, trained_positions=True)
    fusion = JointFusion(stack_of(config, "unified_blocks"), alone_norms=True)
    model = Classifier(encoders, fusion, int(config["num_classes"]), pooling="mean")
    weights = Weights(checks)
    weights.fill(model.parts())
    patches = patches_of(checks, {m: encoder.grid for m, encoder in encoders.items()})
    rows = {"blocks_a": encoders["audio"].blocks, "blocks_v": encoders["video"].blocks, "blocks_u": fusion.blocks}
    with torch.no_grad():
        for name, (given, alone) in CASES.items():
            with tapped(cast(Mapping[str, Any], rows)) as taps:
                scores = model({m: patches[m] for m in given}, alone=alone)[JOINT]
            checks.compare(("logits", name), scores, FEATURES, f64=("f64", "logits", name))
            _check_taps(checks, name, taps)
        with tapped(cast(Mapping[str, Any], rows)) as taps:
            check_retrieval_features(checks, encoders, fusion, patches, "retrieval")
        _check_taps(checks, "forward_feat", taps)
        if checks.fixture.has("audio_only_class_keys"):
            _check_audio_only(checks, patches["audio"])
    if checks.fixture.has("retrieval_scores") and not checks.is_float64:
        _check_scores(checks)
    loss = bce(model(patches)[JOINT], checks.input("inputs", "targets"))
    checks.compare(("bce_multimodal",), loss, LOSS)
    weights.forget_gradients()
    loss.backward()
    checks.gradients(("grad_norms_multimodal",), weights.gradient_norms(), ("params_without_grad_multimodal",))


def _check_taps(checks: Checks, case: str, taps: Mapping[str, Tensor]) -> None:
    for name in checks.fixture.keys("taps", case):
        checks.compare(("taps", case, name), taps[name], FEATURES)


def _check_audio_only(checks: Checks, patches: Tensor) -> None:
    """The project's class for sound alone is made of some of the tensors and gives the same scores."""
    config: dict[str, Any] = checks.fixture.get("config")
    state: dict[str, Tensor] = checks.fixture.get("state_dict")
    converted = convert({name: state[name] for name in checks.fixture.get("audio_only_class_keys")})
    encoder = encoders_of(config, trained_positions=True)["audio"]
    fusion = JointFusion(stack_of(config, "unified_blocks"), alone_norms=True)
    model = Classifier({"audio": encoder}, fusion, int(config["num_classes"]), pooling="mean")
    for part, module in model.parts().items():
        # What the class lacks stays random here, and must not matter.
        module.load_state_dict(converted.parts.get(part, {}), strict=False)
    model.to(checks.dtype).eval()
    scores = model({"audio": patches})[JOINT]
    remark = "from the tensors of the original's class for sound alone"
    checks.compare(("logits", "audioonly"), scores, FEATURES, f64=("f64", "logits", "audioonly"), remark=remark)


def _check_scores(checks: Checks) -> None:
    fixture = checks.fixture
    audio, video = (fixture.tensor("retrieval_scores", f"query_{letter}") for letter in ("a", "v"))
    normed = [torch.nn.functional.normalize(rows.double(), dim=1) for rows in (audio, video)]
    checks.compare(("retrieval_scores", "cosine"), normed[0] @ normed[1].T, FEATURES)
    results = {
        "audio_to_video": retrieval_metrics(audio, video),
        "video_to_audio": retrieval_metrics(video, audio),
    }
    for name, result in results.items():
        for k, percent in result.recall.items():
            checks.compare(("retrieval_scores", name, f"R{k}"), percent / 100, ROUNDING, rule="absolute")
        checks.exact(("retrieval_scores", name, "MR"), result.median_rank)
