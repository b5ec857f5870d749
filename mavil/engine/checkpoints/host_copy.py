"""A copy of tensors in host memory that stands still while training goes on, in memory that is used again each time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 2**28
"""Memory is taken in pieces of this size: torch rounds pinned memory up to a power of two, and one piece of 2.9 GB would
cost 4."""
_ALIGNMENT = 64


class HostCopy:
    """Copies trees of tensors; the copy of before is overwritten.

    For tensors on CUDA the memory is pinned, so that copies run at the speed of the bus, all at once.
    """

    def __init__(self) -> None:
        self._chunks: list[Tensor] = []
        self._is_pinned = False

    def take(self, tree: Any) -> Any:
        """The same dictionaries with a copy of every tensor on the host; other values as they are.

        Raises:
            RuntimeError: no memory is left for it.
        """
        on_cuda = any(tensor.is_cuda for tensor in tensors_of(tree))
        if on_cuda != self._is_pinned:
            self._chunks, self._is_pinned = [], on_cuda
        places = self._places([_room_of(tensor) for tensor in tensors_of(tree)])
        copy = _copied(tree, places)
        if on_cuda:
            torch.cuda.synchronize()
        return copy

    def _places(self, sizes: list[int]) -> Iterator[tuple[Tensor, int]]:
        """A chunk and an offset for each size, in order; the same ones for the same sizes."""
        usual = min(CHUNK_BYTES, 2 ** math.ceil(math.log2(max(sum(sizes), _ALIGNMENT))))
        number, used = 0, 0
        for size in sizes:
            if number < len(self._chunks) and used + size > len(self._chunks[number]):
                number, used = number + 1, 0
            if number == len(self._chunks):
                self._chunks.append(self._chunk(max(size, usual)))
            elif len(self._chunks[number]) < size:
                self._chunks[number] = self._chunk(max(size, usual))
            yield self._chunks[number], used
            used += size

    def _chunk(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._is_pinned)


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested dictionaries, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors_of(value)


def _room_of(tensor: Tensor) -> int:
    return math.ceil(tensor.nbytes / _ALIGNMENT) * _ALIGNMENT


def _copied(tree: Any, places: Iterator[tuple[Tensor, int]]) -> Any:
    if isinstance(tree, dict):
        return {name: _copied(value, places) for name, value in tree.items()}
    if not isinstance(tree, Tensor):
        return tree
    chunk, offset = next(places)
    if tree.numel() == 0:
        return torch.empty(tree.shape, dtype=tree.dtype)
    # Not a slice of the chunk: torch.save writes whole storages, and this one is only as large as the tensor.
    flat = torch.frombuffer(chunk.numpy(), dtype=tree.dtype, count=tree.numel(), offset=offset)
    return flat.view(tree.shape).copy_(tree.detach(), non_blocking=True)
