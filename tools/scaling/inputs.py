"""Everything an estimate takes for granted: each number with its unit and where it comes from. Any of them can be changed.

[assumed] is a guess of ours, to be replaced by a measurement; [datasheet] is the maker's figure as people quote it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

import yaml
from pydantic import Field, ValidationError

from mavil.config.base import Positive, Settings, Share
from mavil.structs import UserError


class Loading(Settings):
    """The training set, and what the loader does with it."""

    clips: int = Field(2_000_000, gt=0, description="clips per epoch, AudioSet-2M; about 1.96 M can be had [recalled]")
    clip_mb: Positive = Field(
        0.80,
        description="read per clip, MB: 10 s at 340 x 256, preset for training [measured: 0.765 MiB, experiments.md]",
    )
    clips_per_shard: int = Field(200, gt=0, description="[the plan of 10,000 shards]")
    core_clips: Positive = Field(
        38.1,
        description="clips/s one core loads and decodes [measured: loader with 2 workers on Zen 4, experiments.md]",
    )


class Compute(Settings):
    """How fast a card is where nobody measured it."""

    global_batch: int = Field(
        512, gt=0, description="clips per step of the paper [recalled]; the recipe's, where it has one"
    )
    utilisation_low: Share = Field(0.10, description="of the card's peak, pessimistic [assumed]")
    utilisation_high: Share = Field(0.40, description="of the card's peak, optimistic [assumed]")
    host_forward_ms: Positive = Field(
        0.4,
        description="the processor's time to launch one block's forward pass, not compiled, ms [assumed: 5 ms for a ViT-B]",
    )
    host_clip_ms: float = Field(
        0.06,
        ge=0,
        description="the same per clip: its masks, crop, roll and gain are drawn there, ms [measured on Zen 4]",
    )
    host_backward_ms: Positive = Field(0.6, description="the same of its backward pass, ms [assumed]")
    anchor_gpu_hours: Positive = Field(5120.0, description="both stages on V100 [secondary: AVSiam's paper]")


class Links(Settings):
    """What carries tensors between cards."""

    efficiency: Share = Field(0.7, description="of a link's nominal speed that a collective reaches [assumed]")
    latency_us: Positive = Field(50.0, description="of one collective over all ranks, microseconds [assumed]")
    hidden_share: float = Field(
        0.8, ge=0, le=1, description="of the backward pass behind which gradients can be averaged [assumed]"
    )
    bucket_mb: Positive = Field(25.0, description="last bucket of DDP, always exposed, MB [torch's default]")
    small_collectives: int = Field(
        2, ge=0, description="per step, a few bytes each: finite check, agreement on stopping"
    )


class Storage(Settings):
    """What shards are read from and checkpoints are written to."""

    read_gb_s: Positive = Field(
        10.0, description="of the shared place, all nodes together, GB/s [assumed: ask for yours]"
    )
    node_read_gb_s: Positive = Field(2.0, description="of one node from there, GB/s [assumed]")
    write_gb_s: Positive = Field(1.0, description="of rank 0 when it writes a checkpoint, GB/s [assumed]")
    host_copy_gb_s: Positive = Field(
        10.0, description="device to host memory, GB/s; training waits [assumed: PCIe 3 x16]"
    )


class Preemption(Settings):
    """A scheduler that takes the cards away."""

    interval_minutes: Positive = Field(30.0, description="between checkpoints [trainer.checkpoint_minutes]")
    every_hours: Positive = Field(4.0, description="between preemptions [assumed]")
    restart_minutes: Positive = Field(
        3.0, description="from the start of the new job to its first step, without waiting in the queue [assumed]"
    )


class Card(Settings):
    """A kind of GPU, and the node it comes in."""

    peak_tflops: Positive = Field(description="matrix peak in bf16 (V100: fp16) without sparsity, TFLOP/s")
    memory_gb: Positive = Field(description="its memory, GB")
    nvlink_gb_s: Positive = Field(description="to its neighbours, one way, GB/s")
    node_gpus: int = Field(8, gt=0, description="cards per node")
    node_cores: int = Field(gt=0, description="processor cores per node")
    node_network_gbit: Positive = Field(description="between nodes, one way, Gbit/s")


CARDS = {
    "V100": Card(peak_tflops=125, memory_gb=32, nvlink_gb_s=150, node_cores=40, node_network_gbit=400),
    "A100": Card(peak_tflops=312, memory_gb=80, nvlink_gb_s=300, node_cores=128, node_network_gbit=1600),
    "H100": Card(peak_tflops=989, memory_gb=80, nvlink_gb_s=450, node_cores=112, node_network_gbit=3200),
    "H200": Card(peak_tflops=989, memory_gb=141, nvlink_gb_s=450, node_cores=112, node_network_gbit=3200),
}
"""SXM cards in nodes like the maker's DGX-1V, DGX A100, DGX H100 and H200 [datasheet]. Yours may have less of everything."""


class Inputs(Settings):
    """All of them, by group."""

    loading: Loading = Loading()
    compute: Compute = Compute()
    links: Links = Links()
    storage: Storage = Storage()
    preemption: Preemption = Preemption()
    cards: dict[str, Card] = Field(default_factory=lambda: dict(CARDS))

    def leaves(self) -> Iterator[tuple[str, float, str]]:
        """``(group.name, value, description)`` of every number."""
        for group in ("loading", "compute", "links", "storage", "preemption"):
            settings: Settings = getattr(self, group)
            for name, field in type(settings).model_fields.items():
                yield f"{group}.{name}", getattr(settings, name), field.description or ""
        for card, settings in self.cards.items():
            for name, field in Card.model_fields.items():
                yield f"cards.{card}.{name}", getattr(settings, name), field.description or ""


def change_inputs(inputs: Inputs, changes: Sequence[str]) -> Inputs:
    """A copy with ``group.name=number`` changes.

    Raises:
        UserError: no such input, or no value for it.
    """
    tree = inputs.model_dump()
    known = [path for path, _, _ in inputs.leaves()]
    for change in changes:
        path, separator, text = change.partition("=")
        if not separator or path not in known:
            near = difflib.get_close_matches(path, known, n=1, cutoff=0.3) or known[:1]
            raise UserError(f"--set {change}: no such input; write e.g. {near[0]}=2 (the last two tables list all)")
        group = tree
        *groups, last = path.split(".")
        for name in groups:
            group = group[name]
        group[last] = yaml.safe_load(text)
    try:
        return Inputs.model_validate(tree)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"--set {'.'.join(map(str, problem['loc']))}={problem['input']}: {problem['msg']}") from None
