"""Seconds of a step and what it moves: pure functions of a recipe's work, a card and the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from tools.scaling.inputs import Card, Inputs
from tools.scaling.measured import Measurement
from tools.scaling.work import GIB, Work

GB, MB = 1e9, 1e6
PASSES_OVER_GRADIENTS = {"ddp": 2.0, "fsdp": 3.0, "fairscale": 2.0}
"""How often a rank sends (R-1)/R of all parameters or gradients in a step. ddp: one all-reduce, which is a reduce-scatter and an
all-gather. fsdp: weights gathered for the forward and again for the backward pass, gradients reduce-scattered. fairscale: each
gradient reduced to its owner, each updated weight broadcast from it."""


@dataclass(frozen=True)
class Place:
    """So many cards of a kind, with a batch each."""

    card_name: str
    card: Card
    ranks: int
    device_batch: float

    @property
    def global_batch(self) -> float:
        """Clips per step."""
        return self.ranks * self.device_batch

    @property
    def nodes(self) -> int:
        """Nodes that hold the cards."""
        return ceil(self.ranks / self.card.node_gpus)

    @property
    def gpus_per_node(self) -> int:
        """Cards in use on each of them."""
        return min(self.ranks, self.card.node_gpus)


@dataclass(frozen=True)
class Step:
    """Seconds of one step by cause, and which clips per second the parts that run beside each other allow.

    ``compute``: the card; ``launch``: the processor launching kernels, beside it; ``exposed``: communication the card waits for.
    ``ceilings``: clips/s over all ranks that each part could sustain alone. ``source`` says where ``compute`` comes from.
    """

    compute: float
    launch: float
    gradients: float
    exposed: float
    ceilings: dict[str, float]
    clips: float
    source: str

    @property
    def device_seconds(self) -> float:
        """A step if data were always there."""
        return max(self.compute, self.launch) + self.exposed

    @property
    def wanted(self) -> float:
        """Clips/s the cards would take if data were always there."""
        return self.clips / self.device_seconds

    @property
    def clips_per_second(self) -> float:
        """What is left when decoding and storage are counted; both work ahead, so the slowest decides."""
        return min(self.wanted, self.ceilings["decode"], self.ceilings["storage"])

    @property
    def busy_share(self) -> float:
        """Share of the time in which the card computes."""
        return self.compute * self.clips_per_second / self.clips

    @property
    def limit(self) -> str:
        """What decides."""
        if self.clips_per_second < self.wanted:
            return min(("decode", "storage"), key=self.ceilings.__getitem__)
        if self.exposed > max(self.compute, self.launch):
            return "network"
        return "launch" if self.launch > self.compute else "compute"


def ring_bytes(passes: float, ranks: int, num_bytes: float) -> float:
    """What each rank sends when ``num_bytes`` go round a ring of ``ranks`` in ``passes`` passes: an all-reduce has two."""
    return passes * (ranks - 1) / ranks * num_bytes


def num_collectives(kind: str, work: Work, inputs: Inputs) -> int:
    """How many collectives a kind of parallelism takes for weights and gradients: by bucket, by block or by tensor.

    ddp: a bucket each. fsdp: each block three times. fairscale: each tensor twice, for it runs without buckets here
    (mavil/engine/parallel/fairscale.py).
    """
    if kind == "ddp":
        return ceil(work.gradient_bytes / (inputs.links.bucket_mb * MB))
    return 3 * work.blocks if kind == "fsdp" else 2 * work.tensors


def collective_seconds(
    num_bytes: float, place: Place, inputs: Inputs, network_gbit: float | None = None, count: int = 0
) -> float:
    """Time until each rank has sent ``num_bytes`` in ``count`` collectives: the slower of the links inside and between nodes.

    A ring passes each node's border once however many cards it has inside, so a node sends as much as one rank does; several
    rings share the bytes out over several network cards.
    """
    if place.ranks == 1:
        return 0.0
    inside = num_bytes / (place.card.nvlink_gb_s * GB) if place.gpus_per_node > 1 else 0.0
    gbit = place.card.node_network_gbit if network_gbit is None else network_gbit
    between = num_bytes / (gbit / 8 * GB) if place.nodes > 1 else 0.0
    return max(inside, between) / inputs.links.efficiency + count * inputs.links.latency_us * 1e-6


def weights_seconds(kind: str, work: Work, place: Place, inputs: Inputs, network_gbit: float | None = None) -> float:
    """Weights and gradients of a step, by kind of parallelism."""
    num_bytes = ring_bytes(PASSES_OVER_GRADIENTS[kind], place.ranks, work.gradient_bytes)
    return collective_seconds(num_bytes, place, inputs, network_gbit, num_collectives(kind, work, inputs))


def gather_seconds(work: Work, place: Place, inputs: Inputs, network_gbit: float | None = None) -> float:
    """Contrastive gathers of a step: an all-gather each in the forward pass, an all-reduce of as much in the backward pass."""
    num_bytes = ring_bytes(3.0, place.ranks, work.gathered_bytes(round(place.global_batch)))
    return collective_seconds(num_bytes, place, inputs, network_gbit, 2 * work.gathered)


def exposed_seconds(
    work: Work, place: Place, inputs: Inputs, busy: float, network_gbit: float | None = None
) -> tuple[float, float]:
    """Seconds of averaging gradients (ddp), and those of all communication that the card waits for when it is ``busy`` so long.

    Hidden: what fits behind ``links.hidden_share`` of the backward pass, except the last bucket. Gathers and agreements are in
    nobody's shadow.
    """
    gradients = weights_seconds("ddp", work, place, inputs, network_gbit)
    last = gradients / num_collectives("ddp", work, inputs)
    shadow = inputs.links.hidden_share * work.backward_share * busy
    small = collective_seconds(0.0, place, inputs, network_gbit, inputs.links.small_collectives)
    return gradients, max(last, gradients - shadow) + gather_seconds(work, place, inputs, network_gbit) + small


def launch_seconds(work: Work, device_batch: float, inputs: Inputs) -> float:
    """The processor's time per step: launching blocks, whatever the batch, and drawing random numbers for each clip."""
    forward, backward = inputs.compute.host_forward_ms, inputs.compute.host_backward_ms
    return (
        work.blocks * (forward + backward) + work.teacher_blocks * forward + device_batch * inputs.compute.host_clip_ms
    ) / 1000


