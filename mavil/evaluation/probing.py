"""What an embedding knows: linear probes of cues such as the speaker, the class, or how loud the clip is.

Every probe is fitted on standardised training embeddings and scored on the test ones; how strongly it is regularised is
chosen by cross-validation inside the training set. As a control the same probe is fitted to shuffled training values.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from mavil.structs import UserError

CueKind = Literal["labels", "value"]
Cue = Sequence[str] | Sequence[float]
MAX_CLASSES = 40
"""Text with more distinct values than this is a name or a path, not a class [our choice]."""
_MIN_VALUES = 8
"""Numbers with fewer distinct values than this are classes [our choice]."""
_FOLDS = 3
_NUM_SHUFFLES = 5
"""Shuffles behind each control score [our choice]."""
_LABEL_STRENGTHS = (0.001, 0.01, 0.1)
"""Inverse regularisation of the logistic regression (scikit-learn's C) among which cross-validation chooses."""


@dataclass(frozen=True)
class ProbeResult:
    """What one probe found on the test clips.

    ``score`` is the accuracy in [0, 1] for labels, R² for a value (1 perfect, 0 as good as the mean, below 0 worse);
    ``chance`` is the share of the most frequent test label, or 0. ``spearman`` (in [-1, 1]) exists for values only,
    ``num_classes`` (in training) for labels only.
    """

    kind: CueKind
    score: float
    chance: float
    num_classes: int | None = None
    spearman: float | None = None


@dataclass(frozen=True)
class CueResult:
    """One row of the cue table: a probe per modality, and the best that could come of nothing.

    ``shuffled`` holds, by modality, the mean score of the same probe fitted to training values shuffled in several ways: one
    shuffle alone says little where embeddings form a few tight clusters, each of which it gives one label by accident.
    """

    cue: str
    kind: CueKind
    chance: float
    probes: dict[str, ProbeResult]
    shuffled: dict[str, float]


def probe_labels(
    train_embeddings: Tensor, train_labels: Sequence[str], test_embeddings: Tensor, test_labels: Sequence[str]
) -> ProbeResult:
    """Multinomial logistic regression from embeddings ``[n, Z]`` to labels.

    A test label that training never saw counts as an error.

    Raises:
        UserError: an embedding is not finite.
        ValueError: lengths differ, or fewer than two classes have the three training clips that cross-validation needs.
    """
    train, test = _features(train_embeddings, train_labels), _features(test_embeddings, test_labels)
    counts = Counter(train_labels)
    if sum(count >= _FOLDS for count in counts.values()) < 2:
        raise ValueError(
            f"a probe needs two classes of at least {_FOLDS} training clips each, not {dict(counts.most_common(5))}"
        )
    probe = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": _LABEL_STRENGTHS},
        cv=StratifiedKFold(_FOLDS, shuffle=True, random_state=0),
    )
    with warnings.catch_warnings(), _one_thread():
        # Classes rarer than the folds are simply missing from some of them.
        warnings.filterwarnings("ignore", message="The least populated class")
        probe.fit(train, np.asarray(train_labels))
    accuracy = float(np.mean(probe.predict(test) == np.asarray(test_labels)))
    majority = max(Counter(test_labels).values()) / len(test_labels)
    return ProbeResult("labels", accuracy, majority, num_classes=len(counts))


def probe_value(
    train_embeddings: Tensor, train_values: Sequence[float], test_embeddings: Tensor, test_values: Sequence[float]
) -> ProbeResult:
    """Ridge regression from embeddings ``[n, Z]`` to a number per clip, e.g. its loudness.

    Raises:
        UserError: an embedding is not finite.
        ValueError: lengths differ, a value is not finite, or the test values are all the same.
    """
    train, test = _features(train_embeddings, train_values), _features(test_embeddings, test_values)
    known, wanted = np.asarray(train_values, dtype=np.float64), np.asarray(test_values, dtype=np.float64)
    if not (np.isfinite(known).all() and np.isfinite(wanted).all()) or np.ptp(wanted) == 0:
        raise ValueError("a probe of a value needs finite numbers that are not all the same")
    probe = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-1, 6, 15)))
    with _one_thread():
        predicted = probe.fit(train, known).predict(test)
    # A probe that predicts one number for all clips has no order to correlate.
    spearman = 0.0
    if np.ptp(predicted) > 0:
        spearman = float(spearmanr(predicted, wanted).statistic)
    return ProbeResult("value", float(r2_score(wanted, predicted)), 0.0, spearman=spearman)


