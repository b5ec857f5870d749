"""HEAR task folders of a few short tones, written as the benchmark publishes its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import wavfile

from mavil.evaluation.hear.embeddings import SplitEmbeddings
from mavil.evaluation.hear.models import Embedder
from tests.evaluation.hear import tone_model
from tests.evaluation.hear.tone_model import PITCHES_HZ

LABELS = ("low", "middle", "high", "highest")


def tone(pitch_hz: float, seconds: float, rate: int, amplitude: float = 0.3) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * pitch_hz * np.arange(round(seconds * rate)) / rate)


def write_wav(path: Path, samples: np.ndarray, rate: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, rate, np.round(samples * 32767).astype(np.int16))


def write_task(folder: Path, truth: dict[str, dict[str, Any]], **metadata: Any) -> Path:
    """Everything but the sounds."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "task_name": folder.name.partition("-")[0],
        "version": "v1",
        "embedding_type": "scene",
        "prediction_type": "multiclass",
        "split_mode": "new_split_kfold",
        "sample_duration": 0.25,
        "evaluation": ["top1_acc"],
        "splits": list(truth),
        "evaluation_params": {"task_specific_param_grid": {"max_epochs": [12]}},
        **metadata,
    }
    (folder / "task_metadata.json").write_text(json.dumps(values))
    lines = ["idx,label", *(f"{index},{label}" for index, label in enumerate(LABELS))]
    (folder / "labelvocabulary.csv").write_text("\n".join(lines) + "\n")
    for split, files in truth.items():
        (folder / f"{split}.json").write_text(json.dumps(files))
    return folder


def scene_task(
    folder: Path, rates: Sequence[int] = (16000,), num_folds: int = 3, clips: int = 8, **metadata: Any
) -> Path:
    """Cross-validation on tones of four pitches with noise."""
    random = np.random.default_rng(0)
    truth: dict[str, dict[str, Any]] = {}
    for fold in range(num_folds):
        truth[f"fold{fold:02d}"] = {f"{fold}_{i}.wav": [LABELS[i % len(LABELS)]] for i in range(clips)}
    for split, files in truth.items():
        for name, (label,) in files.items():
            for rate in rates:
                samples = tone(PITCHES_HZ[LABELS.index(label)], 0.25, rate)
                samples += 0.02 * random.standard_normal(len(samples))
                write_wav(folder / str(rate) / split / name, samples, rate)
    return write_task(folder, truth, **metadata)


def event_task(folder: Path, clips: int = 2, **metadata: Any) -> Path:
    """Three splits of clips of 4 s: one tone after the other, of half a second each, with pauses."""
    random = np.random.default_rng(1)
    truth: dict[str, dict[str, Any]] = {}
    for split in ("train", "valid", "test"):
        truth[split] = {}
        for i in range(clips):
            samples, events = np.zeros(4 * 16000), []
            for place in range(4):
                which = int(random.integers(len(LABELS)))
                start = 16000 * place + 3200
                samples[start : start + 8000] += tone(PITCHES_HZ[which], 0.5, 16000)
                events.append({"label": LABELS[which], "start": start / 16.0, "end": (start + 8000) / 16.0})
            truth[split][f"{split}{i}.wav"] = events
            write_wav(folder / "16000" / split / f"{split}{i}.wav", samples, 16000)
    return write_task(
        folder,
        truth,
        **{
            "embedding_type": "event",
            "prediction_type": "multilabel",
            "split_mode": "trainvaltest",
            "sample_duration": 4.0,
            "evaluation": ["event_onset_200ms_fms", "segment_1s_er"],
            **metadata,
        },
    )


def change_metadata(folder: Path, **changes: Any) -> None:
    path = folder / "task_metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def embedder(gain: float = 1.0, floor: float = 0.0) -> Embedder:
    return Embedder(tone_model, tone_model.ToneModel(gain, floor), torch.device("cpu"))


def nobody_looks(what: str, done: int, total: int) -> None:
    """Progress that is shown to nobody."""


def rows_of(splits: dict[str, SplitEmbeddings]) -> dict[str, np.ndarray]:
    return {split: np.array(stored.embeddings) for split, stored in splits.items()}
