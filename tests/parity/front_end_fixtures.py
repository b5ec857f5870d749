"""Files of front ends and of start weights in the documented format, from torchaudio, Pillow, torch and the projects' rules."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio.compliance.kaldi as kaldi
from PIL import Image
from torch import Tensor

from tests.parity import plain
from tests.parity.fixtures import Content, autoencoder_shapes, random_inputs

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
BINS = 64


def wave(seconds: float, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return 0.3 * torch.rand(channels, int(16000 * seconds), generator=generator) - 0.1


OTHER = wave(0.2).flip(1).square()


def fbank(waveform: Tensor) -> Tensor:
    """``[1, L]`` to ``[S, BINS]``, the mean of the wave taken off."""
    return kaldi.fbank(
        waveform - waveform.mean(),
        htk_compat=True,
        sample_frequency=16000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=BINS,
        dither=0.0,
        frame_shift=10,
    )


def mixed(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Both centred, the second cut or padded to the first, and centred again."""
    parts = [one[0] - one.mean() for one in (first, second)]
    sound = (
        share * parts[0] + (1 - share) * F.pad(parts[1], (0, max(0, len(parts[0]) - len(parts[1]))))[: len(parts[0])]
    )
    return (sound - sound.mean())[None]


def fitted(values: Tensor, length: int) -> Tensor:
    return F.pad(values[:length], (0, 0, 0, max(0, length - len(values))))


def cav_mae() -> Content:
    """Half a second of sound, a picture of 50 x 70."""
    sound = wave(0.5)
    log_mel = fbank(sound)
    pixels = (random_inputs({"noise": (50, 70, 3)})["noise"] * 255).to(torch.uint8)
    resized = torch.from_numpy(np.array(Image.fromarray(pixels.numpy()).resize((44, 32), Image.Resampling.BICUBIC)))
    image = (resized[:, 6:38].permute(2, 0, 1) / 255 - MEAN[:, None, None]) / STD[:, None, None]
    return {
        **{"mean": -4.0, "std": 3.0, "target_length": 64, "cut_length": 20, "n_real_frames": len(log_mel)},
        **{"waveform": sound, "waveform2": OTHER, "mix_lambda": 0.3},
        "fbank_mix_unnormalised": fitted(fbank(mixed(sound, OTHER, 0.3)), 64),
        "fbank_mix_swapped_unnormalised": fitted(fbank(mixed(OTHER, sound, 0.3)), 64),
        "fbank_padded_unnormalised": fitted(log_mel, 64),
        "fbank": (fitted(log_mel, 64) + 4.0) / 3.0,
        "fbank_cut": (log_mel[:20] + 4.0) / 3.0,
        **{"image_uint8": pixels, "im_res": 32, "image_mean": MEAN.tolist(), "image_std": STD.tolist(), "image": image},
    }


def mavil() -> Content:
    """0.4 s of stereo sound, frames of 20 x 24 enlarged to 32 x 32."""
    sound = wave(0.4, channels=2)
    both, first = fbank(sound.mean(0, keepdim=True)), fbank(sound[:1])

    def by_clip(values: Tensor) -> Tensor:
        return (values - values.mean()) / (2 * values.std())

    own = by_clip(fitted(both, 96))
    frames = (random_inputs({"noise": (4, 3, 20, 24)})["noise"] * 255).to(torch.uint8)
    shown = frames[[0, 2, 1, 3]].float() / 255
    resized = F.interpolate(shown, size=(32, 32), mode="bilinear", antialias=True, align_corners=False)
    video = ((resized - MEAN[:, None, None]) / STD[:, None, None]).transpose(0, 1)
    index = torch.tensor([0, 5, 31])
    audio = {
        "waveform": sound,
        **{"target_length": 96, "short_target_length": 16, "dataset_mean": -5.0, "dataset_std": 4.0},
        **{"n_real_frames": len(both), "shape": [1, 96, BINS], "channel0_only_row_step": 4},
        "clip_stats": own[None, : len(both)],
        "clip_stats_pad_value": own[-1, 0].item(),
        "dataset_stats": ((both + 5.0) / 8.0)[None],
        "dataset_stats_pad_value": 5.0 / 8.0,
        "channel0_only_clip_stats": by_clip(fitted(first, 96))[None, : len(first) : 4],
        "cut_clip_stats": by_clip(both[:16])[None],
        "cut_dataset_stats": ((both[:16] + 5.0) / 8.0)[None],
    }
    case = {
        **{"frames_uint8": frames, "selected_rows": [0, 2, 1, 3], "shape": [3, 4, 32, 32], "pixel_index": index},
        "antialias": video[:, :, index][..., index],
        "antialias_mean": video.mean((2, 3)),
    }
    tables = {
        "table_3d": table_3d(3, 2, 32),
        "dim": 32,
        "grid": 2,
        "t": 3,
        "table_2d_rect": plain.table_2d(3, 5, 32),
        "rect": [3, 5],
    }
    return {"audio": audio, "video": {"enlarged": case}, "position_tables": tables}


