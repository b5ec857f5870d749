import pytest
import torch
from torch import Tensor

from mavil import distributed
from mavil.evaluation.predict import collect
from mavil.structs import Inputs, UserError
from tests.support.ranks import run_in_ranks

KEYS = [f"clip {i}" for i in (5, 2, 6, 0, 3, 1, 4)]


def batches(keys: list[str], size: int) -> list[Inputs]:
    made = []
    for start in range(0, len(keys), size):
        part = keys[start : start + size]
        numbers = torch.tensor([float(key.split()[1]) for key in part])
        metadata = [{"name": key} for key in part]
        made.append(Inputs(part, numbers.long(), audio=numbers.view(-1, 1, 1, 1), metadata=metadata))
    return made


def compute(inputs: Inputs) -> dict[str, Tensor]:
    values = inputs.of("audio").flatten()
    return {"embedding": torch.stack([values, values**2], dim=1).bfloat16(), "seed": inputs.seeds}


def on_this_rank(sizes: list[int]) -> tuple[list[str], list[dict[str, str]], dict[str, Tensor]]:
    """Rank 0 gets the first five clips, rank 1 the last two, in batches of their own sizes."""
    share = [KEYS[:5], KEYS[5:]][distributed.rank()]
    result = collect(batches(share, sizes[distributed.rank()]), compute)
    return result.keys, result.metadata, result.values


def on_rank_one_only() -> list[str]:
    return collect(batches(KEYS, 3) if distributed.rank() == 1 else [], compute).keys


def twice() -> str:
    try:
        collect(batches(KEYS, 4), compute)
    except ValueError as error:
        return str(error)
    return "accepted"


def check(keys: list[str], metadata: list[dict[str, str]], values: dict[str, Tensor]) -> None:
    assert keys == sorted(KEYS)
    assert [entry["name"] for entry in metadata] == keys
    assert values["embedding"].tolist() == [[i, i * i] for i in range(7)]
    assert values["embedding"].dtype == torch.float32
    assert values["seed"].tolist() == list(range(7))


@pytest.mark.parametrize("size", [1, 3, 7])
def test_any_batch_size_gives_each_clip_once_sorted(size: int) -> None:
    result = collect(batches(KEYS, size), compute)
    check(result.keys, result.metadata, result.values)
    assert len(result) == 7


def test_two_ranks_with_unequal_shares_give_the_same_on_both() -> None:
    for answer in run_in_ranks(on_this_rank, [2, 1], ranks=2):
        check(*answer)
    assert run_in_ranks(on_rank_one_only, ranks=2) == [sorted(KEYS)] * 2


def test_a_clip_that_came_twice_is_an_error_on_every_rank() -> None:
    assert all("7 clips came more than once, first 'clip" in message for message in run_in_ranks(twice, ranks=2))


def test_nothing_is_differentiated_and_results_can_be_used_afterwards() -> None:
    weight = torch.ones(1, requires_grad=True)
    result = collect(batches(KEYS, 3), lambda inputs: {"x": inputs.of("audio").flatten(1) * weight})
    assert not result.values["x"].requires_grad
    (result.values["x"] * weight).sum().backward()
    assert weight.grad is not None


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="holds no clip"):
        collect([], compute)
    with pytest.raises(ValueError, match=r"'mean' of shape \(\) for 7 clips"):
        collect(batches(KEYS, 7), lambda inputs: {"mean": inputs.of("audio").mean()})


def test_batches_without_metadata() -> None:
    result = collect([Inputs(["b", "a"], torch.tensor([1, 0]))], lambda inputs: {"seed": inputs.seeds})
    assert (result.keys, result.metadata, result.values["seed"].tolist()) == (["a", "b"], [{}, {}], [0, 1])
