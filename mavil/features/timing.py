"""Where tokens lie in time: how many columns a waveform has, which samples and which milliseconds each of them stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mavil.data.spectrogram import HOP_SAMPLES, WINDOW_SAMPLES, SpectrogramKind, num_spectrogram_steps
from mavil.structs import SAMPLE_RATE, TokenGrid


@dataclass(frozen=True)
class Timing:
    """Columns of tokens in time: a column is all tokens of one time step of the token grid.

    Attributes:
        grid: tokens of one whole input of the encoder.
        spectrogram: the front end.
    """

    grid: TokenGrid
    spectrogram: SpectrogramKind

    @property
    def is_centred(self) -> bool:
        """Whether spectrogram step i looks at the samples around 160 i; those of the other front ends begin there."""
        return self.spectrogram == "slaney"

    @property
    def columns(self) -> int:
        """Of one whole input of the encoder."""
        return self.grid.cells[self.grid.time_axis]

    @property
    def patch(self) -> int:
        """Spectrogram steps under a column."""
        return self.grid.patch[self.grid.time_axis]

    @property
    def stride(self) -> int:
        """Spectrogram steps from one column to the next."""
        return self.patch if self.grid.stride is None else self.grid.stride[self.grid.time_axis]

    @property
    def column_samples(self) -> int:
        """Samples (16 kHz) from one column to the next."""
        return self.stride * HOP_SAMPLES

    @property
    def shortest_samples(self) -> int:
        """The shortest waveform that fills one patch."""
        before_last = (self.patch - 1) * HOP_SAMPLES
        return max(1, before_last) if self.is_centred else before_last + WINDOW_SAMPLES

    @property
    def first_centre(self) -> int:
        """The sample in the middle of the first column."""
        return (self.patch - 1) * HOP_SAMPLES // 2 + (0 if self.is_centred else WINDOW_SAMPLES // 2)

    def steps_of(self, columns: int) -> int:
        """Spectrogram steps under so many columns."""
        return (columns - 1) * self.stride + self.patch

    def num_columns(self, lengths: Tensor) -> Tensor:
        """Columns of waveforms of ``lengths`` samples: those of which half the steps exist and whose middle is inside the sound.

        A last patch that is half filled is thus kept, with zeros in its unfilled steps as in training, and one that is mostly
        empty left out [our choice: a time beyond the end would be wrong, and HEAR refuses it].
        """
        steps = num_spectrogram_steps(lengths, self.spectrogram)
        filled = (steps - (self.patch + 1) // 2) // self.stride + 1
        inside = (lengths - self.first_centre) // self.column_samples + 1
        return torch.minimum(filled, inside).clamp(min=0)

    def num_columns_padded(self, lengths: Tensor) -> Tensor:
        """Columns where the last input is filled with zeros up to a whole one, and one of zeros follows exact multiples; what
        is cut away afterwards is rounded down [source MSM-MAE].
        """
        unit = self.columns * self.stride
        steps = num_spectrogram_steps(lengths, self.spectrogram)
        missing = unit - steps % unit
        return (steps // unit + 1) * self.columns - self.columns * missing // unit

    def centres_ms(self, count: int) -> Tensor:
        """``[count]`` float32: the middle of each column, ms from the beginning. Exact at any length: nothing is summed up."""
        samples = self.first_centre + self.column_samples * torch.arange(count, dtype=torch.float64)
        return (samples * (1000 / SAMPLE_RATE)).float()

    def part(self, columns: int) -> TokenGrid:
        """The grid of an input of so many columns."""
        axis = self.grid.time_axis
        cells = tuple(columns if i == axis else count for i, count in enumerate(self.grid.cells))
        rest = None if self.grid.rest is None else tuple(0 if i == axis else n for i, n in enumerate(self.grid.rest))
        return replace(self.grid, cells=cells, rest=rest)

    def token_ids(self, columns: int) -> Tensor:
        """``[columns * bands]``: numbers in a whole input of the tokens of its first columns, in the order of :meth:`part`."""
        numbers = torch.arange(self.grid.num_tokens).view(self.grid.cells)
        return numbers.narrow(self.grid.time_axis, 0, columns).flatten()

    def column_of_token(self, columns: int) -> Tensor:
        """``[columns * bands]``: the column of each token of :meth:`part`."""
        cells = self.part(columns).cells
        shape = [-1 if axis == self.grid.time_axis else 1 for axis in range(len(cells))]
        return torch.arange(columns).view(shape).expand(cells).flatten()
