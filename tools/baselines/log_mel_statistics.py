"""Mean and deviation of every mel bin over a clip, and logistic regression on them: what needs no network at all."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from mavil.commands.inputs import loader_for
from mavil.config import Recipe
from mavil.data.labels import Vocabulary
from mavil.data.spectrogram import log_mel, mel_filter_bank, num_samples_seen, num_spectrogram_steps
from mavil.engine.process.runtime import settle
from mavil.structs import Batch
from tools.baselines.cnn import CPU, Scored, classes_of

INVERSE_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Values of C to choose from, by cross-validation inside the training clips."""
FOLDS = 5
NEVER = -1e4
"""Logarithm of the probability of a class that no training clip has; finite, as scores have to be."""


def statistics_of(batch: Batch, recipe: Recipe) -> Tensor:
    """``[B, 2 M]``: mean and deviation over a clip's own steps, as many as the recipe's network sees; no padding.

    A clip shorter than one step of 25 ms has zeros.
    """
    audio = recipe.audio
    assert audio is not None and batch.waveforms is not None and batch.waveform_lengths is not None  # noqa: PT018
    lengths = batch.waveform_lengths.clamp(max=num_samples_seen(audio.num_steps, audio.spectrogram))
    bank = mel_filter_bank(audio.num_mel_bins, audio.spectrogram)
    values = log_mel(batch.waveforms[:, : int(lengths.max())], lengths, bank, audio.spectrogram).double()  # [B, S, M]
    steps = num_spectrogram_steps(lengths, audio.spectrogram).clamp(max=values.shape[1])
    is_own = (torch.arange(values.shape[1]) < steps[:, None])[:, :, None]
    count = steps.clamp(min=1)[:, None]
    mean = torch.where(is_own, values, 0.0).sum(dim=1) / count
    squares = torch.where(is_own, (values - mean[:, None]) ** 2, 0.0).sum(dim=1)
    return torch.cat([mean, (squares / count).sqrt()], dim=1)


def fit_statistics(recipe: Recipe) -> Scored:
    """Fit on ``data.train``, score ``data.evaluation``; inputs are standardised, C is chosen by cross-validation in training.

    Nothing is drawn at random: the training clips are taken as evaluation takes them, without augmentation, and every seed
    gives the same scores.

    Raises:
        UserError: the recipe is not a classification of sound, or its shards are not there.
    """
    # More than a second to import; the other commands do without.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    vocabulary = classes_of(recipe)
    settle(CPU, recipe.trainer.num_threads)
    began = time.perf_counter()
    _, rows, targets = _table(recipe, "train", vocabulary)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    search = GridSearchCV(model, {"logisticregression__C": INVERSE_STRENGTHS}, cv=FOLDS)
    search.fit(rows.numpy(), targets.argmax(dim=1).numpy())
    seconds = time.perf_counter() - began
    keys, rows, targets = _table(recipe, "evaluation", vocabulary)
    # A class that no training clip has is never chosen.
    scores = torch.full(targets.shape, NEVER, dtype=torch.float64)
    scores[:, search.classes_] = torch.from_numpy(search.predict_log_proba(rows.numpy()))
    return Scored(keys, scores, targets, seconds, {"C": float(search.best_params_["logisticregression__C"])})


def _table(recipe: Recipe, split: str, vocabulary: Vocabulary) -> tuple[list[str], Tensor, Tensor]:
    """Every clip of a split once, sorted by key: keys, statistics, targets."""
    keys: list[str] = []
    rows, targets = [], []
    for batch in loader_for(recipe, split, vocabulary, training=False):
        assert batch.targets is not None  # the loader has a vocabulary
        keys += batch.keys
        rows.append(statistics_of(batch, recipe))
        targets.append(batch.targets)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return [keys[i] for i in order], torch.cat(rows)[order], torch.cat(targets)[order]