def estimate_step(
    work: Work, place: Place, inputs: Inputs, utilisation: float, measurements: Sequence[Measurement] = ()
) -> Step:
    """One step: from the measurement of this recipe and card with the nearest batch, else from ``utilisation`` of its peak.

    A measurement is scaled in proportion to the batch. One of several ranks holds their communication already; it is counted
    again here, so the estimate is then on the careful side.
    """
    fitting = [m for m in measurements if m.recipe == work.name and m.card == place.card_name]
    if fitting:
        nearest = min(fitting, key=lambda m: (abs(m.device_batch - place.device_batch), m.ranks))
        compute = nearest.step_seconds * place.device_batch / nearest.device_batch
        source = "measured" if nearest.device_batch == place.device_batch else f"measured at {nearest.device_batch}"
    else:
        compute = place.device_batch * work.flops_per_clip / (place.card.peak_tflops * 1e12 * utilisation)
        source = "assumed"
    launch = launch_seconds(work, place.device_batch, inputs)
    gradients, exposed = exposed_seconds(work, place, inputs, max(compute, launch))
    clips = place.global_batch
    reading = min(inputs.storage.read_gb_s, place.nodes * inputs.storage.node_read_gb_s)
    ceilings = {
        "compute": clips / compute,
        "launch": clips / launch,
        "network": clips / exposed if exposed else float("inf"),
        "decode": place.ranks * min(decode_cores(place), work.recipe.data.num_workers) * inputs.loading.core_clips,
        "storage": reading * GB / (inputs.loading.clip_mb * MB),
    }
    return Step(compute, launch, gradients, exposed, ceilings, clips, source)


def decode_cores(place: Place) -> float:
    """Cores a rank can decode on: its part of the node without the one that its training process takes."""
    return place.card.node_cores / place.gpus_per_node - 1


def memory_gb(work: Work, device_batch: float) -> float:
    """Estimated memory of a rank, GB: weights (the teacher's too), gradients, moments, activations."""
    return (work.fixed_gib + work.clip_gib * device_batch) * GIB / GB


def preempted_efficiency(inputs: Inputs, every_hours: float, has_warning: bool) -> float:
    """Share of the time between preemptions that trains: the rest restarts or, without a warning, repeats half an interval."""
    lost = inputs.preemption.restart_minutes + (0 if has_warning else inputs.preemption.interval_minutes / 2)
    return max(0.0, 1 - lost / (60 * every_hours))


def implied_utilisation(works: Sequence[Work], inputs: Inputs, card: Card) -> float:
    """Of a card's peak, if all these recipes together took ``compute.anchor_gpu_hours``."""
    flops = sum(w.flops_per_clip * w.samples(inputs.loading.clips, inputs.compute.global_batch) for w in works)
    return flops / (inputs.compute.anchor_gpu_hours * 3600) / (card.peak_tflops * 1e12)