def cue_table(
    train_embeddings: Mapping[str, Tensor],
    train_cues: Mapping[str, Cue],
    test_embeddings: Mapping[str, Tensor],
    test_cues: Mapping[str, Cue],
    seed: int = 0,
) -> list[CueResult]:
    """Probe every cue from every modality's embedding, one :class:`CueResult` per cue.

    Args:
        train_embeddings: ``[n, Z]`` by modality.
        train_cues: one text or number per training clip, by the cue's name.
        test_embeddings: ``[m, Z]`` by modality, the same names.
        test_cues: one text or number per test clip, by the cue's name, the same names.
        seed: of the shuffled control.

    Raises:
        ValueError: a cue cannot be probed (:func:`cue_kind` finds neither labels nor values in it).
    """
    table = []
    for cue, train in train_cues.items():
        test = test_cues[cue]
        kind = cue_kind([*train, *test])
        if kind is None:
            raise ValueError(
                f"cue {cue!r} cannot be probed: it has one value only, or more than {MAX_CLASSES} different texts"
            )
        orders = [np.random.default_rng((seed, i)).permutation(len(train)) for i in range(_NUM_SHUFFLES)]
        controls = [[train[i] for i in order] for order in orders]
        probes, shuffled = {}, {}
        for modality, features in train_embeddings.items():
            probes[modality] = _probe(kind, features, train, test_embeddings[modality], test)
            scores = [_probe(kind, features, mixed, test_embeddings[modality], test).score for mixed in controls]
            shuffled[modality] = float(np.mean(scores))
        table.append(CueResult(cue, kind, probes[next(iter(probes))].chance, probes, shuffled))
    return table


def probeable_fields(metadata: Sequence[Mapping[str, str]]) -> list[str]:
    """Names of the metadata fields that every clip has and :func:`cue_kind` can make something of."""
    shared = [name for name in (metadata[0] if metadata else {}) if all(name in entry for entry in metadata)]
    return [name for name in shared if cue_kind([entry[name] for entry in metadata]) is not None]


def cue_column(metadata: Sequence[Mapping[str, str]], field: str) -> list[str]:
    """One metadata field as a cue: its text for every clip.

    Raises:
        UserError: a clip lacks the field; the message lists the fields it has.
    """
    for entry in metadata:
        if field not in entry:
            raise UserError(f"a clip has no metadata field {field!r}; it has {', '.join(entry) or 'none'}")
    return [entry[field] for entry in metadata]


def cue_kind(values: Cue) -> CueKind | None:
    """How to probe these values: numbers with many different values as a ``value``, few different texts as ``labels``.

    ``None`` where neither makes sense: all the same, or text with more than ``MAX_CLASSES`` different values.
    """
    distinct: set[str | float] = set(values)
    if len(distinct) < 2:
        return None
    if len(distinct) >= _MIN_VALUES and all(_is_number(value) for value in distinct):
        # Ten digits or a few folds are classes although they are written as whole numbers.
        is_class = len(distinct) <= MAX_CLASSES and all(float(value).is_integer() for value in distinct)
        return "labels" if is_class else "value"
    return "labels" if len(distinct) <= MAX_CLASSES else None


def loudness(waveforms: Tensor, lengths: Tensor) -> list[float]:
    """Root mean square of each clip in dB relative to full scale; silence is -120.

    ``waveforms`` ``[B, L]`` in [-1, 1], zero-padded at the end; ``lengths`` ``[B]`` true lengths in samples.
    """
    mean_square = waveforms.double().square().sum(1) / lengths.clamp(min=1)
    return (10 * mean_square.clamp(min=1e-12).log10()).tolist()


def _one_thread() -> threadpool_limits:
    """scikit-learn's BLAS on one thread: for matrices this small its threads mostly wait for each other (40 times slower)."""
    return threadpool_limits(limits=1)


def _probe(kind: CueKind, train_embeddings: Tensor, train: Cue, test_embeddings: Tensor, test: Cue) -> ProbeResult:
    if kind == "labels":
        return probe_labels(train_embeddings, [str(v) for v in train], test_embeddings, [str(v) for v in test])
    return probe_value(train_embeddings, [float(v) for v in train], test_embeddings, [float(v) for v in test])


def _features(embeddings: Tensor, values: Cue) -> np.ndarray:
    if embeddings.ndim != 2 or len(embeddings) != len(values) or len(values) == 0:
        raise ValueError(f"embeddings {tuple(embeddings.shape)} must be [clips, width] for {len(values)} values")
    if not embeddings.isfinite().all():
        raise UserError("an embedding is not finite: the model has diverged, use an earlier checkpoint")
    return embeddings.detach().double().cpu().numpy()


def _is_number(value: str | float) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except ValueError:
        return False
