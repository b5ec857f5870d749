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
    except UserError as error:
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


WINDOWS = {"b": [1e8, 1.0, -1e8], "a": [0.25], "c": [3.0, 5.0]}


def window_rows() -> list[tuple[str, int, float]]:
    """Key, seed and value of every window."""
    return [(key, 10 * i + n, x) for i, (key, xs) in enumerate(WINDOWS.items()) for n, x in enumerate(xs)]


def window_batches(rows: list[tuple[str, int, float]], size: int) -> list[Inputs]:
    made = []
    for start in range(0, len(rows), size):
        keys, seeds, values = zip(*rows[start : start + size], strict=True)
        audio = torch.tensor(values).view(-1, 1, 1, 1)
        metadata = [{"name": key} for key in keys]
        made.append(Inputs(list(keys), torch.tensor(seeds), audio=audio, metadata=metadata))
    return made


def windows_computed(inputs: Inputs) -> dict[str, Tensor]:
    values = inputs.of("audio").flatten()
    targets = torch.tensor([[float(key == name) for name in "abc"] for key in inputs.keys])
    flags = torch.tensor([key != "a" for key in inputs.keys])
    return {"logits": torch.stack([values, -values], dim=1), "targets": targets, "flag": flags}


def windows_on_this_rank() -> dict[str, Tensor]:
    share = [row for row in window_rows() if (row[0] == "c") == bool(distributed.rank())]
    return collect(window_batches(share, 2), windows_computed).values


@pytest.mark.parametrize("size", [1, 2, 4, 6])
@pytest.mark.parametrize("backwards", [False, True])
def test_windows_of_a_clip_are_averaged(size: int, backwards: bool) -> None:
    rows = window_rows()[::-1] if backwards else window_rows()
    result = collect(window_batches(rows, size), windows_computed)
    assert result.keys == ["a", "b", "c"]
    assert [entry["name"] for entry in result.metadata] == ["a", "b", "c"]
    expected = torch.tensor([sum(map(float, torch.tensor(WINDOWS[k]))) / len(WINDOWS[k]) for k in "abc"])
    assert torch.equal(result.values["logits"], torch.stack([expected, -expected], dim=1))
    assert result.values["logits"].dtype == torch.float32
    assert torch.equal(result.values["targets"], torch.eye(3))
    assert result.values["flag"].tolist() == [False, True, True]
    one_rank = result.values
    if size == 2 and not backwards:
        for answer in run_in_ranks(windows_on_this_rank, ranks=2):
            assert all(torch.equal(answer[name], value) for name, value in one_rank.items())


def test_the_mean_over_windows_does_not_depend_on_their_order() -> None:
    rows = [("a", 0, 1e17), ("a", 1, -1e17), ("a", 2, 1.0)]  # sums of which do, even in float64
    for order in ([0, 1, 2], [2, 1, 0], [0, 2, 1]):
        result = collect(window_batches([rows[i] for i in order], 2), windows_computed)
        assert result.values["logits"][0, 0] == 1 / torch.tensor(3.0)


def split_between_ranks() -> str:
    rows = [row for number, row in enumerate(window_rows()) if number % 2 == distributed.rank()]
    try:
        collect(window_batches(rows, 2), windows_computed)
    except UserError as error:
        return str(error)
    return "accepted"


def test_windows_are_told_from_clips_that_came_twice() -> None:
    rows = [*window_rows(), window_rows()[1]]
    with pytest.raises(UserError, match="1 clips came more than once, first 'b'"):
        collect(window_batches(rows, 3), windows_computed)
    assert all("came more than once" in message for message in run_in_ranks(split_between_ranks, ranks=2))
