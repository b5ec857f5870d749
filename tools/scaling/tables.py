"""Tables that can be shown to people and written into a document."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, isinf, log10

from rich.table import Table as RichTable

from mavil.structs import UserError

MARKED = re.compile(r"(<!-- scale: (?P<name>[a-z]+) -->\n).*?(<!-- scale: end -->)", re.DOTALL)
"""Where a table stands in a document: between two comments, which no reader sees."""


@dataclass(frozen=True)
class Table:
    """``name`` is that of its place in a document; the cells are finished text."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_markdown(self) -> str:
        """Lines without the title."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def to_rich(self) -> RichTable:
        """For a terminal."""
        table = RichTable(title=self.title, title_justify="left")
        for number, name in enumerate(self.header):
            table.add_column(name, justify="right" if number else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table


def put_into(text: str, tables: Sequence[Table]) -> str:
    """A document with its marked tables replaced by these of the same names.

    Raises:
        UserError: a place has no table, or a table no place.
    """
    by_name = {table.name: table for table in tables}
    places = [match["name"] for match in MARKED.finditer(text)]
    if sorted(places) != sorted(by_name):
        raise UserError(
            f"the document has places for {', '.join(sorted(places)) or 'no table'}, and the tables are "
            f"{', '.join(sorted(by_name))}: mark each place once, <!-- scale: NAME --> before and <!-- scale: end --> behind"
        )
    return MARKED.sub(lambda match: match[1] + by_name[match["name"]].to_markdown() + "\n" + match[3], text)


def short(value: float, digits: int = 2) -> str:
    """A number with so many digits that mean something: 1,200, 47, 0.0031."""
    if isinf(value):
        return "any"
    if value == 0:
        return "0"
    places = digits - 1 - floor(log10(abs(value)))
    rounded = round(value, places)
    return f"{rounded:,.{max(0, places)}f}"


def span(first: float, last: float) -> str:
    """Two numbers, the smaller first; one where they look the same."""
    low, high = short(min(first, last)), short(max(first, last))
    return low if low == high else f"{low} - {high}"
