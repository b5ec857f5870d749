"""What the engine asks of a model that several ranks train, and what is the same however they share it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mavil import distributed
from mavil.engine.optim import trained_parameters
from mavil.engine.wording import first_names
from mavil.structs import UserError
from mavil.tasks.base import ParameterGroup

Groups = Callable[[], list[ParameterGroup]]
OptimizerState = dict[str, dict[str, Tensor]]


class Parallel(ABC):
    """A model, its optimizer, and what this rank holds of both.

    Everything but ``gradient_norm``'s result lives on ``device``; every method called "collective" must be called by all ranks.
    """

    model: nn.Module
    """The plain model. Where weights are cut it is the same object with this rank's part of each parameter."""
    wrapped: nn.Module
    """What training calls, once per backward pass."""
    optimizer: torch.optim.Optimizer
    """Take ``param_groups`` from it to set learning rates; its state is read and written by name, below."""
    can_skip: bool = True
    """Whether :meth:`update` takes ``is_bad``: fused AdamW does in every kind here."""
    has_whole_weights: bool = True
    """Whether a rank's graph leads to whole weights, so that gradients can be taken apart from the backward pass."""
    num_updates: Tensor
    """0-dim float32: how often weights were updated, a skipped update not counted."""
    trained: dict[str, nn.Parameter]
    """The parameters that are trained, by name in the model's order, as this rank holds them."""
    is_complete: bool = False
    """True inside :meth:`complete` where that gathers weights."""

    def __init__(
        self, model: nn.Module, wrapped: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> None:
        self.model = model
        self.wrapped = wrapped
        self.optimizer = optimizer
        self.device = device
        self.num_updates = torch.zeros((), device=device)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    @property
    def own_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that holds this rank's moments."""
        return self.optimizer

    @abstractmethod
    def averaging(self, is_last: bool) -> AbstractContextManager[None]:
        """Around one micro-step's forward and backward: gradients are averaged over ranks only in the last of a step."""

    def own(self, tensor: Tensor) -> Tensor:
        """The plain tensor that this rank holds of a possibly cut one; writing to it writes to that."""
        return tensor.detach()

    def part_of(self, complete: Tensor, like: Tensor) -> Tensor:
        """This rank's part of a complete tensor, cut as ``like`` is."""
        return complete

    def gradients(self) -> list[Tensor]:
        """The averaged gradients this rank is responsible for, as plain tensors; over all ranks each element exactly once.

        Where every rank has whole gradients each rank lists all of them.
        """
        return [p.grad for p in trained_parameters(self.optimizer) if p.grad is not None]

    def gradient_norm(self) -> Tensor:
        """Collective. 2-norm over all parameters of all ranks, 0-dim float32, equal on all; NaN and inf carry through."""
        return torch.nn.utils.get_total_norm(self.gradients()).float().to(self.device)

    @torch.no_grad()
    def multiply_gradients(self, factor: Tensor) -> None:
        """Multiply every gradient in place by a 0-dim ``factor`` that is the same on every rank."""
        if gradients := self.gradients():
            torch._foreach_mul_(gradients, factor)

    def update(self, is_bad: Tensor | None = None) -> None:
        """One step of the optimizer; gradients are gone afterwards.

        ``is_bad``: 0-dim float32 on ``device``, the same on every rank; where it is 1, weights, moments and step counts stay
        exactly as they are, whatever the gradients hold. Nothing is read from the device.
        """
        self._set_found_inf(is_bad)
        self.optimizer.step()
        self._clear_gradients()
        self.num_updates += 1 if is_bad is None else 1 - is_bad

    def complete(self) -> AbstractContextManager[None]:
        """Collective. For evaluation and export: inside, any method of ``model`` may be called, on any rank and any time."""
        return nullcontext()

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Collective. Complete tensors by name on rank 0, ``{}`` elsewhere; whole ones as they are, without a copy."""
        return dict(tensors) if distributed.is_main() else {}

    def model_state(self) -> dict[str, Tensor]:
        """Collective. The complete state of the plain model under its own names on rank 0, ``{}`` elsewhere.

        Not inside :meth:`complete`.
        """
        return self.gather(self.model.state_dict())

    def optimizer_state(self) -> OptimizerState:
        """Collective. Complete ``step``, ``exp_avg``, ``exp_avg_sq`` of each trained parameter, by name; ``{}`` except on rank 0.

        A parameter that was never updated has zeros.
        """
        state = self.own_optimizer.state
        gathered = {name: self.gather(state[parameter]) for name, parameter in self.trained.items()}
        return gathered if distributed.is_main() else {}

    @torch.no_grad()
    def load_optimizer_state(self, state: OptimizerState) -> None:
        """Go on with the complete ``state`` of any kind and world size; every rank passes the same one.

        Raises:
            UserError: names or shapes are not those of the trained parameters; nothing is changed then.
        """
        self._check_state(state)
        for name, parameter in self.trained.items():
            for key, value in self.own_optimizer.state.get(parameter, {}).items():
                self.own(value).copy_(self.part_of(state[name][key], value))
        counts = [entry["step"] for entry in state.values()]
        if counts:
            self.num_updates.copy_(torch.stack([count.float().cpu() for count in counts]).max())

    def _set_found_inf(self, is_bad: Tensor | None) -> None:
        # What torch.amp.GradScaler sets: the fused kernel reads it on the device and leaves everything alone.
        self.own_optimizer.found_inf = is_bad  # type: ignore[attr-defined]
        self.own_optimizer.grad_scale = None  # type: ignore[attr-defined]

    def _clear_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def _check_state(self, state: OptimizerState) -> None:
        trained = self.trained
        shapes = [
            f"{key} of {name} is {tuple(state[name][key].shape)}, expected {tuple(parameter.shape)}"
            for name, parameter in trained.items()
            for key in ("exp_avg", "exp_avg_sq")
            if key in state.get(name, {}) and state[name][key].shape != parameter.shape
        ]
        problems = {
            "missing": [n for n in trained if not state.get(n, {}).keys() >= {"step", "exp_avg", "exp_avg_sq"}],
            "unknown here": [name for name in state if name not in trained],
            "of another shape": shapes,
        }
        found = [f"{len(names)} {kind}: {first_names(names)}" for kind, names in problems.items() if names]
        if found:
            raise UserError(
                f"the optimizer's state does not fit the parameters that are trained; {'; '.join(found)}. "
                "Continue with the recipe of the run it was saved by"
            )


def norm_over_ranks(parts: list[Tensor], device: torch.device) -> Tensor:
    """Collective. 2-norm, 0-dim float32, over the parts that all ranks hold, each element on exactly one rank."""
    squares = torch.zeros((), device=device)
    if parts:
        squares += torch.stack(torch._foreach_norm(parts)).float().square().sum()
    dist.all_reduce(squares)
    return squares.sqrt()


@torch.no_grad()
def copy_from_rank_0(model: nn.Module) -> None:
    """Collective. Every rank's parameters and buffers become those of rank 0."""
    for tensor in [*model.parameters(), *model.buffers()]:
        dist.broadcast(tensor.detach(), src=0)
