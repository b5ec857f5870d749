"""Settings of the data: where clips are, how they are read, drawn and decoded, and what happens to unusable ones."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mavil.config.base import Settings, Share


class Sampling(Settings):
    """Weighted draws instead of passes: rare classes come as often as common ones (AudioSet)."""

    weights: Literal["classes", "source"] = Field(
        "classes",
        description="1000 / (clips of the class + 0.01), summed over a clip's labels [source AST]; or what the source gave",
    )
    draws: int = Field(200_000, gt=0, description="clips drawn per epoch, over all ranks [source Audio-MAE]")
    replacement: bool = Field(True, description="a clip may be drawn several times in an epoch [source AST]")
    shard_share: Share = Field(
        1.0, description="each epoch draws from this share of the shards only, so that fewer bytes are read"
    )


class Remote(Settings):
    """How shards at an address (``https://``, ``s3://`` ...) are read; nothing here matters for local folders."""

    cache: str | None = Field(None, description="local folder to keep shards in; none: they are streamed every time")
    cache_gib: float = Field(100.0, gt=0, description="the oldest shards in the cache go when it holds more, GiB")
    tries: int = Field(5, gt=0, description="attempts per request, with growing pauses, before the run ends")
    timeout_seconds: float = Field(30.0, gt=0, description="a server that is silent for so long has failed, s")
    allow_shell: bool = Field(False, description="permit addresses of the form 'pipe:COMMAND {name}', run in a shell")


class Data(Settings):
    """Where clips come from and how they are read."""

    train: str | None = Field(
        None,
        description="to train on: folder or address of shards, or clips as they are: a CSV, a folder of media files",
    )
    evaluation: str | None = Field(None, description="to evaluate on, likewise")
    backend: Literal["pyav", "torchcodec", "decord"] = Field(
        "pyav", description="media decoder; PyAV brings its own FFmpeg"
    )
    num_workers: int = Field(4, ge=0, description="loader processes per rank; 0 decodes in the training process")
    shuffle_buffer: int = Field(512, gt=0, description="clips among which each worker shuffles")
    cache_gib: float = Field(
        0.0, ge=0, description="memory per worker to keep decoded clips in, GiB; 0: decode every time"
    )
    views_per_clip: int = Field(
        1, gt=0, description="batches made of each decoded batch of clips, with other crops, flips, rolls and masks"
    )
    sampling: Sampling | None = Field(None, description="weighted draws in training; none: every clip once per epoch")
    remote: Remote = Remote()
    missing_modality: Literal["skip", "keep"] = Field(
        "skip",
        description="clips without sound or without picture: cannot be used, or train the branches and terms they can",
    )
    evaluation_windows: int = Field(
        1, gt=0, description="windows spread evenly over a longer clip whose predictions are averaged in evaluation"
    )
    unusable: Literal["skip", "stop"] = Field(
        "skip", description="what to do with a clip that cannot be used: count and leave out, or end the run"
    )
    max_skip_ratio: float = Field(
        0.05, ge=0, le=1, description="stop when more than this share of clips cannot be used"
    )
    clip_seconds_limit: float = Field(
        60.0, gt=0, description="a clip that takes longer to decode cannot be used, s [our choice]"
    )