def table_3d(times: int, side: int, width: int) -> Tensor:
    flat = plain.table_2d(side, side, width - width // 4)[1:].tolist()
    return torch.tensor([[0.0] * width, *(plain.codes(t, width // 4) + cell for t in range(times) for cell in flat)])


def audio_mae() -> Content:
    """0.3 s of sound, one data set, one schedule."""
    log_mel = fbank(wave(0.3))
    settings = {"lr": 2e-4, "min_lr": 1e-6, "warmup_epochs": 2, "epochs": 10}
    epochs = [0.0, 0.5, 2.0, 3.25, 10.0]
    rates = [
        2e-4 * e / 2 if e < 2 else 1e-6 + (2e-4 - 1e-6) * 0.5 * (1 + math.cos(math.pi * (e - 2) / 8)) for e in epochs
    ]
    return {
        **{"waveform": wave(0.3), "n_real_frames": len(log_mel), "logmel": log_mel},
        **{"waveform2": OTHER, "mix_lambda": 0.3, "logmel_mix": fbank(mixed(wave(0.3), OTHER, 0.3))},
        "speech": {
            "mean": -6.0,
            "std": 5.0,
            "target_length": 48,
            "normalised": ((fitted(log_mel, 48) + 6.0) / 10.0)[None],
        },
        "lr_schedules": {
            "short": {"settings": settings, "epoch_lr": [list(p) for p in zip(epochs, rates, strict=True)]}
        },
    }


def mae_conversion() -> Content:
    """Three blocks of width 16: CAV-MAE's rule (two to the branches, one unified) and MAViL's (two fusion blocks)."""
    sizes = {"embed_dim": 16, "depth": 3, "decoder_embed_dim": 12, "decoder_depth": 1, "mlp_ratio": 4}
    state = plain.random_state(autoencoder_shapes(sizes, (3, 16, 16), 4, 768), seed=1)
    cav, mavil_state = _as_cav_mae(state), _as_mavil(state)
    copies = {name: "" for name in cav if "pos_embed" not in name and name[-8:] != "a.weight" and "pred_a" not in name}
    del copies["patch_embed_a.proj.weight"]
    computed = {"pos_embed_v", "decoder_pos_embed_v", "patch_embed_v.proj.weight"}
    return {
        "mae_state_dict": state,
        "mae_config": {**sizes, "num_heads": 2, "img_size": 32},
        "cavmae": {
            **{"audio_blocks": 2, "video_blocks": 2, "unified_blocks": 1, "state_dict": cav, "source_of": copies},
            **{
                "not_taken_from_mae": ["modality_a", "decoder_pos_embed_a"],
                "keys_not_in_a_cavmae_model": ["cls_token_a"],
            },
        },
        "mavil": {"state_dict": mavil_state, "source_of": {name: "" for name in mavil_state if name not in computed}},
    }


def _as_cav_mae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    kernel = state["patch_embed.proj.weight"]
    cav = {"cls_token_a": state["cls_token"], "patch_embed_a.proj.weight": kernel.sum(1, keepdim=True)}
    for letter in ("a", "v"):
        cav |= {f"patch_embed_{letter}.proj.bias": state["patch_embed.proj.bias"]}
        for name, value in state.items():
            if name.startswith(("blocks.0.", "blocks.1.")):
                cav[f"blocks_{letter}.{name[7:]}"] = value
            if name.startswith("norm."):
                cav[name.replace("norm", f"norm_{letter}")] = value
            if name.startswith("blocks.2.norm"):
                cav[f"blocks_u.0.{name[9:].replace('.', f'_{letter}.', 1)}"] = value
    for name, value in state.items():
        if name.startswith("blocks.2."):
            cav[f"blocks_u.0.{name[9:]}"] = value
        if name.startswith(("norm.", "mask_token", "decoder_blocks", "decoder_norm", "decoder_embed")):
            cav[name] = value
        if name.startswith("decoder_pred."):
            cav |= {name.replace("pred", "pred_a"): value[:256], name.replace("pred", "pred_v"): value}
    tables = {f"{prefix}pos_embed_v": state[f"{prefix}pos_embed"][:, 1:] for prefix in ("", "decoder_")}
    return {**cav, **tables, "patch_embed_v.proj.weight": kernel}


def _as_mavil(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two tubelets of two frames."""
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        first, *rest = name.split(".")
        converted[".".join([f"{first}_v", *rest])] = value
        if name.startswith("blocks.2."):
            converted |= {f"blocks_av.{i}.{name[9:]}": value for i in (0, 1)}
    for name in ("pos_embed", "decoder_pos_embed"):
        converted[f"{name}_v"] = torch.cat([state[name], state[name][:, 1:]], 1)
    converted["patch_embed_v.proj.weight"] = state["patch_embed.proj.weight"][:, :, None].repeat(1, 1, 2, 1, 1)
    return converted
