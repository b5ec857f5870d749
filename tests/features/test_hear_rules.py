"""HEAR's rules on modules that break them, one each; the good one differs from each of them in one thing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mavil.features.hear_rules import check_module

WIDTH = 6


def module_with(**changes: Any) -> SimpleNamespace:
    """A module that keeps to every rule but what ``changes`` say: attributes of its model, or functions of (audio, rate)."""

    def load_model(path: str = "") -> Any:
        model = nn.Linear(1, 1)
        attributes = {"sample_rate": 16_000, "scene_embedding_size": WIDTH, "timestamp_embedding_size": WIDTH}
        for name, value in {**attributes, **changes.get("attributes", {})}.items():
            if value is not None:
                setattr(model, name, value)
        return model

    functions = {
        "load_model": load_model,
        "get_timestamp_embeddings": lambda audio, model: embed(audio),
        "get_scene_embeddings": lambda audio, model: torch.zeros(len(audio), WIDTH),
    }
    kept = {**functions, **changes.get("functions", {})}
    return SimpleNamespace(**{name: function for name, function in kept.items() if function is not None})


def embed(
    audio: Tensor, hop: float = 25.0, first: float = 12.5, uneven: float = 0.0, cut: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Zeros every ``hop`` ms from ``first`` on to ``cut`` ms before the end."""
    times = torch.arange(first, audio.shape[1] / 16 - cut, hop)
    times[1] += uneven
    return torch.zeros(len(audio), len(times), WIDTH), times.expand(len(audio), -1)


def kinds(module: SimpleNamespace) -> set[str]:
    return {finding.kind for finding in check_module(module, device="cpu")}


def test_a_good_module_passes() -> None:
    findings = check_module(module_with(), device="cpu")
    assert [finding.rule for finding in findings] == [
        "load_model",
        "sample_rate",
        "scene_embedding_size",
        "timestamp_embedding_size",
        "timestamps, 1.07 s",
        "timestamps, 1.98 s",
        "timestamps, 4.0 s",
        "scenes, 2.74 s",
    ]
    assert {finding.kind for finding in findings} == {"good"}


@pytest.mark.parametrize(
    "attributes",
    [
        {"sample_rate": None},
        {"sample_rate": 8_000},
        {"scene_embedding_size": None},
        {"scene_embedding_size": 6.0},
        {"timestamp_embedding_size": None},
        {"timestamp_embedding_size": 6.0},
        {"scene_embedding_size": 7},
        {"timestamp_embedding_size": 7},
    ],
)
def test_a_wrong_attribute_is_an_error(attributes: dict[str, Any]) -> None:
    assert "error" in kinds(module_with(attributes=attributes))


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("load_model", None),
        ("load_model", lambda path="": "no module"),
        ("load_model", lambda path="": 1 / 0),
        ("get_timestamp_embeddings", None),
        ("get_timestamp_embeddings", lambda audio, model: (embed(audio)[0].double(), embed(audio)[1])),
        ("get_timestamp_embeddings", lambda audio, model: (embed(audio)[0][:1], embed(audio)[1][:1])),
        ("get_timestamp_embeddings", lambda audio, model: (embed(audio)[0].flatten(1), embed(audio)[1])),
        ("get_timestamp_embeddings", lambda audio, model: (embed(audio)[0], embed(audio)[1][0])),
        ("get_timestamp_embeddings", lambda audio, model: (embed(audio)[0] / 0, embed(audio)[1])),
        ("get_timestamp_embeddings", lambda audio, model: embed(audio, uneven=1.2)),
        ("get_timestamp_embeddings", lambda audio, model: embed(audio, cut=-50.0)),
        ("get_scene_embeddings", None),
        ("get_scene_embeddings", lambda audio, model: torch.zeros(len(audio), WIDTH, dtype=torch.float64)),
        ("get_scene_embeddings", lambda audio, model: torch.zeros(1, WIDTH)),
        ("get_scene_embeddings", lambda audio, model: torch.zeros(len(audio), 2, WIDTH)),
    ],
)
def test_a_wrong_function_is_an_error(name: str, function: Any) -> None:
    assert "error" in kinds(module_with(functions={name: function}))


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ({"hop": 51.0}, "51.0 ms between"),
        ({"first": 26.0}, "the first timestamp is 26.0 ms"),
        ({"cut": 26.0}, "the last timestamp"),
        ({"hop": 400.0}, "the last timestamp"),
    ],
)
def test_what_is_advised_against_is_a_warning(times: dict[str, float], words: str) -> None:
    module = module_with(functions={"get_timestamp_embeddings": lambda audio, model: embed(audio, **times)})
    assert kinds(module) == {"good", "warning"}
    told = [finding.text for finding in check_module(module, device="cpu") if finding.kind == "warning"]
    assert any(words in text for text in told)


def test_seconds_instead_of_milliseconds_show() -> None:
    """MSM-MAE's own wrapper returned seconds until 2023: the last time is then far from the end."""
    module = module_with(
        functions={"get_timestamp_embeddings": lambda audio, model: (embed(audio)[0], embed(audio)[1] / 1000)}
    )
    assert kinds(module) == {"good", "warning"}
