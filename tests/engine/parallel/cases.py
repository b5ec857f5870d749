"""Models that train under every kind of parallelism, and the same steps for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mavil import distributed
from mavil.config import Contrast, Reconstruction
from mavil.engine.blocks import CheckpointKind, checkpoint_activations, compile_blocks
from mavil.engine.optim import set_learning_rate
from mavil.engine.parallel import Parallel, ParallelKind, parallelise
from mavil.models.build import build_classifier, build_masked
from mavil.models.layers import Stack
from mavil.structs import MODALITIES, Inputs, LossReport
from mavil.tasks.base import ParameterGroup, Task, group_parameters
from mavil.tasks.classify import Classification
from mavil.tasks.pretrain import Pretraining
from mavil.tasks.views import ViewPlan
from tests.support.recipes import random_inputs, slice_inputs, tiny_recipe

CPU = torch.device("cpu")
KINDS: tuple[ParallelKind, ...] = ("ddp", "fsdp", "fairscale")
NUM_STEPS = 4
LEARNING_RATE = 0.01
CLIP_NORM = 0.5
"""Below the norm of every step here, so that a wrong norm shows in the weights."""


@dataclass
class Run:
    """One training: what to train, how, and from where."""

    case: str = "odd"
    kind: ParallelKind = "ddp"
    checkpointing: CheckpointKind = "none"
    clips: int = 6
    accumulation: int = 1
    first: int = 0
    stop: int = NUM_STEPS
    start_from: Outcome | None = None
    drop: float = 0.0
    is_compiled: bool = False


@dataclass
class Outcome:
    """Per step the mean loss over ranks and the gradient norm; what rank 0 would save at the end."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    model: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, dict[str, Tensor]] = field(default_factory=dict)


class OddBlock(nn.Module):
    """Widths that no world size here divides; ``gain`` has one element, fewer than ranks; ``bend`` has no dimension."""

    def __init__(self, width: int, drop: float) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 7)
        self.outer = nn.Linear(7, width)
        self.gain = nn.Parameter(torch.ones(1))
        self.bend = nn.Parameter(torch.tensor(0.5))
        self.drop = nn.Dropout(drop)

    def forward(self, values: Tensor) -> Tensor:
        return values + self.gain * self.outer(self.drop(torch.tanh(self.bend * self.inner(values))))


class OddModel(nn.Module):
    """Blocks, parameters of no and of one dimension inside and outside of them, a frozen layer, a buffer."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 5)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.blocks = nn.ModuleList(OddBlock(5, drop) for _ in range(3))
        self.weights = nn.Parameter(torch.linspace(-1, 1, 5))
        self.bias = nn.Parameter(torch.tensor(0.1))
        self.register_buffer("shift", torch.tensor([1.0, 2.0]))

    def forward(self, values: Tensor) -> Tensor:
        return self.features(values) @ self.weights + self.bias

    def features(self, values: Tensor) -> Tensor:
        """Not the model's ``forward``, as the embeddings that an evaluation asks for."""
        hidden = self.frozen(self.embed(values))
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


class BlocksAlone(nn.Module):
    """Nothing is trained outside of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(OddBlock(3, 0.0) for _ in range(4))

    def forward(self, values: Tensor) -> Tensor:
        for block in self.blocks:
            values = block(values)
        return values.sum(dim=1)


class BlocksLeftOut(nn.Module):
    """Blocks that are left out by chance, on every rank others."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.blocks = Stack(16, 4, 2, post_norm=True, layer_drop=drop).blocks()
        self.embed = nn.Linear(1, 16)

    def forward(self, values: Tensor) -> Tensor:
        values = self.embed(values[..., None])
        for block in self.blocks:
            values = block(values)
        return values.sum(dim=(1, 2))


