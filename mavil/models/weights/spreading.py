"""One file's blocks in several parts: an image MAE as a whole CAV-MAE, a fusion from an encoder's last block."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from mavil.models.weights.converted import Converted
from mavil.models.weights.offers import Offer, Target
from mavil.structs import MODALITIES, UserError

_BLOCK = re.compile(r"(?P<stack>(?:audio_|video_)?blocks)\.(?P<index>\d+)\.(?P<rest>.+)")


def fusion_from_last_block(encoder: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> Offer:
    """Every fusion block a copy of an encoder's last block, its norms also for modalities that pass alone."""
    depths = [int(match[1]) for name in encoder if (match := re.match(r"blocks\.(\d+)\.", name))]
    offer = Offer("fusion", {}, absent="a block has none")
    for name in shapes:
        inside = re.fullmatch(r"(?:audio_|video_)?blocks\.\d+\.(?:alone_norms\.\w+\.)?(.+)", name)
        held = f"blocks.{max(depths, default=0)}.{inside[1]}" if inside else ""
        if held in encoder:
            offer.tensors[name] = encoder[held]
    return offer


def further_blocks(held: Mapping[str, object], wanted: Iterable[str]) -> dict[str, str]:
    """Tensors of blocks beyond those that are held, each with the tensor of the last held block that it can be a copy of.

    ``held`` and ``wanted``: names in one part, such as a fusion. Nothing where no block is held.
    """
    blocks = [match for name in held if (match := _BLOCK.fullmatch(name))]
    depths = {
        stack: 1 + max(int(m["index"]) for m in blocks if m["stack"] == stack) for stack in {m["stack"] for m in blocks}
    }
    copies: dict[str, str] = {}
    for name in wanted:
        match = _BLOCK.fullmatch(name)
        if match is None or match["stack"] not in depths or int(match["index"]) < depths[match["stack"]]:
            continue
        last = f"{match['stack']}.{depths[match['stack']] - 1}.{match['rest']}"
        if last in held:
            copies[name] = last
    return copies


def told_of_copies(copies: Mapping[str, str]) -> str:
    """For the log: which blocks of :func:`further_blocks` are copies of which, counted from 0."""
    blocks, last = (
        [match["index"] for name in names if (match := _BLOCK.fullmatch(name))] for names in (copies, copies.values())
    )
    return f"block {', '.join(dict.fromkeys(blocks))} begins as a copy of block {last[0]} (the first is 0)"


def cav_mae_from_image(converted: Converted, target: Target) -> Converted:
    """An image MAE as a whole CAV-MAE [source CAV-MAE]: the first blocks to both branches, the rest to the fusion.

    The final norm becomes every norm behind the fusion; the decoder is taken, its first rows of predictions for sound.

    Raises:
        UserError: the model's depths do not add up to the file's.
    """
    encoder, decoder = converted.parts["video_encoder"], converted.parts.get("video_decoder", {})
    depth = 1 + max(int(match[1]) for name in encoder if (match := re.match(r"blocks\.(\d+)\.", name)))
    depths = {part: _depth(target.shapes.get(part, {})) for part in ("audio_encoder", "video_encoder", "fusion")}
    both = depths["video_encoder"]
    if depths["audio_encoder"] != both or both + depths["fusion"] != depth:
        raise UserError(
            f"an image MAE of {depth} blocks becomes a whole model only if encoders and fusion share them, but they have "
            f"{depths['audio_encoder']}, {both} and {depths['fusion']}: set audio.encoder.depth, video.encoder.depth, "
            "fusion.depth, or start the branches with task.start.video and task.start.audio"
        )
    whole = Converted("image_mae", unused=dict(converted.unused))

    def put(part: str, name: str, tensor: Tensor, held: str) -> None:
        whole.put(part, name, tensor, *converted.origin[held])

    for name, tensor in encoder.items():
        block = re.match(r"blocks\.(\d+)\.(.+)", name)
        held = f"video_encoder.{name}"
        if block is not None and int(block[1]) >= both:
            unified = f"blocks.{int(block[1]) - both}"
            put("fusion", f"{unified}.{block[2]}", tensor, held)
            if block[2].startswith("norm"):
                for modality in MODALITIES:
                    put("fusion", f"{unified}.alone_norms.{modality}.{block[2]}", tensor, held)
        elif name.startswith("norm."):
            for new in ("norm", *(f"alone_norms.{m}" for m in MODALITIES)):
                put("fusion", name.replace("norm", new, 1), tensor, held)
        elif name != "pos_embed":
            put("audio_encoder", name, tensor, held)
            put("video_encoder", name, tensor, held)
        else:
            put("video_encoder", name, tensor, held)
    rows = math.prod(target.grids["audio"].patch)
    for name, tensor in decoder.items():
        held = f"video_decoder.{name}"
        if name.startswith("pred."):
            put("decoder", name.replace("pred", "preds.video", 1), tensor, held)
            put("decoder", name.replace("pred", "preds.audio", 1), tensor[:rows], held)
        else:
            put("decoder", "video_pos_embed" if name == "pos_embed" else name, tensor, held)
    return whole


def _depth(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return len({match[1] for name in shapes if (match := re.match(r"blocks\.(\d+)\.", name))})
