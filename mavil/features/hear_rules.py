"""HEAR's rules, checked on any module that offers its interface: everything that hear-validator 2021.0.6 looks at [source].

hear-validator stops at the first mistake and needs TensorFlow; here all are found, and torch is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mavil.features.options import SAMPLE_RATES

TIMESTAMP_SECONDS = (1.07, 1.98, 4.0)
"""Lengths of the noise that timestamps are looked at with [source hear-validator]."""
TIMESTAMP_CLIPS, SCENE_CLIPS, SCENE_SECONDS = 2, 4, 2.74
LONGEST_HOP_MS = 50.0
"""A longer time between embeddings is only advised against: music transcription is scored within 50 ms [source]."""
UNEVEN_MS = 1.0
SIZES = ("scene_embedding_size", "timestamp_embedding_size")


@dataclass(frozen=True)
class Finding:
    """What one rule found: ``good``, ``warning`` (HEAR takes it nevertheless) or ``error``."""

    kind: Literal["good", "warning", "error"]
    rule: str
    text: str


class _RuleError(Exception):
    """A rule's own way to say what is wrong."""


def check_module(module: ModuleType | Any, model_file_path: str = "", device: str | None = None) -> list[Finding]:
    """Check a module that offers HEAR's interface, with one of its models.

    Args:
        module: has ``load_model``, ``get_timestamp_embeddings`` and ``get_scene_embeddings``.
        model_file_path: what ``load_model`` is given; nothing: it is called without one.
        device: where to; default: the GPU where there is one.

    Returns:
        What was found, rule by rule; without an error the module keeps to the rules.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = _loaded(module, model_file_path).to(device)
    except Exception as error:  # whatever somebody's module raises is the finding
        return [Finding("error", "load_model", _told(error))]
    findings = [Finding("good", "load_model", f"{type(model).__name__} on {device}")]
    findings += _attributes(model)
    if any(finding.kind == "error" for finding in findings):
        return findings
    for seconds in TIMESTAMP_SECONDS:
        findings += _guarded(f"timestamps, {seconds} s", lambda s=seconds: _timestamps(module, model, s, device))  # type: ignore[misc]
    findings += _guarded(f"scenes, {SCENE_SECONDS} s", lambda: _scenes(module, model, device))
    return findings


def _loaded(module: ModuleType | Any, model_file_path: str) -> nn.Module:
    if not hasattr(module, "load_model"):
        raise _RuleError("there is no function load_model")
    model = module.load_model(model_file_path) if model_file_path else module.load_model()
    if not isinstance(model, nn.Module):
        raise _RuleError(f"it returns a {type(model).__name__}, not a torch module")
    return model


def _attributes(model: nn.Module) -> Iterator[Finding]:
    rate = getattr(model, "sample_rate", None)
    is_right = rate in SAMPLE_RATES
    text = f"{rate} Hz" if is_right else f"{rate}: it must be one of {', '.join(map(str, SAMPLE_RATES))}"
    yield Finding("good" if is_right else "error", "sample_rate", text)
    for name in SIZES:
        size = getattr(model, name, None)
        is_right = isinstance(size, int)
        text = str(size) if is_right else f"{size!r}: it must be an int"
        yield Finding("good" if is_right else "error", name, text)


def _guarded(rule: str, check: Callable[[], tuple[str, list[str]]]) -> Iterator[Finding]:
    try:
        text, warnings = check()
    except Exception as error:  # whatever somebody's module raises is the finding
        yield Finding("error", rule, _told(error))
        return
    yield from (Finding("warning", rule, warning) for warning in warnings)
    yield Finding("good", rule, text)


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, _RuleError) else f"{type(error).__name__}: {error}"


def _noise(clips: int, seconds: float, model: Any, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(clips, int(seconds * model.sample_rate), generator=generator) * 2 - 1
    return noise.to(device)


def _timestamps(module: Any, model: Any, seconds: float, device: str) -> tuple[str, list[str]]:
    if not hasattr(module, "get_timestamp_embeddings"):
        raise _RuleError("there is no function get_timestamp_embeddings")
    embeddings, times = module.get_timestamp_embeddings(_noise(TIMESTAMP_CLIPS, seconds, model, device), model)
    _check_embeddings(embeddings, (TIMESTAMP_CLIPS, None, model.timestamp_embedding_size))
    if times.shape != embeddings.shape[:2]:
        raise _RuleError(
            f"timestamps of shape {list(times.shape)} do not go with embeddings of shape {list(embeddings.shape)}"
        )
    times = times.detach().cpu().double()
    if times.shape[1] < 2:
        return f"{list(embeddings.shape)}, one time", []
    return _check_times(times, 1000 * seconds, f"{list(embeddings.shape)}")


def _check_times(times: Tensor, duration: float, shape: str) -> tuple[str, list[str]]:
    """``[B, n]`` times in ms of sound of some ms."""
    hops = times.diff(dim=1)
    hop, longest = float(hops.mean()), float(hops.max())
    first, last = float(times.min()), float(times.max())
    uneven = float((hops - hop).abs().max())
    if uneven > UNEVEN_MS:
        raise _RuleError(f"the time between timestamps varies by {uneven:.3g} ms: at most {UNEVEN_MS:g} ms is allowed")
    if last > duration:
        raise _RuleError(f"the last timestamp is {last:.1f} ms, but the sound ends at {duration:.1f} ms")
    warnings = []
    if longest > LONGEST_HOP_MS:
        warnings.append(
            f"{longest:.1f} ms between timestamps: at most {LONGEST_HOP_MS:g} ms is advised, for tasks scored within 50 ms"
        )
    if first > hop:
        warnings.append(f"the first timestamp is {first:.1f} ms: more than the time between two of them, {hop:.1f} ms")
    if last < duration - min(hop, LONGEST_HOP_MS):
        warnings.append(f"the last timestamp is {last:.1f} ms, but the sound ends at {duration:.1f} ms")
    return f"{shape}, {first:.1f} to {last:.1f} ms, one per {hop:.1f} ms", warnings


def _scenes(module: Any, model: Any, device: str) -> tuple[str, list[str]]:
    if not hasattr(module, "get_scene_embeddings"):
        raise _RuleError("there is no function get_scene_embeddings")
    embeddings = module.get_scene_embeddings(_noise(SCENE_CLIPS, SCENE_SECONDS, model, device), model)
    _check_embeddings(embeddings, (SCENE_CLIPS, model.scene_embedding_size))
    return f"{list(embeddings.shape)}", []


def _check_embeddings(embeddings: Tensor, expected: tuple[int | None, ...]) -> None:
    if embeddings.dtype != torch.float32:
        raise _RuleError(f"embeddings are {embeddings.dtype}, not float32")
    is_right = embeddings.ndim == len(expected) and all(
        size is None or size == own for size, own in zip(expected, embeddings.shape, strict=True)
    )
    if not is_right:
        wanted = ", ".join("n" if size is None else str(size) for size in expected)
        raise _RuleError(f"embeddings are of shape {list(embeddings.shape)}, not [{wanted}]")
    if not bool(embeddings.isfinite().all()):
        raise _RuleError("embeddings hold values that are NaN or infinite")
