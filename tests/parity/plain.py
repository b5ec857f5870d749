"""Transformers written out with weights in a dict, from the papers' conventions and without any code of ours.

What the parity tests compare our models with. A state dict is called ``w``, its tensors may be differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]


def linear_shapes(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def block_shapes(
    prefix: str, depth: int, width: int, hidden: int, norms: tuple[str, ...] = ("norm1", "norm2")
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(depth):
        name = f"{prefix}.{i}"
        for norm in norms:
            shapes |= norm_shapes(f"{name}.{norm}", width)
        shapes |= linear_shapes(f"{name}.attn.qkv", width, 3 * width) | linear_shapes(f"{name}.attn.proj", width, width)
        shapes |= linear_shapes(f"{name}.mlp.fc1", width, hidden) | linear_shapes(f"{name}.mlp.fc2", hidden, width)
    return shapes


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Every tensor off what it is initialised with: gains around 1, biases not 0."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        is_gain = "norm" in name and name.endswith("weight")
        state[name] = 1 + 0.1 * values if is_gain else values * (0.2 if len(shape) > 1 else 0.1)
    return state


def linear(x: Tensor, w: State, name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(x: Tensor, w: State, name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def mlp(x: Tensor, w: State, name: str) -> Tensor:
    hidden = linear(x, w, f"{name}.fc1")
    return linear(0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))), w, f"{name}.fc2")


def attention(x: Tensor, w: State, name: str, heads: int) -> Tensor:
    """Biases of query and value alone where the names say so."""
    if f"{name}.qkv.bias" in w:
        joined = linear(x, w, f"{name}.qkv")
    else:
        bias = torch.cat([w[f"{name}.q_bias"], torch.zeros_like(w[f"{name}.q_bias"]), w[f"{name}.v_bias"]])
        joined = x @ w[f"{name}.qkv.weight"].T + bias
    query, key, value = joined.chunk(3, dim=-1)
    return linear(attend(query, key, value, heads), w, f"{name}.proj")


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, hidden: Tensor | None = None) -> Tensor:
    """``[B, N, D]`` each; keys that are ``hidden`` ``[B, N]`` get no share."""
    batch, count, width = query.shape
    split = (part.view(batch, count, heads, width // heads).transpose(1, 2) for part in (query, key, value))
    queries, keys, values = split
    logits = queries @ keys.transpose(-1, -2) / math.sqrt(width // heads)
    if hidden is not None:
        logits = logits.masked_fill(hidden[:, None, None], -torch.inf)
    return (logits.softmax(-1) @ values).transpose(1, 2).reshape(batch, count, width)


def block(x: Tensor, w: State, name: str, heads: int, eps: float, suffix: str = "") -> Tensor:
    """Pre-norm; ``suffix`` chooses CAV-MAE's norms of one modality."""
    x = x + attention(norm(x, w, f"{name}.norm1{suffix}", eps), w, f"{name}.attn", heads)
    return x + mlp(norm(x, w, f"{name}.norm2{suffix}", eps), w, f"{name}.mlp")


def fairseq_block(x: Tensor, w: State, name: str, heads: int, eps: float, hidden: Tensor | None = None) -> Tensor:
    """Post-norm, with fairseq's names of one layer."""
    query, key, value = (linear(x, w, f"{name}.self_attn.{which}_proj") for which in "qkv")
    mixed = linear(attend(query, key, value, heads, hidden), w, f"{name}.self_attn.out_proj")
    x = norm(x + mixed, w, f"{name}.self_attn_layer_norm", eps)
    return norm(x + mlp(x, w, name), w, f"{name}.final_layer_norm", eps)


