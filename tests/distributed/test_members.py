"""Which ranks may train together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mavil.distributed import here
from mavil.distributed.members import Member, listed, own_member, what_differs

PROGRAM = {"Python": "3.11.7", "torch": "2.12.1"}


def members(num_nodes: int = 2, per_node: int = 2, device: str = "cuda") -> list[Member]:
    return [
        Member(
            rank, f"n{rank // per_node}", per_node, device, f"gpu{rank % per_node}" if device == "cuda" else "", PROGRAM
        )
        for rank in range(num_nodes * per_node)
    ]


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_ranks_that_are_alike(device: str) -> None:
    assert what_differs(members(device=device)) is None
    assert what_differs([own_member(here(), torch.device("cpu"))]) is None


def test_nodes_with_different_numbers_of_processes() -> None:
    uneven = [*members()[:2], replace(members()[2], local_world_size=1)]
    assert "(n0: 2, n1: 1): ask for the same on each" in str(what_differs(uneven))
    unknown = [replace(member, local_world_size=None) for member in uneven]  # nobody said, so they are counted
    assert "(n0: 2, n1: 1): ask for the same on each" in str(what_differs(unknown))
    # Two torchruns on one machine, one of them with one process.
    assert "(n0: 2, n0: 1)" in str(what_differs([replace(member, node="n0", gpu="") for member in uneven]))


def test_a_node_without_gpus() -> None:
    mixed = [replace(m, device="cpu", gpu="") if m.node == "n1" else m for m in members()]
    told = str(what_differs(mixed))
    assert "some ranks have a GPU and some have none (n0: cuda, n1: cpu)" in told
    assert "same GPU" not in told


def test_two_ranks_with_one_gpu() -> None:
    shared = [replace(m, gpu="gpu0") if m.node == "n1" else m for m in members()]
    assert what_differs(shared) == (
        "ranks 2 and 3 on n1 have the same GPU: start one process per GPU, each seeing its own or all of its node"
    )


def test_the_one_node_with_another_program_is_seen_among_many() -> None:
    many = members(num_nodes=100)
    odd = [replace(m, versions=PROGRAM | {"torch": "2.11.0"}) if m.rank == 150 else m for m in many]
    told = str(what_differs(odd))
    assert "different versions of torch (n75: 2.11.0, n0: 2.12.1, n1: 2.12.1" in told
    assert "and 93 more" in told
    assert "Python" not in told


def test_everything_is_told_at_once() -> None:
    first, second, third, _ = members()
    third = replace(third, local_world_size=1, device="cpu", gpu="", versions=PROGRAM | {"torch": "2.11.0"})
    told = str(what_differs([first, second, third]))
    assert all(words in told for words in ("numbers of processes", "have none", "versions of torch"))


def test_long_lists_are_cut() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(n) for n in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
