"""Settings of the audio side: from waveform to spectrogram to tokens, what training does to them and which are hidden."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mavil.config.base import Settings
from mavil.config.masking import ChunkMasking, RandomMasking, SpanMasking, StructuredMasking
from mavil.config.model import Branch
from mavil.structs import TokenGrid


class AudioAugment(Settings):
    """What training does to a waveform. Drawn per clip from (seed, epoch, key)."""

    roll: bool = Field(True, description="circular shift by a random offset [Audio-MAE's intent; its code never rolls]")
    gain: bool = Field(True, description="times Beta(10, 10) + 0.5 [source Audio-MAE]")
    noise: bool = Field(
        False,
        description="add uniform noise of up to a tenth, and move by up to 10 steps, after normalising [source AST]",
    )
    masked_steps: int = Field(
        0,
        ge=0,
        description="SpecAugment: up to so many steps in a row become 0 before normalising [source Audio-MAE: 192]",
    )
    masked_mel_bins: int = Field(
        0, ge=0, description="SpecAugment: likewise up to so many mel bins in a row [source Audio-MAE: 48]"
    )


class AudioBranch(Branch):
    """The audio side: waveform to spectrogram to tokens, encoder and decoder."""

    seconds: float = Field(10.0, gt=0, description="length of waveform taken from a clip, s [paper]")
    num_steps: int = Field(1024, gt=0, description="spectrogram steps of 10 ms, zero-padded or cut at the end [paper]")
    num_mel_bins: int = Field(128, gt=0, description="mel bins [paper; 80: source MSM-MAE]")
    spectrogram: Literal["kaldi_hann", "kaldi_povey", "slaney"] = Field(
        "kaldi_hann",
        description="log-mel as Kaldi's, 20 Hz to 8 kHz, with Hann windows [source AST, Audio-MAE] or Povey windows [source "
        "MAE-AST]; or Slaney's mel scale, 50 Hz to 8 kHz, windows centred on their step [source MSM-MAE]",
    )
    mean: float | None = Field(
        None,
        strict=True,
        description="log-mel mean; none: as measured by mavil shards stats, else AudioSet's [source Audio-MAE]",
    )
    std: float | None = Field(
        None,
        gt=0,
        strict=True,
        description="log-mel deviation, found likewise; values become (x - mean) / (std_factor std) [source Audio-MAE]",
    )
    std_factor: float = Field(2.0, gt=0, description="[2: source AST, Audio-MAE, MAE-AST; 1: source CAV-MAE, MSM-MAE]")
    batch_statistics: Literal["never", "training", "evaluation"] = Field(
        "never",
        description="take mean and deviation of the batch instead, as public code does: in training [source MAE-AST], or "
        "where clips are encoded [source MSM-MAE]; a clip's input then depends on its batch mates",
    )
    patch: tuple[int, int] = Field((16, 16), description="patch: steps, mel bins [paper]")
    stride: tuple[int, int] | None = Field(
        None,
        description="from one patch to the next: steps, mel bins; none: patches lie side by side [paper; 10 x 10: source AST]",
    )
    positions: Literal["sincos_2d", "transposed_2d", "sincos_1d", "convolutional"] = Field(
        "sincos_2d",
        description="2-D table of the token grid; that of the grid with its axes exchanged, put on the tokens in order [source "
        "Audio-MAE's weights]; 1-D table over token numbers, sine and cosine in turn [source MAE-AST]; or a convolution over "
        "tokens [wav2vec 2.0; option of MAE-AST]",
    )
    masking: Annotated[RandomMasking | StructuredMasking | ChunkMasking | SpanMasking, Field(discriminator="kind")] = (
        RandomMasking()
    )
    token_order: Literal["time_first", "mel_first"] = Field(
        "time_first",
        description="number tokens along mel bins within a time step [source AV-SUPERB copy], or along time within a band, "
        "with patches, kernels and targets transposed likewise [source CAV-MAE, MSM-MAE]",
    )
    augment: AudioAugment = AudioAugment()

    @model_validator(mode="after")
    def _mean_goes_with_std(self) -> AudioBranch:
        if (self.mean is None) != (self.std is None):
            alone, other = ("mean", "std") if self.std is None else ("std", "mean")
            raise ValueError(f"{alone} is set without {other}: give both, or neither to have them found")
        return self

    def grid(self) -> TokenGrid:
        """Tokens of the whole spectrogram."""
        grid = TokenGrid.of((self.num_steps, self.num_mel_bins), self.patch, channels=1, stride=self.stride)
        return grid if self.token_order == "time_first" else grid.reordered((1, 0))
