"""Parts of a block that keep little for the backward pass, and on a CPU draw their dropout cheaply.

Names of weights are timm's, and where nothing is dropped so are all sums, in their order.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_DRAWS = 2**16
"""Values of one random number of :func:`draw_dropped`."""


class SelfAttention(Attention):
    """timm's attention by torch's fused kernel; where weights are dropped on a CPU, which has no such kernel, by ours."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.proj_drop = Dropout(self.proj_drop.p)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """``[B, K, D]`` to the same; ``attn_mask`` as in torch's attention."""
        qkv = self._project(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        rate = self.attn_drop.p if self.training else 0.0
        is_flag = attn_mask is None or attn_mask.dtype == torch.bool
        if _drops_by_itself(rate, queries) and queries.dtype == torch.float32 and is_flag and not is_causal:
            mixed = _DroppingAttention.apply(queries, keys, values, attn_mask, rate)
        elif not self.fused_attn:
            mixed = self._unfused(queries, keys, values, attn_mask)
        else:
            mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask, rate, is_causal)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))

    def _project(self, x: Tensor) -> Tensor:
        return self.qkv(x)

    def _unfused(self, queries: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor | None) -> Tensor:
        """In three steps with the matrix in memory, where timm's switch ``set_fused_attn`` is off: for comparisons."""
        logits = queries * self.scale @ keys.mT
        if attn_mask is not None:
            is_flag = attn_mask.dtype == torch.bool
            logits = logits.masked_fill(~attn_mask, -torch.inf) if is_flag else logits + attn_mask
        return self.attn_drop(logits.softmax(dim=-1)) @ values


class Dropout(nn.Dropout):
    """Dropout that on a CPU keeps one byte per value, and draws it by :func:`draw_dropped`."""

    def forward(self, values: Tensor) -> Tensor:
        """Any shape to the same."""
        if not _drops_by_itself(self.p if self.training else 0.0, values):
            return super().forward(values)
        return _Dropping.apply(values, self.p)


class LeanMlp(Mlp):
    """timm's MLP, which keeps one hidden activation for the backward pass instead of two: GELU is computed again there."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.drop1, self.drop2 = Dropout(self.drop1.p), Dropout(self.drop2.p)
        if self.drop1.p == 0:  # what a dropout behind GELU leaves would have to be drawn again
            self.act = nn.Identity()
            self.fc2.__class__ = LinearOfGelu  # another layer would draw random numbers for its weights


class LinearOfGelu(nn.Linear):
    """A linear layer and the GELU in front of it."""

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, K, D]`` before GELU to what leaves the layer."""
        # A compiler decides by itself what to compute again.
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(F.gelu(hidden))
        operands = [hidden, self.weight, self.bias]
        if torch.is_autocast_enabled(hidden.device.type):
            operands = [tensor.to(torch.get_autocast_dtype(hidden.device.type)) for tensor in operands]
        return _GeluLinear.apply(*operands)


def draw_dropped(shape: torch.Size, rate: float) -> tuple[Tensor, float]:
    """Which values on a CPU are dropped, bool, and by what the others grow so that their mean stays.

    Of 64 random bits four decisions are made, where torch's ``bernoulli_`` makes one. So the rate is a whole number of
    65,536ths: 0.1 is 0.100006.
    """
    num_dropped = min(round(rate * _DRAWS), _DRAWS - 1)
    count = math.prod(shape)
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    drawn = bits.view(torch.int16)[:count].view(shape)
    return drawn < num_dropped - _DRAWS // 2, _DRAWS / (_DRAWS - num_dropped)


def _drops_by_itself(rate: float, values: Tensor) -> bool:
    """Whether dropout is drawn here and not by torch: on a GPU, or in compiled code, torch's own is as good or better."""
    return 0 < rate < 1 and values.device.type == "cpu" and not torch.compiler.is_compiling()


class _GeluLinear(torch.autograd.Function):
    """``linear(gelu(hidden), weight, bias)``, of which ``hidden`` is kept and ``gelu(hidden)``, as large, is not.

    Sums are those of torch's own backward pass, in its order.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return F.linear(F.gelu(hidden), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        gradient, rows = gradient.flatten(0, -2), hidden.flatten(0, -2)
        of_hidden = of_weight = of_bias = None
        if ctx.needs_input_grad[1]:
            of_weight = gradient.t() @ F.gelu(rows)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(0)
        if ctx.needs_input_grad[0]:
            of_hidden = gradient @ weight
            # In place: at this moment most memory is in use.
            torch.ops.aten.gelu_backward.grad_input(of_hidden, rows, grad_input=of_hidden)
            of_hidden = of_hidden.view_as(hidden)
        return of_hidden, of_weight, of_bias


class _Dropping(torch.autograd.Function):
    """Dropout of which one byte per value is kept."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rate: float) -> Tensor:
        dropped, ctx.growth = draw_dropped(values.shape, rate)
        ctx.save_for_backward(dropped)
        return (values * ctx.growth).masked_fill_(dropped, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (dropped,) = ctx.saved_tensors
        return (gradient * ctx.growth).masked_fill_(dropped, 0.0), None


class _DroppingAttention(torch.autograd.Function):
    """Attention ``[B, H, K, d]`` that drops weights; of its matrix five bytes per pair are kept where torch keeps twelve."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor | None, rate: float
    ) -> Tensor:
        heads = queries.shape[:2]
        ctx.scale = queries.shape[-1] ** -0.5
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        scaled = torch.mul(queries, ctx.scale, out=torch.empty(queries.shape, dtype=queries.dtype)).flatten(0, 1)
        logits = torch.bmm(scaled, keys.mT)
        if attn_mask is None:
            weights = logits.softmax(dim=-1)
        else:
            by_head = logits.unflatten(0, heads).masked_fill_(~attn_mask, -torch.inf)
            # As torch has it, who may look at nothing gets zeros.
            weights = by_head.softmax(dim=-1).masked_fill_(~attn_mask.any(dim=-1, keepdim=True), 0.0).flatten(0, 1)
        del logits
        dropped, ctx.growth = draw_dropped(weights.shape, rate)
        ctx.save_for_backward(scaled, keys, values, weights, dropped)
        return torch.bmm(weights.masked_fill(dropped, 0.0), values).mul_(ctx.growth).unflatten(0, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        scaled, keys, values, weights, dropped = ctx.saved_tensors
        heads, gradient = gradient.shape[:2], (gradient * ctx.growth).flatten(0, 1)
        of_values = torch.bmm(weights.masked_fill(dropped, 0.0).mT, gradient)
        of_weights = torch.bmm(gradient, values.mT).masked_fill_(dropped, 0.0)
        of_logits = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        del of_weights
        of_queries = torch.bmm(of_logits, keys).mul_(ctx.scale)
        of_keys = torch.bmm(of_logits.mT, scaled)
        return of_queries.unflatten(0, heads), of_keys.unflatten(0, heads), of_values.unflatten(0, heads), None, None
