"""What the checks before training found, gathered over ranks and told as one line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console

from mavil import distributed
from mavil.distributed.members import listed
from mavil.structs import UserError


@dataclass(frozen=True)
class Finding:
    """What one rank found: ``good``, or ``odd`` (worth a second thought), or ``wrong`` (it would end the run)."""

    kind: str
    text: str


class Odd(Exception):  # noqa: N818 - nothing went wrong
    """Raised by a check for what may be meant and mostly is not."""


@dataclass
class Findings:
    """All of them so far; every rank calls the same methods in the same order and has the same problems.

    Attributes:
        console: of rank 0, which alone prints.
        problems: texts of what is wrong.
    """

    console: Console
    problems: list[str] = field(default_factory=list)

    def everywhere(self, topic: str, check: Callable[[], str]) -> bool:
        """Let every rank check something of its own machine; whether it is right on all of them."""
        found = distributed.gather_objects((distributed.here().node, _outcome(check)))
        is_good = all(finding.kind != "wrong" for _, finding in found)
        for kind in ("wrong", "odd"):
            by_text: dict[str, list[str]] = {}
            for node, finding in found:
                if finding.kind == kind:
                    by_text.setdefault(finding.text, []).append(node)
            for text, nodes in by_text.items():
                where = f"{listed(list(dict.fromkeys(nodes)))}: " if len(nodes) < len(found) else ""
                self._tell(topic, Finding(kind, where + text))
        if is_good and found[0][1].kind == "good":
            # The others may have something else to tell, and nobody wants to read all of it.
            self._tell(topic, found[0][1])
        return is_good

    def once(self, topic: str, check: Callable[[], str]) -> bool:
        """Let rank 0 check something that is the same for all."""
        finding = distributed.broadcast_object(_outcome(check) if distributed.is_main() else None)
        self._tell(topic, finding)
        return bool(finding.kind != "wrong")

    def wrong(self, topic: str, text: str) -> None:
        """Add what every rank knows to be wrong."""
        self._tell(topic, Finding("wrong", text))

    def skip(self, topic: str, why: str) -> None:
        """Say what was not looked at."""
        self._tell(topic, Finding("skipped", why))

    def _tell(self, topic: str, finding: Finding) -> None:
        if finding.kind == "wrong":
            self.problems.append(f"{topic}: {finding.text}")
        if distributed.is_main():
            line = f"{finding.kind:<7} {topic:<19} {finding.text}".rstrip()
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _outcome(check: Callable[[], str]) -> Finding:
    try:
        return Finding("good", check())
    except Odd as remark:
        return Finding("odd", str(remark))
    except UserError as error:
        return Finding("wrong", str(error))
    except Exception as error:  # a check must not leave the other ranks waiting for this one
        return Finding("wrong", f"the check itself failed: {' '.join(repr(error).split())}")
