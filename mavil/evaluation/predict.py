"""Run something over an evaluation set, on any number of ranks, and get one row per clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mavil import distributed
from mavil.structs import Inputs, UserError


@dataclass(frozen=True)
class Collected:
    """One row per clip of the evaluation set, sorted by key; the same on every rank.

    ``values`` holds CPU tensors ``[n, ...]`` by name, floating-point ones as float32.
    """

    keys: list[str]
    metadata: list[dict[str, str]]
    values: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass
class _Share:
    """What one rank has collected: a row per window, in any order."""

    keys: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    pieces: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, inputs: Inputs, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.pieces.setdefault(name, []).append(_checked(name, value, len(inputs)))
        self.keys += inputs.keys
        self.seeds += inputs.seeds.tolist()
        self.metadata += inputs.metadata or [{} for _ in inputs.keys]

    def repeated(self) -> list[str]:
        """Keys that came twice with one seed: windows of a clip have different ones."""
        counts = Counter(zip(self.keys, self.seeds, strict=True))
        return [key for (key, _), count in counts.items() if count > 1]

    def by_clip(self) -> Collected:
        """The mean over the windows of each clip, in the same order whatever order they came in."""
        values = {name: torch.cat(pieces) for name, pieces in self.pieces.items()}
        order = sorted(range(len(self.keys)), key=lambda row: (self.keys[row], self.seeds[row]))
        keys = [self.keys[row] for row in order]
        first = [place for place, key in enumerate(keys) if place == 0 or key != keys[place - 1]]
        counts = torch.tensor([*first[1:], len(keys)]) - torch.tensor(first)
        return Collected(
            [keys[place] for place in first],
            [self.metadata[order[place]] for place in first],
            {name: _mean_of_each(value[order], first, counts) for name, value in values.items()},
        )


def collect(batches: Iterable[Inputs], compute: Callable[[Inputs], dict[str, Tensor]]) -> Collected:
    """Call ``compute`` on this rank's batches and join the rows of all ranks.

    A clip may come in several windows, rows of one key with different seeds, all of them on one rank. Its row is then their
    mean; of what is no floating-point number, and of the metadata, that of one of them.

    Args:
        batches: this rank's share, each clip exactly once over all ranks; shares may differ in length or be empty.
        compute: returns tensors ``[B, ...]`` by name, e.g. embeddings, scores, or the batch's own targets. Runs under
            ``torch.inference_mode``; putting the model into ``eval()`` is the caller's business.

    Raises:
        UserError: the evaluation set holds no clip, or a clip came twice.
        ValueError: ``compute`` returned a tensor that has not one row per clip.
    """
    share = _Share()
    # Ranks may hold different numbers of batches: whoever talked to the others in this loop would wait forever.
    with torch.inference_mode():
        for inputs in batches:
            share.add(inputs, compute(inputs))
        own = share.by_clip() if share.keys else Collected([], [], {})
    return _joined(distributed.gather_objects((own, share.repeated())))


def _checked(name: str, value: Tensor, num_clips: int) -> Tensor:
    if value.ndim == 0 or len(value) != num_clips:
        raise ValueError(f"compute returned {name!r} of shape {tuple(value.shape)} for {num_clips} clips: one row each")
    # float32, because numpy knows no bfloat16.
    return (value.float() if value.is_floating_point() else value).cpu()


def _mean_of_each(rows: Tensor, first: list[int], counts: Tensor) -> Tensor:
    """``rows`` ``[n, ...]`` in blocks of ``counts`` ``[m]`` that begin at ``first``: ``[m, ...]``."""
    if len(first) == len(rows) or not rows.is_floating_point():
        return rows[first]
    blocks = torch.arange(len(first)).repeat_interleave(counts)
    # float64: the mean of equal numbers, the targets for one, is then that number.
    sums = torch.zeros(len(first), *rows.shape[1:], dtype=torch.float64).index_add_(0, blocks, rows.double())
    return (sums / counts.view(-1, *[1] * (rows.ndim - 1))).float()


def _joined(answers: list[tuple[Collected, list[str]]]) -> Collected:
    shares = [share for share, _ in answers if len(share)]
    if not shares:
        raise UserError("the evaluation set holds no clip: check data.evaluation")
    keys = [key for share in shares for key in share.keys]
    metadata = [entry for share in shares for entry in share.metadata]
    repeated = [key for _, found in answers for key in found]
    repeated += [key for key, count in Counter(keys).items() if count > 1]
    if repeated:
        raise UserError(
            f"{len(repeated)} clips came more than once, first {repeated[0]!r}: each must be evaluated exactly once; give every "
            "clip of the evaluation data a key of its own"
        )
    order = sorted(range(len(keys)), key=keys.__getitem__)
    values = {name: torch.cat([share.values[name] for share in shares])[order] for name in shares[0].values}
    return Collected([keys[i] for i in order], [metadata[i] for i in order], values)
