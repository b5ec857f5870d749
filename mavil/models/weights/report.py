"""What a start took from which file, and what it did not: every tensor is accounted for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass
class PartReport:
    """One part of the model.

    Attributes:
        source: the file and its layout.
        loaded: tensors that were filled.
        missing: tensors of the model that stay as they were made, each with the reason.
        extra: tensors the file has for this part that are not used, by their name there, with the reason.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)


@dataclass
class StartReport:
    """A start from other projects' weights.

    Attributes:
        parts: by part of the model.
        unused: ``{file: {its tensor: reason}}``: what has no counterpart in the model's parts.
        untouched: parts that no file fills.
        remarks: what else there is to say, a line each.
    """

    parts: dict[str, PartReport] = field(default_factory=dict)
    unused: dict[str, dict[str, str]] = field(default_factory=dict)
    untouched: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For the log: one line per part, then one per reason for what is missing or left over, with every name."""
        lines = list(self.remarks)
        for name, part in self.parts.items():
            total = len(part.loaded) + len(part.missing)
            lines.append(f"{name}: {len(part.loaded)} of {total} tensors from {part.source}")
            lines += [f"  as made here: {text}" for text in by_reason(part.missing)]
            lines += [f"  not taken: {text}" for text in by_reason(part.extra)]
        lines += [f"{name}: as made here, no file fills it" for name in self.untouched]
        for source, unused in self.unused.items():
            lines += [f"{source}: not used: {text}" for text in by_reason(unused)]
        return lines


def by_reason(names: Mapping[str, str]) -> Iterable[str]:
    """Names that share a reason in one text, ``a, b (reason)``."""
    reasons: dict[str, list[str]] = {}
    for name, reason in names.items():
        reasons.setdefault(reason, []).append(name)
    return [f"{', '.join(found)} ({reason})" for reason, found in reasons.items()]
