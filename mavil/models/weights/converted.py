"""What a foreign checkpoint becomes: our parts, our names, and an account of every tensor of the file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from mavil.structs import UserError

Stems = Mapping[str, tuple[str, str]]
"""Beginning of a foreign name (one or two components) to part and beginning of our name."""

BLOCK_TENSOR = re.compile(
    r"(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2|attn\.offset_bias\.fc[12])\.(weight|bias)"
    r"|attn\.(temperature|q_bias|v_bias)"
)
"""What a block of ours has, global or windowed, behind ``blocks.0.``."""


@dataclass
class Converted:
    """A foreign checkpoint in our terms.

    Attributes:
        layout: which project's names it had.
        parts: ``{part: {our tensor name: tensor}}``; only what the file has.
        unused: tensors of the file without a place here, each with the reason.
        origin: ``part.name`` to the names in the file it was made of. With ``unused`` it accounts for every tensor.
        statistics: mean and deviation of the log-mel values that the model was trained on, where the file holds them.
    """

    layout: str
    parts: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    origin: dict[str, tuple[str, ...]] = field(default_factory=dict)
    statistics: tuple[float, float] | None = None

    def put(self, part: str, name: str, tensor: Tensor, *sources: str) -> None:
        """Add one tensor and where it comes from."""
        self.parts.setdefault(part, {})[name] = tensor
        self.origin[f"{part}.{name}"] = sources

    def has_cls(self, modality: str) -> bool:
        """Whether that modality's encoder has a CLS token, and its tables a row for it."""
        return "cls_token" in self.parts.get(f"{modality}_encoder", {})


@dataclass
class Source:
    """A state dict whose tensors may have been joined or renamed, with the names in the file that each was made of."""

    tensors: dict[str, Tensor]
    made_of: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Source:
        """As it is in the file."""
        return cls(dict(state), {name: (name,) for name in state})

    def rename(self, new_names: Mapping[str, str]) -> None:
        """Give tensors other names, the others keep theirs."""
        self.tensors = {new_names.get(name, name): tensor for name, tensor in self.tensors.items()}
        self.made_of = {new_names.get(name, name): sources for name, sources in self.made_of.items()}

    def join(self, new_name: str, tensor: Tensor, names: list[str]) -> None:
        """Put ``tensor``, made of those named, in their place."""
        made_of = tuple(source for name in names for source in self.made_of.pop(name))
        for name in names:
            del self.tensors[name]
        self.tensors[new_name], self.made_of[new_name] = tensor, made_of


def place(name: str, stems: Stems) -> tuple[str, str] | None:
    """Part and name here of a tensor whose name begins with one of ``stems``; ``None`` without a place here."""
    components = name.split(".")
    for length in (2, 1):
        stem = ".".join(components[:length])
        if stem in stems and len(components) >= length:
            part, ours = stems[stem]
            return part, ".".join([ours, *components[length:]] if ours else components[length:])
    return None


def original(part: str, name: str, stems: Stems) -> str | None:
    """The inverse of :func:`place`."""
    for stem, (its_part, ours) in stems.items():
        if its_part == part and (not ours or name == ours or name.startswith(f"{ours}.")):
            rest = name.removeprefix(ours).removeprefix(".")
            return f"{stem}.{rest}" if rest else stem
    return None


def renamed(parts: Mapping[str, Mapping[str, Tensor]], stems: Stems, project: str) -> dict[str, Tensor]:
    """Our parts as one state dict in a project's names.

    Raises:
        UserError: a tensor that its model has no place for.
    """
    named: dict[str, Tensor] = {}
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            there = original(part, name, stems)
            if there is None:
                raise UserError(f"{part}.{name} has no name in {project}'s model: leave that part out")
            named[there] = tensor
    return named


def fits_a_block(name: str) -> bool:
    """Whether a tensor of ours is in a block as something that blocks have, or in no block."""
    inside = re.match(r"blocks\.\d+\.(?:alone_norms\.\w+\.)?(.+)", name)
    return inside is None or BLOCK_TENSOR.fullmatch(inside[1]) is not None