class OddTask:
    """Regression of a sum, with layer-wise learning rates."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def loss(self, inputs: Inputs, step: int) -> LossReport:
        values = inputs.of("audio").flatten(1)[:, :3]
        return LossReport({"error": F.mse_loss(self.model(values), 3 * values.sum(dim=1))}, {"error": 1.0})

    def parameter_groups(self, weight_decay: float, layer_decay: float) -> list[ParameterGroup]:
        return group_parameters(self.model, weight_decay, lambda name: 0.5 if name.startswith("blocks.0") else 1.0)


def pretraining() -> Pretraining:
    """MAViL at width 32: fusion, decoders, contrast within and between modalities with candidates of all ranks."""
    contrast = Contrast(inter_weight=0.7, intra_weight=0.3, inter_temperature=0.2, intra_temperature=0.5)
    model = build_masked(tiny_recipe())
    grids = {m: model.grid(m) for m in MODALITIES}
    plan = ViewPlan.of(grids, dict.fromkeys(MODALITIES, 0.75), contrast, num_predicted=1)
    return Pretraining(model, plan, Reconstruction(), contrast)


def classification(frozen: bool) -> Classification:
    task = {"kind": "classify", "modalities": ["audio", "video"], "frozen": frozen, "drop_path": 0.0}
    model = build_classifier(tiny_recipe(task=task), num_classes=5)
    torch.nn.init.normal_(model.head.weight)
    return Classification(model, multi_label=False)


TASKS: dict[str, Callable[[float], Any]] = {
    "odd": lambda drop: OddTask(OddModel(drop)),
    "blocks alone": lambda drop: OddTask(BlocksAlone()),
    "left out": lambda drop: OddTask(BlocksLeftOut(drop)),
    "pretraining": lambda drop: pretraining(),
    "fine-tuning": lambda drop: classification(frozen=False),
    "probe": lambda drop: classification(frozen=True),
}


def begin(run: Run) -> tuple[Task, Parallel]:
    """The task and its model, as a training command puts them together; ranks other than 0 start with other weights."""
    torch.manual_seed(distributed.rank())
    task = cast(Task, TASKS[run.case](run.drop))
    if run.start_from is not None:
        task.model.load_state_dict(run.start_from.model)
    if run.is_compiled:
        compile_blocks(task.model)
    checkpoint_activations(task.model, run.checkpointing)
    parallel = parallelise(run.kind, task.model, lambda: task.parameter_groups(0.1, 1.0), (0.9, 0.95), CPU)
    if run.start_from is not None:
        parallel.load_optimizer_state(run.start_from.optimizer)
    return task, parallel


def train(run: Run) -> Outcome:
    """Begin and take the steps of ``run``; importable, so that :func:`run_in_ranks` can call it."""
    task, parallel = begin(run)
    outcome = Outcome()
    for step in range(run.first, run.stop):
        loss, norm = one_step(task, parallel, run, step)
        outcome.losses.append(loss)
        outcome.norms.append(norm)
    outcome.model = copied(parallel.model_state())
    outcome.optimizer = {name: copied(state) for name, state in parallel.optimizer_state().items()}
    return outcome


def one_step(task: Task, parallel: Parallel, run: Run, step: int) -> tuple[float, float]:
    """All micro-steps, clipping and the update; the mean loss over micro-steps and ranks, and the norm before clipping."""
    set_learning_rate(parallel.optimizer, LEARNING_RATE)
    losses = []
    for micro_step in range(run.accumulation):
        inputs = own_inputs(run, step * run.accumulation + micro_step)
        with parallel.averaging(micro_step == run.accumulation - 1):
            losses.append(backward(task, parallel, inputs, run.accumulation))
    norm = parallel.gradient_norm()
    parallel.multiply_gradients((CLIP_NORM / norm).clamp(max=1.0))
    parallel.update()
    return float(distributed.mean_over_ranks(torch.stack(losses).mean())), float(norm)


def backward(task: Task, parallel: Parallel, inputs: Inputs, accumulation: int = 1) -> Tensor:
    task.model = parallel.wrapped
    total = task.loss(inputs, 0).total
    (total / accumulation).backward()
    task.model = parallel.model
    return total.detach()


def own_inputs(run: Run, number: int) -> Inputs:
    """This rank's share of the clips that all ranks see together in one micro-step."""
    own = run.clips // distributed.world_size()
    start = own * distributed.rank()
    return slice_inputs(random_inputs(run.clips, seed=number, num_classes=5), start, start + own)


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def assert_equal(outcome: Outcome, expected: Outcome) -> None:
    """Losses, norms and weights are those of ``expected`` but for the order in which float32 sums are taken.

    Losses and norms to 1e-5 of their size. Weights, which moved by up to 4e-2, to 2e-6 (root of the mean square over a
    parameter): AdamW makes updates of full size from gradients that are hardly more than rounding noise, so that single
    elements differ by up to 1e-4.
    """
    torch.testing.assert_close(torch.tensor(outcome.losses), torch.tensor(expected.losses), rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.tensor(outcome.norms), torch.tensor(expected.norms), rtol=1e-5, atol=0)
    assert outcome.model.keys() == expected.model.keys()
    for name, value in expected.model.items():
        difference = without_keys(name, outcome.model[name] - value).square().mean().sqrt().item()
        assert difference <= 2e-6, f"{name} differs by {difference}"
    assert list(outcome.optimizer) == list(expected.optimizer)
    for name, state in expected.optimizer.items():
        own = outcome.optimizer[name]
        assert own["step"] == state["step"]
        for moment in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(own[moment], state[moment], rtol=1e-3, atol=1e-6)


def without_keys(name: str, value: Tensor) -> Tensor:
    """Softmax does not see the bias of the keys: its gradient is nothing but rounding noise."""
    if not name.endswith("qkv.bias"):
        return value
    query, _, values = value.chunk(3)
    return torch.cat([query, values])


def second_half(run: Run, start_from: Outcome) -> Run:
    return replace(run, first=NUM_STEPS // 2, stop=NUM_STEPS, start_from=start_from)
