"""Features of many clips, read from disk batch by batch, and with them the clips' classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ROWS_AT_ONCE = 8192
"""Clips of pooled features per read."""


class Features:
    """Rows of one or more arrays that lie on disk, a row per clip.

    Args:
        columns: of each modality its arrays, one after the other: ``[n_i, ...]`` float32 or float16. All modalities have the
            same ``n_i``.
        rows: which rows of the joined arrays, ``[n]`` int64; ``None`` is all.
    """

    def __init__(self, columns: Sequence[Sequence[np.ndarray]], rows: np.ndarray | None = None) -> None:
        self._columns = [list(parts) for parts in columns]
        self._starts = np.cumsum([0, *(len(part) for part in self._columns[0])])
        self._rows = np.arange(self._starts[-1]) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def widths(self) -> list[int]:
        """Numbers per feature vector, of each modality."""
        return [parts[0].shape[-1] for parts in self._columns]

    def subset(self, places: np.ndarray) -> Features:
        """Only these of the rows, ``[m]`` int64."""
        return Features(self._columns, self._rows[places])

    def joined(self, other: Features) -> Features:
        """These rows, then the other's."""
        columns = [[*own, *others] for own, others in zip(self._columns, other._columns, strict=True)]
        return Features(columns, np.concatenate([self._rows, other._rows + self._starts[-1]]))

    def take(self, places: np.ndarray, device: torch.device) -> list[Tensor]:
        """``[b, ...]`` float32 of each modality, of the rows ``[b]`` int64, in their order."""
        wanted = self._rows[places]
        part_of = np.searchsorted(self._starts, wanted, side="right") - 1
        found = []
        for parts in self._columns:
            values = np.empty((len(wanted), *parts[0].shape[1:]), dtype=parts[0].dtype)
            for number in np.unique(part_of):
                inside = part_of == number
                values[inside] = parts[number][wanted[inside] - self._starts[number]]
            found.append(torch.from_numpy(values).to(device).float())
        return found

    def batches(self, size: int, device: torch.device) -> Iterator[list[Tensor]]:
        """All rows in order, as :meth:`take`."""
        for first in range(0, len(self), size):
            yield self.take(np.arange(first, min(first + size, len(self))), device)


@dataclass(frozen=True)
class Labelled:
    """Clips whose classes may be learned from: features, ``targets`` ``[n, C]`` bool, and what each belongs to.

    ``groups``: e.g. speaker or recording of each clip, which must not be split; ``None`` where nothing is known.
    """

    features: Features
    targets: Tensor
    groups: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def subset(self, places: np.ndarray) -> Labelled:
        """Only these clips, ``[m]`` int64."""
        groups = None if self.groups is None else tuple(self.groups[place] for place in places)
        return Labelled(self.features.subset(places), self.targets[torch.from_numpy(places)], groups)

    def joined(self, other: Labelled) -> Labelled:
        """These clips, then the other's; groups are not needed any more."""
        return Labelled(self.features.joined(other.features), torch.cat([self.targets, other.targets]))
