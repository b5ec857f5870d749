"""Start weights: what CAV-MAE and MAViL make of an image MAE, against what ``task.start`` makes of it here."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mavil.models.decoder import Decoder, JointDecoder
from mavil.models.encoder import Encoder
from mavil.models.fusion import JointFusion
from mavil.models.layers import Stack
from mavil.models.weights import Target, start_parts, to_cav_mae_names, to_mavil_names
from mavil.structs import Modality, TokenGrid
from tools.parity.building import build_encoder
from tools.parity.checks import Checks

ANY_CELLS = (2, 2)
"""Of sound: no table of it is taken from a picture."""
State = dict[str, Tensor]


def check(checks: Checks) -> None:
    """Every tensor of both projects' start weights, exactly."""
    state: State = checks.fixture.get("mae_state_dict")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mae.pth"
        torch.save({"model": state}, path)
        _check_cav_mae(checks, path)
        _check_mavil(checks, path)


def _check_cav_mae(checks: Checks, path: Path) -> None:
    stored: State = checks.fixture.get("cavmae", "state_dict")
    blocks = {which: int(checks.fixture.number("cavmae", f"{which}_blocks")) for which in ("audio", "video", "unified")}
    config: dict[str, Any] = checks.fixture.get("mae_config")
    grids: dict[Modality, TokenGrid] = {
        "audio": TokenGrid(ANY_CELLS, _patch(stored["patch_embed_a.proj.weight"]), 1, (1, 0)),
        "video": _video_grid(stored, config, has_cls=False),
    }
    encoders = {
        m: build_encoder(grid, _stack(config, blocks[m]), cls_token=False, modality_embedding=True)
        for m, grid in grids.items()
    }
    values = {m: len(stored[f"decoder_pred_{m[0]}.weight"]) for m in grids}
    none: dict[Modality, int] = {"audio": 0, "video": 0}
    positions: dict[Modality, str] = {"audio": "sincos_2d", "video": "tiled_2d"}
    decoder = JointDecoder(grids, int(config["embed_dim"]), _decoder_stack(config), positions, values, none)
    fusion = JointFusion(_stack(config, blocks["unified"]), alone_norms=True)
    parts = {**_named(encoders), "fusion": fusion, "decoder": decoder}
    found, _ = start_parts(Target.of(parts, grids, tiled=True), model=path)
    named = to_cav_mae_names(found)
    dead = set(checks.fixture.get("cavmae", "keys_not_in_a_cavmae_model"))
    _compare(checks, "cavmae", named, {name: value for name, value in stored.items() if name not in dead})
    untouched = set(checks.fixture.get("cavmae", "not_taken_from_mae"))
    checks.condition("cavmae.not_taken_from_mae", not untouched & named.keys(), f"{len(untouched)} stay as they are")


def _check_mavil(checks: Checks, path: Path) -> None:
    stored: State = checks.fixture.get("mavil", "state_dict")
    config: dict[str, Any] = checks.fixture.get("mae_config")
    grid = _video_grid(stored, config, has_cls=True)
    encoder = build_encoder(grid, _stack(config, int(config["depth"])))
    decoder = Decoder(grid, encoder.width, _decoder_stack(config), "tiled_2d", grid.patch_values)
    fusion = JointFusion(_stack(config, len({name.split(".")[1] for name in stored if name.startswith("blocks_av.")})))
    parts: dict[str, nn.Module] = {"video_encoder": encoder, "video_decoder": decoder, "fusion": fusion}
    found, _ = start_parts(Target.of(parts, {"video": grid}, tiled=True), video=path)
    # The original keeps predictions of one frame, which its tubelets of two cannot use; ours start at random.
    of_one_frame = {
        name for name in stored if name.startswith("decoder_pred_v.") and len(stored[name]) != grid.patch_values
    }
    if of_one_frame:
        checks.notes.append(f"mavil: {', '.join(sorted(of_one_frame))} predict one frame and are left out here")
    _compare(checks, "mavil", to_mavil_names(found), {k: v for k, v in stored.items() if k not in of_one_frame})


def _compare(checks: Checks, project: str, ours: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """One row for all copies, one for each tensor that is computed."""
    copied = set(checks.fixture.get(project, "source_of")) & stored.keys()
    lacking = sorted(stored.keys() - ours.keys())
    checks.condition(f"{project}: names", not lacking, f"lacks {lacking[0]}" if lacking else f"{len(stored)}")
    off = [name for name in sorted(copied & ours.keys()) if not torch.equal(ours[name], stored[name])]
    checks.condition(f"{project}: copies", not off, f"e.g. {off[0]}" if off else f"{len(copied)}")
    for name in sorted((stored.keys() - copied) & ours.keys()):
        checks.add(f"{project}.state_dict.{name}", ours[name], stored[name], 0.0, "exact")


def _named(encoders: Mapping[Modality, Encoder]) -> dict[str, nn.Module]:
    return {f"{m}_encoder": encoder for m, encoder in encoders.items()}


def _stack(config: Mapping[str, Any], depth: int) -> Stack:
    return Stack(int(config["embed_dim"]), depth, int(config["num_heads"]))


def _decoder_stack(config: Mapping[str, Any]) -> Stack:
    # No number of heads leaves a trace in the weights.
    return Stack(int(config["decoder_embed_dim"]), int(config["decoder_depth"]), num_heads=1)


def _patch(kernel: Tensor) -> tuple[int, ...]:
    return tuple(kernel.shape[2:])


def _video_grid(stored: Mapping[str, Tensor], config: Mapping[str, Any], has_cls: bool) -> TokenGrid:
    """As many time steps as the table has pictures."""
    kernel = _patch(stored["patch_embed_v.proj.weight"])
    patch = kernel if len(kernel) == 3 else (1, *kernel)
    rows, columns = (int(config["img_size"]) // side for side in patch[1:])
    times = (stored["pos_embed_v"].shape[1] - has_cls) // (rows * columns)
    return TokenGrid((times, rows, columns), patch, 3)
