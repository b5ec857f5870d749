"""The report: one HTML file with everything inside, readable from disk without a network and without JavaScript."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Protocol

from mavil.report.stylesheet import STYLESHEET

LARGEST_PAGE = 8_000_000
"""Bytes. Larger pages open slowly and are refused by mail; they are written all the same, with a warning."""

log = logging.getLogger(__name__)


class Block(Protocol):
    """Anything a section shows: a ``Table``, ``Charts``, ``Picture``, ``ReconstructionExample``, ``RetrievalExample`` or
    ``Listing``.
    """

    def html(self) -> str:
        """The block as HTML in which all text is escaped and all media are data URIs."""
        ...


@dataclass(frozen=True)
class Listing:
    """Text kept as it is (commands, a recipe), folded away under its title unless ``is_open``; a block of a section."""

    title: str
    text: str
    is_open: bool = False

    def html(self) -> str:
        """The block as HTML."""
        state = " open" if self.is_open else ""
        return f"<details{state}><summary>{escape(self.title)}</summary><pre>{escape(self.text)}</pre></details>"


@dataclass(frozen=True)
class Check:
    """One thing that had to come true: ``value`` and ``threshold`` are ready to read, e.g. ``35.0 %``, ``at least 5.0 %``."""

    name: str
    value: str
    threshold: str
    passed: bool


@dataclass(frozen=True)
class Section:
    """A headed part of the page: a few sentences, then blocks."""

    title: str
    text: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """All that the page says. ``intro`` is one paragraph per entry; ``environment`` one line on machine and versions."""

    title: str
    intro: Sequence[str]
    checks: Sequence[Check]
    sections: Sequence[Section]
    environment: str
    listings: Sequence[Listing] = field(default_factory=tuple)


def write_page(path: Path, report: Report) -> int:
    """Write ``report`` to ``path``, atomically, and return its size in bytes.

    Raises:
        ValueError: a block is malformed (ragged table, media of an unknown format).
        OSError: the file cannot be written.
    """
    page = _document(report).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".partial")
    with aside.open("wb") as file:
        file.write(page)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    if len(page) > LARGEST_PAGE:
        log.warning(
            "%s has %.1f MB: show fewer or shorter clips to stay below %.0f MB",
            path,
            len(page) / 1e6,
            LARGEST_PAGE / 1e6,
        )
    return len(page)


def _document(report: Report) -> str:
    contents = "".join(
        f'<li><a href="#part{i}">{escape(section.title)}</a></li>' for i, section in enumerate(report.sections, start=1)
    )
    intro = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in report.intro)
    sections = "".join(_section(section, i) for i, section in enumerate(report.sections, start=1))
    listings = "".join(listing.html() for listing in report.listings)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>{STYLESHEET}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(report.title)}</h1>{intro}</header>\n<main>\n{_verdict(report.checks)}\n"
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav>\n{sections}\n</main>\n'
        f"<footer>{listings}<p>{escape(report.environment)}</p></footer>\n</body>\n</html>\n"
    )


def _section(section: Section, number: int) -> str:
    text = f"<p>{escape(section.text)}</p>" if section.text else ""
    blocks = "\n".join(block.html() for block in section.blocks)
    return f'<section id="part{number}"><h2>{escape(section.title)}</h2>{text}\n{blocks}</section>\n'


def _verdict(checks: Sequence[Check]) -> str:
    if not checks:
        return ""
    num_failed = sum(not check.passed for check in checks)
    headline = f"{num_failed} of {len(checks)} checks failed" if num_failed else f"All {len(checks)} checks passed"
    rows = "".join(_check(check) for check in checks)
    return f'<section class="verdict {_outcome(not num_failed)}"><h2>{headline}</h2><ul>{rows}</ul></section>'


def _check(check: Check) -> str:
    outcome = _outcome(check.passed)
    return (
        f'<li class="{outcome}"><span class="mark" aria-hidden="true">{"✓" if check.passed else "✗"}</span>'
        f'<span class="what">{escape(check.name)}<small>{outcome} · needed {escape(check.threshold)}</small></span>'
        f'<span class="value">{escape(check.value)}</span></li>'
    )


def _outcome(passed: bool) -> str:
    return "passed" if passed else "failed"
