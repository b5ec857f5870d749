"""Which values of one branch exclude each other: masks, positions, decoders; and what one decoder for both asks of them."""

from __future__ import annotations

from mavil.config.audio import AudioBranch
from mavil.config.masking import ChunkMasking, SpanMasking, StructuredMasking
from mavil.config.video import VideoBranch
from mavil.structs import Modality, TokenGrid

DECODER_POSITIONS: dict[Modality, tuple[str, ...]] = {
    "audio": ("sincos_2d", "transposed_2d", "sincos_1d", "convolutional"),
    "video": ("sincos_3d", "tiled_2d", "sincos_1d"),
}
"""Kinds that fit a modality's grid."""
TOWER_OPTIONS = {
    "norm": ("pre", "its blocks have norms of their own"),
    "key_bias": (True, "its keys always have a bias"),
    "dropout": (0.0, "its blocks have none"),
    "layer_drop": (0.0, "all of its blocks are always passed"),
}
"""Settings of a tower that neither windows nor a decoder for both know, with the only value that fits, and why for windows."""


def check_positions(modality: Modality, branch: AudioBranch | VideoBranch) -> None:
    """What an encoder cannot do, whatever the task.

    Raises:
        ValueError: a table is to be trained where there is none.
    """
    if branch.trained_positions and branch.positions == "convolutional":
        raise ValueError(
            f"{modality}.trained_positions=true trains a position table, but {modality}.positions is convolutional and has none: "
            "leave one out"
        )


def check_mask(setting: str, ratio: float, modality: Modality, branch: AudioBranch | VideoBranch) -> None:
    """How many tokens a view shows, and that the shapes it is made of fit the grid; ``setting`` names the ratio.

    Raises:
        ValueError: nothing would stay visible or nothing hidden, or squares or spans do not fit.
    """
    grid = branch.grid()
    masking = branch.masking if isinstance(branch, AudioBranch) else None
    if isinstance(masking, StructuredMasking):
        _check_structured(modality, masking, grid)
        return
    try:
        grid.num_visible(ratio)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None
    if isinstance(masking, ChunkMasking):
        largest = grid.cells[0] if masking.wraps else min(grid.cells)
        if max(masking.sides) > largest:
            raise ValueError(
                f"{modality}.masking.sides={list(masking.sides)}: a square of {max(masking.sides)} tokens does not fit the token "
                f"grid of {list(grid.cells)} cells: take sides of at most {largest}, or masking.kind=spans"
            )
    elif isinstance(masking, SpanMasking) and masking.length > grid.num_tokens:
        raise ValueError(
            f"{modality}.masking.length={masking.length} is longer than all {grid.num_tokens} tokens of the grid: take a "
            "shorter one"
        )


def _check_structured(modality: Modality, masking: StructuredMasking, grid: TokenGrid) -> None:
    try:
        num_visible = masking.num_visible(grid, 0.0)
    except ValueError as error:
        raise ValueError(f"{modality}.masking.{error}") from None
    if num_visible == grid.num_tokens:
        raise ValueError(
            f"{modality}.masking.time_ratio={masking.time_ratio} and mel_ratio={masking.mel_ratio} hide none of "
            f"{grid.num_tokens} tokens: make one of them larger"
        )


def check_decoder(modality: Modality, branch: AudioBranch | VideoBranch, window: tuple[int, ...]) -> None:
    """What one branch's decoder cannot do; ``window`` is that of its windows, if it has any.

    Raises:
        ValueError: two settings do not go together.
    """
    encoder, decoder, name = branch.encoder, branch.decoder, f"{modality}.decoder"
    if decoder.positions is not None and decoder.positions not in DECODER_POSITIONS[modality]:
        raise ValueError(
            f"{name}.positions={decoder.positions} does not fit the token grid of {modality}: take "
            f"{', '.join(DECODER_POSITIONS[modality])}, or null for those of the encoder"
        )
    if not decoder.projection and encoder.width != decoder.width:
        raise ValueError(
            f"{name}.projection=false needs equal widths, but {modality}.encoder.width is {encoder.width} and {name}.width "
            f"is {decoder.width}: make them equal, or set {name}.projection=true"
        )
    if decoder.attention == "windowed":
        _check_windows(modality, branch, window)
    elif decoder.shift == "time":
        raise ValueError(
            f"{name}.shift=time moves windows of attention, but {name}.attention is global: leave {name}.shift out, or set "
            f"{name}.attention=windowed"
        )


def _check_windows(modality: Modality, branch: AudioBranch | VideoBranch, window: tuple[int, ...]) -> None:
    decoder, cells = branch.decoder, branch.grid().cells
    if len(window) != len(cells) or any(size > count for count, size in zip(cells, window, strict=True)):
        origin = "" if decoder.window else " (the default)"
        raise ValueError(
            f"{modality}.decoder.window={list(window)}{origin} does not fit the token grid of {list(cells)} cells: give as many "
            "numbers as the grid has axes, none larger than the grid's"
        )
    for setting, (fitting, why) in TOWER_OPTIONS.items():
        if (value := getattr(decoder, setting)) != fitting:
            raise ValueError(
                f"{modality}.decoder.{setting}={_written(value)} has no effect on a decoder with attention=windowed: {why}; set "
                f"{setting}={_written(fitting)} or attention=global"
            )


def check_joint_decoder(branches: dict[Modality, AudioBranch | VideoBranch]) -> None:
    """What one decoder for both modalities asks of the branches.

    Raises:
        ValueError: a modality is missing, the branches ask for different decoders, or for what such a decoder does not do.
    """
    if len(branches) < 2:
        raise ValueError(
            f"joint_decoder needs both modalities, but only {next(iter(branches))} is set: set it to false"
        )
    audio, video = branches["audio"], branches["video"]
    for name in type(audio.decoder).model_fields:
        own, other = getattr(audio.decoder, name), getattr(video.decoder, name)
        if own != other:
            raise ValueError(
                f"joint_decoder is one decoder for both, but audio.decoder.{name} is {own} and video.decoder.{name} is {other}: "
                "give both the same decoder"
            )
    if audio.decoder.attention == "windowed":
        raise ValueError(
            "joint_decoder looks at the tokens of both modalities, but audio.decoder.attention is windowed: windows lie in one "
            "token grid, so set attention=global or joint_decoder=false"
        )
    if audio.encoder.width != video.encoder.width:
        raise ValueError(
            f"joint_decoder needs encoders of one width, but audio has {audio.encoder.width} and video {video.encoder.width}"
        )
    _check_joint_options(audio)


def _check_joint_options(audio: AudioBranch | VideoBranch) -> None:
    options = {name: fitting for name, (fitting, _) in TOWER_OPTIONS.items() if name in ("norm", "dropout")}
    for setting, fitting in {**options, "projection": True}.items():
        if (value := getattr(audio.decoder, setting)) != fitting:
            raise ValueError(
                f"joint_decoder has no {setting}={_written(value)}, but audio.decoder and video.decoder ask for it: set "
                f"{setting}={_written(fitting)} for both, or joint_decoder=false"
            )
    positions = audio.decoder.positions or audio.positions
    if positions == "convolutional":
        origin = "audio.decoder.positions" if audio.decoder.positions else "audio.positions"
        raise ValueError(
            f"joint_decoder has position tables, but {origin} is convolutional: set audio.decoder.positions and "
            "video.decoder.positions to sincos_1d, or joint_decoder=false"
        )


def _written(value: object) -> str:
    """As in a recipe."""
    return str(value).lower() if isinstance(value, bool) else str(value)
