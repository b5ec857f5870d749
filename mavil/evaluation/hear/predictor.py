"""The small network that the benchmark puts on frozen embeddings, and how it is trained."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mavil.evaluation.hear.grid import Setting
from mavil.structs import UserError

HIDDEN_WIDTH = 1024
DROPOUT = 0.1
BATCH_ROWS = 1024
PATIENCE = 20
"""Validations without improvement after which training ends. These four: [source heareval]."""
IN_MEMORY_BYTES = 8 << 30
"""Embeddings of one fold up to this size are kept on the device; larger ones are read from disk batch by batch [our
choice: MAESTRO has 7 GB at 3840 numbers per frame, everything else less]."""


class Predictor(nn.Sequential):
    """Hidden layers of Linear, BatchNorm, Dropout, ReLU, then Linear: ``[b, D]`` to logits ``[b, classes]``.

    Weights are drawn by Xavier's rule with the gain of the activation before, biases as torch does [source heareval].
    """

    def __init__(self, width: int, num_labels: int, setting: Setting) -> None:
        draw = {"xavier_uniform": nn.init.xavier_uniform_, "xavier_normal": nn.init.xavier_normal_}
        layers: list[nn.Module] = []
        gain = nn.init.calculate_gain("linear")
        for _ in range(setting.hidden_layers):
            linear = nn.Linear(width, HIDDEN_WIDTH)
            draw[setting.initialization](linear.weight, gain=gain)
            layers += [linear, nn.BatchNorm1d(HIDDEN_WIDTH), nn.Dropout(DROPOUT), nn.ReLU()]
            width, gain = HIDDEN_WIDTH, nn.init.calculate_gain("relu")
        last = nn.Linear(width, num_labels)
        draw[setting.initialization](last.weight, gain=gain)
        super().__init__(*layers, last)


class Rows:
    """Embeddings and targets of some splits, one after the other.

    Args:
        embeddings: ``[n_i, D]`` float32 of each split, e.g. mapped from disk.
        targets: ``[n_i, classes]`` float32 of each.
        device: where batches are wanted.
    """

    def __init__(self, embeddings: Sequence[np.ndarray], targets: Sequence[np.ndarray], device: torch.device) -> None:
        self.targets = torch.from_numpy(np.concatenate(targets)).to(device)
        self.width = embeddings[0].shape[1]
        self._device = device
        self._parts = list(embeddings)
        self._starts = np.cumsum([0, *(len(part) for part in embeddings)])
        self._whole: Tensor | None = None
        if sum(part.nbytes for part in embeddings) <= IN_MEMORY_BYTES:
            self._whole = torch.from_numpy(np.concatenate(embeddings)).to(device)

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings ``[b, D]`` and targets ``[b, classes]`` of the rows ``[b]`` (int64, on the CPU)."""
        targets = self.targets[rows.to(self._device)]
        if self._whole is not None:
            return self._whole[rows.to(self._device)], targets
        wanted = rows.numpy()
        found = np.empty((len(wanted), self.width), dtype=np.float32)
        part_of = np.searchsorted(self._starts, wanted, side="right") - 1
        for number, part in enumerate(self._parts):
            inside = part_of == number
            found[inside] = part[wanted[inside] - self._starts[number]]
        return torch.from_numpy(found).to(self._device), targets


@dataclass(frozen=True)
class Verdict:
    """What validation says: ``monitored`` decides, more is better if ``is_maximised``; ``choice`` goes with the best."""

    monitored: float
    is_maximised: bool
    choice: object = None

    def beats(self, other: Verdict | None) -> bool:
        """Strictly better; what is not finite never is."""
        if not math.isfinite(self.monitored):
            return False
        if other is None or not math.isfinite(other.monitored):
            return True
        return self.monitored > other.monitored if self.is_maximised else self.monitored < other.monitored


@dataclass(frozen=True)
class Fitted:
    """The predictor as it was at its best validation, in ``eval()``, after ``epochs`` of training."""

    predictor: Predictor
    epochs: int
    verdict: Verdict


def fit(
    train: Rows,
    valid: Rows,
    judge: Callable[[Tensor], Verdict],
    setting: Setting,
    is_multilabel: bool,
    shuffles: bool,
    seed: int,
) -> Fitted:
    """Train a predictor with Adam until validation has not improved ``PATIENCE`` times, or all epochs are over.

    Args:
        train: rows to learn from.
        valid: rows to validate on every ``setting.validate_every`` epochs.
        judge: logits ``[n, classes]`` of ``valid`` to a verdict.
        setting: of the grid.
        is_multilabel: binary cross-entropy of every class, else cross-entropy of the one label.
        shuffles: new order of the rows in every epoch; without, they stay as they are stored, as heareval leaves them.
        seed: of weights, dropout and orders; the random numbers of whoever calls stay as they are.

    Raises:
        UserError: too few rows for batch normalisation, or nothing to validate was ever finite.
    """
    if len(train) < 2:
        raise UserError(
            f"{len(train)} training row: a predictor needs two at least; the task's training split is too small"
        )
    device = train.targets.device
    best: Fitted | None = None
    waited = 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        order = torch.Generator().manual_seed(seed)
        predictor = Predictor(train.width, train.targets.shape[1], setting).to(device)
        optimizer = torch.optim.Adam(predictor.parameters(), lr=setting.learning_rate)
        for epoch in range(1, setting.max_epochs + 1):
            _train_epoch(predictor, optimizer, train, is_multilabel, order if shuffles else None)
            if epoch % setting.validate_every:
                continue
            verdict = judge(logits_of(predictor, valid))
            if verdict.beats(best.verdict if best else None):
                best, waited = Fitted(copy.deepcopy(predictor).eval(), epoch, verdict), 0
            else:
                waited += 1
            if waited >= PATIENCE:
                break
    if best is None:
        raise UserError(
            "the metric that early stopping looks at was not finite at any validation: a class without a clip in the "
            "validation split, or embeddings of enormous size"
        )
    return best


@torch.no_grad()
def logits_of(predictor: Predictor, rows: Rows) -> Tensor:
    """``[n, classes]`` of all rows in their order, on the rows' device."""
    predictor.eval()
    return torch.cat([predictor(rows.take(ids)[0]) for ids in torch.arange(len(rows)).split(BATCH_ROWS)])


def loss_of(logits: Tensor, targets: Tensor, is_multilabel: bool) -> Tensor:
    """Mean loss of logits ``[b, classes]`` and multi-hot targets of the same shape."""
    if is_multilabel:
        return functional.binary_cross_entropy_with_logits(logits, targets)
    return functional.cross_entropy(logits, targets.argmax(1))


def _train_epoch(
    predictor: Predictor,
    optimizer: torch.optim.Optimizer,
    rows: Rows,
    is_multilabel: bool,
    order: torch.Generator | None,
) -> None:
    predictor.train()
    for ids in _batches(len(rows), order):
        embeddings, targets = rows.take(ids)
        loss = loss_of(predictor(embeddings), targets, is_multilabel)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _batches(num_rows: int, order: torch.Generator | None) -> Iterator[Tensor]:
    ids = torch.arange(num_rows) if order is None else torch.randperm(num_rows, generator=order)
    for batch in ids.split(BATCH_ROWS):
        # Batch normalisation has no variance of a single row; heareval ends with an error there.
        if len(batch) > 1:
            yield batch
