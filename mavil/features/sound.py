"""Waveforms of any length to features over time, in bounded memory, each clip as if it were alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mavil.data.spectrogram import AudioFrontEnd, num_spectrogram_steps
from mavil.features.options import FeatureOptions
from mavil.features.spectrograms import PieceByPiece
from mavil.features.timing import Timing
from mavil.models.encoder import Encoder
from mavil.models.layers import padding_mask
from mavil.models.tokens import patchify
from mavil.structs import SAMPLE_RATE, UserError

INPUTS_AT_ONCE = 8
"""Inputs of the encoder per call: what bounds the memory of long sound and large batches."""

Choose = Callable[[Iterator[Tensor]], list[Tensor]]
"""From what enters the first block and leaves each one, ``[b, K, D]``, to the tokens that are wanted."""


class Normalisation(NamedTuple):
    """``(x - mean) / (factor * std)``; with ``of_batch`` mean and deviation are those of the batch [source MSM-MAE]."""

    mean: float
    std: float
    factor: float
    of_batch: bool = False


class Features(NamedTuple):
    """``values`` ``[B, n, W]`` float32, zero behind a clip's own ``num_columns`` ``[B]``."""

    values: Tensor
    num_columns: Tensor


class SoundFeatures(nn.Module):
    """An audio encoder for sound of any length.

    The spectrogram is that of the whole waveform. It is cut into inputs of the encoder at multiples of its length; a shorter
    rest keeps the position codes of its own columns and is not filled up. CLS is dropped. A clip's features depend on no other
    clip of the batch, unless the front end takes the batch's statistics.

    Args:
        encoder: of the audio branch; its device is where everything happens.
        front_end: makes log-mel values as they are (mean 0, deviation and factor 1).
        timing: where the encoder's tokens lie.
        normalisation: of the log-mel values.
        norm: what stands behind the last block.
        options: see :class:`~mavil.features.options.FeatureOptions`.

    Raises:
        UserError: a layer that the encoder does not have.
    """

    def __init__(
        self,
        encoder: Encoder,
        front_end: AudioFrontEnd,
        timing: Timing,
        normalisation: Normalisation,
        norm: nn.Module,
        options: FeatureOptions,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.spectrograms = PieceByPiece(front_end, timing)
        self.timing = timing
        self.normalisation = normalisation
        self.norm = norm
        self.options = options
        self._choose = self._chooser(options.layers)

    @property
    def width(self) -> int:
        """W: values per feature."""
        bands = self.timing.grid.num_tokens // self.timing.columns
        return self.encoder.width * (bands if self.options.bands == "joined" else 1)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Features:
        """``[B, L]`` float, 16 kHz, in [-1, 1], zero behind each clip's own length ``[B]``, to features over time.

        Raises:
            UserError: no samples that are numbers, or a clip is shorter than one patch.
        """
        values, num_columns = self._encoded(waveforms, lengths, self._choose)
        return Features(values[0].float(), num_columns)

    def layers(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """All layers ``[B, n, W]``: what enters the first block, what leaves each, the last one through the norm behind it;
        and each clip's number of columns. Arguments and errors as :meth:`forward`.
        """
        return self._encoded(waveforms, lengths, self._all_layers)

    def times_ms(self, num_samples: int, count: int) -> Tensor:
        """``[count]`` float32 ms from the beginning: when the features of a waveform of so many samples (16 kHz) are."""
        if self.options.timestamps == "centred":
            return self.timing.centres_ms(count)
        return (torch.arange(count, dtype=torch.float64) * (1000 * num_samples / SAMPLE_RATE / count)).float()

    def num_columns(self, lengths: Tensor) -> Tensor:
        """How many features waveforms of ``lengths`` samples have."""
        is_padded = self.options.chunks == "padded"
        return self.timing.num_columns_padded(lengths) if is_padded else self.timing.num_columns(lengths)

    def _encoded(self, waveforms: Tensor, lengths: Tensor | None, choose: Choose) -> tuple[list[Tensor], Tensor]:
        lengths = torch.full((len(waveforms),), waveforms.shape[-1]) if lengths is None else lengths.cpu()
        self._check(waveforms, lengths)
        normalisation = self._normalisation_of(waveforms, lengths)
        clips: list[list[Tensor]] = []
        for some, own in zip(waveforms.split(INPUTS_AT_ONCE), lengths.split(INPUTS_AT_ONCE), strict=True):
            for parts in self._parts(some, own, normalisation, choose):
                clips.append([torch.cat(layer) for layer in zip(*parts, strict=True)])
        layers = [pad_sequence(list(of_clips), batch_first=True) for of_clips in zip(*clips, strict=True)]
        return layers, self.num_columns(lengths)

    def _parts(
        self, waveforms: Tensor, lengths: Tensor, normalisation: Normalisation, choose: Choose
    ) -> list[list[list[Tensor]]]:
        """For each of a few clips, for each of its inputs to the encoder, the chosen layers ``[columns, W]``."""
        whole, num_columns = self.timing.columns, self.num_columns(lengths)
        parts: list[list[list[Tensor]]] = [[] for _ in lengths]
        first = 0
        while len(rows := (num_columns > first * whole).nonzero().flatten()):
            count = max(1, INPUTS_AT_ONCE // len(rows))
            held = (num_columns[rows, None] - whole * (first + torch.arange(count))).clamp(0, whole)
            clip, place = (held > 0).nonzero().unbind(dim=1)
            inputs = self._inputs(waveforms, lengths, rows, (first, first + int(place.max()) + 1), normalisation)
            columns = held[clip, place]
            layers = self._encode_inputs(inputs[clip.to(inputs.device), place.to(inputs.device)], columns, choose)
            for i, (row, own) in enumerate(zip(rows[clip].tolist(), columns.tolist(), strict=True)):
                parts[row].append([layer[i, :own] for layer in layers])
            first += count
        return parts

    def _inputs(
        self, waveforms: Tensor, lengths: Tensor, rows: Tensor, span: tuple[int, int], normalisation: Normalisation
    ) -> Tensor:
        """``[b, inputs, steps, M]``: the normalised inputs of a span, of some clips."""
        timing = self.timing
        unit, steps = timing.columns * timing.stride, timing.steps_of(timing.columns)
        start, stop = span[0] * unit, (span[1] - 1) * unit + steps
        values = self.spectrograms(waveforms, lengths, rows, start, stop)
        values = (values - normalisation.mean) / (normalisation.factor * normalisation.std)
        if self.options.chunks == "padded":
            num_steps = num_spectrogram_steps(lengths[rows], timing.spectrogram)[:, None]
            values = values * (torch.arange(start, stop) < num_steps).to(values.device)[..., None]
        return values.unfold(1, steps, unit).movedim(-1, 2)  # [b, inputs, M, steps] -> [b, inputs, steps, M]

    def _encode_inputs(self, inputs: Tensor, own: Tensor, choose: Choose) -> list[Tensor]:
        """``[b, steps, M]``, of which each has ``own`` ``[b]`` columns, to the chosen layers ``[b, columns, W]``."""
        timing = self.timing
        columns = timing.columns if self.options.chunks == "padded" else int(own.max())
        part = timing.part(columns)
        patches = patchify(inputs[:, None, : part.size[0]], part)
        ids, is_padding = None, None
        if columns < timing.columns:
            ids = timing.token_ids(columns).to(inputs.device).expand(len(inputs), -1)
        if self.options.chunks == "exact" and int(own.min()) < columns:
            is_padding = (timing.column_of_token(columns) >= own[:, None]).to(inputs.device)
        layers = choose(self._layers(patches, ids, is_padding))
        return [self._by_column(layer, part.cells) for layer in layers]

    def _layers(self, patches: Tensor, ids: Tensor | None, is_padding: Tensor | None) -> Iterator[Tensor]:
        """As :meth:`Encoder.layers` of the first columns of an input."""
        tokens = self.encoder.embed(patches, ids, is_padding)
        mask = padding_mask(is_padding, self.encoder.num_prefix)
        yield tokens
        for block in self.encoder.blocks:
            tokens = block(tokens) if mask is None else block(tokens, attn_mask=mask)
            yield tokens

    def _by_column(self, tokens: Tensor, cells: tuple[int, ...]) -> Tensor:
        """``[b, c + K, D]`` to ``[b, columns, W]``; bands in order, low to high."""
        spread = tokens[:, self.encoder.num_prefix :].unflatten(1, cells).movedim(1 + self.timing.grid.time_axis, 1)
        return spread.flatten(2) if self.options.bands == "joined" else spread.mean(dim=2)

    def _chooser(self, layers: str) -> Choose:
        depth = len(self.encoder.blocks)
        number = int(layers.removeprefix("mean")) if layers != "last" else 1
        if number > depth:
            raise UserError(f"layers={layers}: the encoder has {depth} blocks")
        if layers.isdecimal():
            return lambda outputs: [tokens for i, tokens in enumerate(outputs) if i == number]

        def mean_of_last(outputs: Iterator[Tensor]) -> list[Tensor]:
            last = [self.norm(tokens) for i, tokens in enumerate(outputs) if i > depth - number]
            return [torch.stack(last).mean(dim=0) if number > 1 else last[0]]

        return mean_of_last

    def _all_layers(self, outputs: Iterator[Tensor]) -> list[Tensor]:
        layers = list(outputs)
        return [*layers[:-1], self.norm(layers[-1])]

    def _normalisation_of(self, waveforms: Tensor, lengths: Tensor) -> Normalisation:
        if not self.normalisation.of_batch:
            return self.normalisation
        steps = self.timing.steps_of(self.timing.columns)
        mean, std = self.spectrograms.statistics(waveforms, lengths, steps)
        return self.normalisation._replace(mean=mean, std=std)

    def _check(self, waveforms: Tensor, lengths: Tensor) -> None:
        if waveforms.ndim != 2 or not waveforms.is_floating_point() or not len(waveforms):
            raise UserError(
                f"sound of shape {list(waveforms.shape)} and type {waveforms.dtype}: give a batch of waveforms, "
                "[clips, samples], of floating-point samples in [-1, 1]"
            )
        shortest = self.timing.shortest_samples
        for row, (waveform, length) in enumerate(zip(waveforms, lengths.tolist(), strict=True)):
            if length < shortest:
                raise UserError(
                    f"clip {row} of the batch has {length} samples ({length / SAMPLE_RATE:.3f} s), but one patch of the encoder "
                    f"takes {shortest} ({shortest / SAMPLE_RATE:.3f} s): leave it out, or fill it up with zeros"
                )
            low, high = waveform.aminmax()
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                raise UserError(
                    f"clip {row} of the batch has samples that are NaN or infinite: leave it out, or mend it"
                )