def interleaved(count: int, width: int) -> Tensor:
    """``[1, count, width]``: sine and cosine in turn."""
    codes = [
        [f(i / 10000 ** (2 * k / width)) for k in range(width // 2) for f in (math.sin, math.cos)] for i in range(count)
    ]
    return torch.tensor([codes])


def codes(place: int, width: int) -> list[float]:
    angles = [place / 10000 ** (k / (width / 2)) for k in range(width // 2)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


def table_2d(rows: int, columns: int, width: int) -> Tensor:
    cells = [codes(c, width // 2) + codes(r, width // 2) for r in range(rows) for c in range(columns)]
    return torch.tensor([[0.0] * width, *cells])


def keep_smallest(noise: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids that stay, in the order of their noise; the mask (1 = removed); the ids that restore the order."""
    order = noise.argsort(1)
    restore = order.argsort(1)
    mask = torch.ones_like(noise)
    mask[:, :kept] = 0
    return order[:, :kept], mask.gather(1, restore), restore


def keep_rows(noise: list[Tensor], kept: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Time and frequency masks: as :func:`keep_smallest`, ids in index order."""
    ids = []
    for clip in range(len(noise[0])):
        rows, columns = (set(n[clip].argsort()[:k].tolist()) for n, k in zip(noise, kept, strict=True))
        width = noise[1].shape[1]
        ids.append([r * width + c for r in sorted(rows) for c in sorted(columns)])
    visible = torch.tensor(ids)
    mask = torch.ones(len(ids), noise[0].shape[1] * noise[1].shape[1]).scatter(1, visible, 0.0)
    return visible, mask, mask.argsort(dim=1, stable=True).argsort(1)


def pick(x: Tensor, ids: Tensor) -> Tensor:
    return torch.stack([tokens[chosen] for tokens, chosen in zip(x, ids, strict=True)])


def fill(x: Tensor, mask_token: Tensor, restore: Tensor) -> Tensor:
    """Visible tokens and mask tokens in the original order."""
    missing = mask_token.expand(len(x), restore.shape[1] - x.shape[1], -1)
    return pick(torch.cat([x, missing], 1), restore)


def squared_error(pred: Tensor, target: Tensor, mask: Tensor, normalises: bool) -> Tensor:
    if normalises:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    return ((pred - target).pow(2).mean(-1) * mask).sum() / mask.sum()


def gradient_norms(loss: Tensor, w: State) -> dict[str, float]:
    """Of every parameter the loss touches."""
    names = [name for name, value in w.items() if value.requires_grad]
    found = torch.autograd.grad(loss, [w[name] for name in names], retain_graph=True, allow_unused=True)
    return {name: float(value.norm()) for name, value in zip(names, found, strict=True) if value is not None}


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets)


def windowed_block(
    x: Tensor, w: State, name: str, heads: int, eps: float, cells: tuple[int, int], window: int, moved: int
) -> Tensor:
    """Post-norm block of Audio-MAE's local decoder: every pair of cells at once, those of other windows ruled out."""
    rows, columns = (torch.arange(cells[0] * cells[1]) // cells[1], torch.arange(cells[0] * cells[1]) % cells[1])
    place = (rows - moved) % cells[0]
    same = (place[:, None] // window == place[None] // window) & (columns[:, None] // window == columns[None] // window)
    apart = (rows[:, None] < moved) != (rows[None] < moved)
    delta = torch.stack(
        [place[:, None] % window - place[None] % window, columns[:, None] % window - columns[None] % window], -1
    )
    offset = (delta.sign() * delta.abs().double().log1p()).float().to(x.dtype)
    bias = linear(linear(offset, w, f"{name}.attn.meta_mlp.fc1").clamp(min=0), w, f"{name}.attn.meta_mlp.fc2")
    batch, count, width = x.shape
    parts = linear(x, w, f"{name}.attn.qkv").chunk(3, dim=-1)
    query, key, value = (part.view(batch, count, heads, width // heads).transpose(1, 2) for part in parts)
    lengths = query.norm(dim=-1, keepdim=True) * key.norm(dim=-1, keepdim=True).transpose(-1, -2)
    cosine = query @ key.transpose(-1, -2) / lengths.clamp(min=1e-6)
    logits = cosine / w[f"{name}.attn.tau"].clamp(min=0.01)[:, None, None] + bias.permute(2, 0, 1) - 100.0 * apart
    shares = logits.masked_fill(~same, -torch.inf).softmax(-1)
    mixed = linear((shares @ value).transpose(1, 2).reshape(batch, count, width), w, f"{name}.attn.proj")
    x = x + norm(mixed, w, f"{name}.norm1", eps)
    return x + norm(mlp(x, w, f"{name}.mlp"), w, f"{name}.norm2", eps)
