"""Every audio model of the project as an upstream of s3prl, the tool kit of the SUPERB benchmark.

::

    import mavil.s3prl
    mavil.s3prl.register()
    upstream = s3prl.nn.S3PRLUpstream("mavil", path_or_url="runs/mae_ast_frame")

With ``run_downstream.py``: ``python -c "import mavil.s3prl, runpy; mavil.s3prl.register(); runpy.run_path('run_downstream.py',
run_name='__main__')" -m train -u mavil -k RUN -d TASK``. Nothing of s3prl is imported until :func:`register`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mavil.features import FeatureOptions, load_features
from mavil.features.options import split_source
from mavil.structs import UserError


class UpstreamExpert(nn.Module):
    """What s3prl calls an upstream: waveforms in, every layer out.

    A layer has one frame per time step of the token grid, the tokens of its mel bands side by side; where the grid has one band
    (MAE-AST's frame model, 20 ms) frame-wise tasks get the resolution they expect. The first is what enters the first block.

    Args:
        ckpt: as for :func:`mavil.features.load_features`; ``layers`` and ``sample_rate`` are s3prl's own matter.
        model_config: s3prl's runner may pass a file; there is none to give, settings follow ``ckpt`` behind a question mark.
        **kwargs: what else s3prl passes to all upstreams (``refresh``); nothing is downloaded, nothing depends on it.

    Raises:
        UserError: no such run or file, or settings that are not for here.
    """

    def __init__(self, ckpt: str = "", model_config: str | None = None, **kwargs: Any) -> None:
        super().__init__()
        if model_config is not None:
            raise UserError(f"model_config={model_config}: write settings behind the checkpoint, e.g. RUN?bands=mean")
        _, options, _ = split_source(ckpt)
        plain = FeatureOptions()
        for name in ("layers", "sample_rate"):
            if getattr(options, name) != getattr(plain, name):
                raise UserError(f"{name}={getattr(options, name)}: s3prl takes all layers, and all its sound is 16 kHz")
        self.features = load_features(ckpt)

    def get_downsample_rates(self, key: str = "hidden_states") -> int:
        """Samples (16 kHz) per frame, of every layer."""
        return self.features.timing.column_samples

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """``hidden_states``: a list of ``[B, frames, W]``, and ``last_hidden_state``.

        Args:
            wavs: waveforms ``[L]``, 16 kHz, each without padding. One shorter than a patch is filled up with zeros.

        A clip has ``ceil(L / rate)`` frames, as s3prl counts them: the last one is repeated, or left out, where it has one too
        few or too many; behind them a shorter clip of the batch is zero. Gradients flow.

        Raises:
            UserError: an empty batch or samples that are NaN.
        """
        if not len(wavs):
            raise UserError("an empty batch: give at least one waveform")
        own = torch.tensor([len(wav) for wav in wavs])
        lengths = own.clamp(min=self.features.timing.shortest_samples)
        waveforms = pad_sequence(list(wavs), batch_first=True)
        waveforms = nn.functional.pad(waveforms, (0, max(0, int(lengths.max()) - waveforms.shape[1])))
        layers, num_columns = self.features.layers(waveforms, lengths)
        rate = self.get_downsample_rates()
        num_frames = -(-own // rate)
        hidden_states = [_with_frames(layer, num_columns, num_frames) for layer in layers]
        return {"hidden_states": hidden_states, "last_hidden_state": hidden_states[-1]}


def _with_frames(layer: Tensor, num_columns: Tensor, num_frames: Tensor) -> Tensor:
    """``[B, n, W]`` of clips that have ``num_columns`` each, with ``num_frames`` instead: ``[B, max frames, W]``."""
    frames = torch.arange(int(num_frames.max()))
    sources = frames.minimum(num_columns[:, None] - 1).to(layer.device)  # [B, frames]
    is_real = (frames < num_frames[:, None]).to(layer.device)
    return layer.gather(1, sources[..., None].expand(-1, -1, layer.shape[2])) * is_real[..., None]


def register(name: str = "mavil") -> None:
    """Make the upstream known to s3prl under a name, without touching its files.

    Raises:
        UserError: s3prl is not installed, or does not go with the torchaudio that is [0.4.18 asks for functions it has lost].
    """
    try:
        from s3prl import hub
    except (ImportError, AttributeError) as error:
        raise UserError(f"s3prl cannot be imported here ({error}): install it, with all that it needs") from error
    setattr(hub, name, UpstreamExpert)
