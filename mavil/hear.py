"""Every audio model of the project as a module of the HEAR benchmark: ``load_model`` and two kinds of embeddings.

``load_model("RUN?sample_rate=48000&layers=mean3")`` takes the options of :class:`mavil.features.FeatureOptions` behind a question
mark, and settings of the recipe, whose names have a dot (``audio.num_steps=512``). A waveform does not say at which rate it was
sampled: give the sound at ``model.sample_rate``, which is 16 kHz unless ``sample_rate`` says otherwise; it is resampled to
16 kHz inside. Sound at another rate than that would give embeddings of sound played too fast or too slowly. Who knows the rate
can say it (``sample_rate=`` of both functions) and gets an error instead.

HEAR's rules: https://hearbenchmark.com/hear-api.html; ``mavil hear validate`` checks them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mavil.features import SoundFeatures, load_features
from mavil.features.options import SAMPLE_RATES
from mavil.features.rates import resampled
from mavil.structs import UserError

LOUDEST = 4.0
"""Full scale is 1, and resampling overshoots it by little; integer samples made floating-point are in the thousands."""


class HearModel(nn.Module):
    """Features of sound with the three attributes that HEAR asks for.

    Attributes:
        features: what computes them, at 16 kHz.
        sample_rate: Hz of the sound to give.
        scene_embedding_size, timestamp_embedding_size: W, values per embedding.
    """

    def __init__(self, features: SoundFeatures) -> None:
        super().__init__()
        self.features = features
        self.sample_rate: int = features.options.sample_rate
        self.scene_embedding_size: int = features.width
        self.timestamp_embedding_size: int = features.width

    def forward(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, samples]`` to embeddings ``[B, n, W]`` and their times ``[B, n]`` in ms; see :func:`get_timestamp_embeddings`."""
        if audio.ndim != 2 or not audio.is_floating_point() or not audio.numel():
            raise UserError(
                f"audio of shape {list(audio.shape)} and type {audio.dtype}: give [clips, samples] of floating-point samples"
            )
        low, high = (float(value) for value in audio.aminmax())
        if max(-low, high) > LOUDEST:
            raise UserError(
                f"audio reaches from {low:g} to {high:g}: samples lie in [-1, 1]; divide 16-bit ones by 32768"
            )
        waveforms = resampled(audio, self.sample_rate)
        values = self.features(waveforms).values
        times = self.features.times_ms(waveforms.shape[1], values.shape[1])
        return values, times.to(values.device).expand(len(values), -1)


def load_model(model_file_path: str = "") -> HearModel:
    """A model in evaluation mode, on the CPU.

    Args:
        model_file_path: a run folder or a checkpoint file of another project, perhaps with options behind a question mark;
            nothing: a tiny model with random weights, always the same.

    Raises:
        UserError: no such run or file, no audio branch in it, an unknown option.
    """
    return HearModel(load_features(model_file_path)).eval()


@torch.no_grad()
def get_timestamp_embeddings(audio: Tensor, model: HearModel, sample_rate: int | None = None) -> tuple[Tensor, Tensor]:
    """Embeddings over time and when they are.

    Args:
        audio: ``[B, samples]`` floating-point in [-1, 1], mono, at ``model.sample_rate``.
        model: from :func:`load_model`, on any device.
        sample_rate: Hz of the audio where the caller knows it [beyond HEAR's interface]; another than the model's is refused.

    Returns:
        ``[B, n, W]`` float32, and ``[B, n]`` float32: the middle of what each stands for, ms from the beginning, never beyond
        the end.

    Raises:
        UserError: no such audio, another sample rate, NaN samples, or it is shorter than one patch.
    """
    if sample_rate is not None and sample_rate != model.sample_rate:
        raise UserError(
            f"audio at {sample_rate} Hz for a model that takes {model.sample_rate} Hz: resample it, or load the model with "
            f"?sample_rate=RATE, one of {', '.join(map(str, SAMPLE_RATES))}"
        )
    embeddings, times = model(audio)
    return embeddings, times


@torch.no_grad()
def get_scene_embeddings(audio: Tensor, model: HearModel, sample_rate: int | None = None) -> Tensor:
    """One embedding per clip, ``[B, W]`` float32: the mean over time [source MSM-MAE]; arguments and errors as above."""
    embeddings, _ = get_timestamp_embeddings(audio, model, sample_rate)
    return embeddings.mean(dim=1)
