"""Blocks computed again or compiled: same numbers, same names, less memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mavil.engine.blocks import CheckpointKind, check_compiler, checkpoint_activations, compile_blocks, stacks_of
from mavil.engine.parallel import ParallelKind
from mavil.structs import UserError
from tests.engine.parallel.cases import KINDS, Outcome, Run, assert_equal, train
from tests.support.ranks import run_in_ranks

CHECKPOINT_KINDS: tuple[CheckpointKind, ...] = ("torch", "fairscale")


class Block(nn.Module):
    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.drop = drop

    def forward(self, values: Tensor) -> Tensor:
        kept = nn.functional.dropout(torch.tanh(self.linear(values)).exp(), self.drop, self.training)
        return values + kept


class CountingBlock(Block):
    calls = 0

    def forward(self, values: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(values)


class Stack(nn.Module):
    def __init__(self, *blocks: Block) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, values: Tensor) -> Tensor:
        for block in self.blocks:
            values = block(values)
        return values.sum()


def build(drop: float = 0.5, kind: type[Block] = Block) -> Stack:
    torch.manual_seed(0)
    return Stack(*(kind(drop) for _ in range(3)))


def loss_of(model: nn.Module) -> Tensor:
    torch.manual_seed(1)
    loss: Tensor = model(torch.linspace(-1, 1, 32, requires_grad=True).reshape(4, 8))
    return loss


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(model).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_blocks_are_the_members_of_outermost_lists_each_once() -> None:
    shared = nn.Linear(1, 1)
    model = nn.Module()
    model.first = nn.ModuleList([shared, nn.Sequential(nn.ModuleList([nn.Linear(2, 2)]))])
    model.second = nn.ModuleDict({"inside": nn.Sequential(nn.ModuleList([shared, nn.Linear(3, 3)]))})
    model.empty = nn.ModuleList()
    first, second = stacks_of(model)
    assert first == list(model.first)
    assert [block.in_features for block in second] == [3]
    assert stacks_of(nn.Linear(1, 1)) == []


@pytest.mark.parametrize("kind", CHECKPOINT_KINDS)
def test_a_block_is_computed_again_in_the_same_precision(kind: CheckpointKind) -> None:
    plain, again = build(), build()
    checkpoint_activations(again, kind)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = (loss_of(model) for model in (plain, again))
    expected.backward()
    found.backward()
    expected_gradients, gradients = (
        [p.grad for p in model.parameters() if p.grad is not None] for model in (plain, again)
    )
    assert not torch.equal(expected_gradients[0], gradients_of(build())["blocks.0.linear.weight"])  # of float32
    for own, other in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("kind", CHECKPOINT_KINDS)
def test_a_block_computed_again_has_the_same_gradient_and_names(kind: CheckpointKind) -> None:
    plain, again = build(), build(kind=CountingBlock)
    checkpoint_activations(again, kind)
    expected = gradients_of(plain)
    found = gradients_of(again)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert list(again.state_dict()) == list(plain.state_dict())
    assert [block.calls for block in again.blocks] == [2, 2, 2]
    with torch.no_grad():
        again(torch.ones(4, 8))
    assert [block.calls for block in again.blocks] == [3, 3, 3]


def bytes_kept(model: nn.Module) -> int:
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.ones(4, 8, requires_grad=True))
    return kept


def test_a_checkpointed_block_keeps_only_its_input() -> None:
    plain, again = build(), build()
    checkpoint_activations(again, "torch")
    assert bytes_kept(plain) > 5 * 3 * 4 * 8 * 4
    assert (
        bytes_kept(again) == 3 * 4 * 8 * 4 or bytes_kept(again) == 0
    )  # torch may keep the inputs outside of the hooks


def test_none_changes_nothing_and_an_unknown_kind_is_refused() -> None:
    model = build()
    checkpoint_activations(model, "none")
    assert "forward" not in vars(model.blocks[0])
    with pytest.raises(UserError, match=r"activation_checkpointing=some is not known: use none, torch, fairscale"):
        checkpoint_activations(model, "some")  # type: ignore[arg-type]


def test_fairscale_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fairscale.nn.checkpoint", None)
    with pytest.raises(UserError, match=r"activation_checkpointing=fairscale needs the package fairscale .* use torch"):
        checkpoint_activations(build(), "fairscale")


@pytest.fixture
def compiled_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Everything up to the code generator, which takes half a minute; the graphs that would be compiled."""
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    yield graphs
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = limit


@pytest.mark.parametrize("kind", ["none", "torch", "fairscale"])
def test_a_compiled_block_has_the_same_gradient_and_names(kind: CheckpointKind, compiled_graphs: list[Any]) -> None:
    plain, compiled = build(drop=0.0), build(drop=0.0)
    compile_blocks(compiled)
    checkpoint_activations(compiled, kind)
    expected = gradients_of(plain)
    assert not compiled_graphs
    for name, gradient in gradients_of(compiled).items():
        torch.testing.assert_close(gradient, expected[name])
    assert compiled_graphs
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_many_different_blocks_are_all_compiled(compiled_graphs: list[Any]) -> None:
    """Each drop rate is a graph of its own, in training and in evaluation; torch gives up after eight by default."""
    model = Stack(*(Block(i / 6) for i in range(6)))
    compile_blocks(model)
    gradients_of(model)
    assert len(compiled_graphs) == 6
    model.eval()
    gradients_of(model)
    assert len(compiled_graphs) == 12


def test_compiling_comes_before_checkpointing() -> None:
    model = build()
    checkpoint_activations(model, "torch")
    with pytest.raises(ValueError, match="compile blocks first"):
        compile_blocks(model)


def test_a_missing_compiler_is_one_line() -> None:
    without = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True})
    with without, pytest.raises(UserError, match=r"compile on cpu here \(InvalidCxxCompiler.*compile=false") as error:
        check_compiler(torch.device("cpu"))
    assert "\n" not in str(error.value)


def compiled_training(kind: ParallelKind) -> list[Outcome]:
    """Graphs are captured and differentiated, code is not generated: that part does not know about ranks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
        return [
            train(Run("odd", kind, checkpointing, is_compiled=True)) for checkpointing in ("none", *CHECKPOINT_KINDS)
        ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_blocks_train_the_same_on_two_ranks(kind: ParallelKind) -> None:
    for outcome in run_in_ranks(compiled_training, kind, timeout_seconds=300.0)[0]:
        assert_equal(outcome, train(Run("odd")))


@pytest.mark.slow
def test_really_compiled_blocks_train_the_same() -> None:
    check_compiler(torch.device("cpu"))
    expected = train(Run("odd"))
    for checkpointing in ("none", *CHECKPOINT_KINDS):
        assert_equal(train(Run("odd", checkpointing=checkpointing, is_compiled=True)), expected)
