"""What a source says: its clips, what it lists but does not have, and its classes in their official order."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mavil.data.sources.keys import with_own_keys
from mavil.data.sources.media_files import MediaFiles
from mavil.structs import Clip, UserError

REJECT_COLUMNS = ("key", "path", "cause", "detail")


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source.

    Attributes:
        format: one of :data:`mavil.data.sources.read.FORMATS`, or ``auto``.
        media: the folder, or the folders, below which the media files of a list lie; ``None`` is the list's own folder.
        classes: class names in their official order: a CSV ``index,mid,display_name``, or one name per line.
        split: the part to take, where one source holds several.
        weights: one number per row, in the order of an AST / CAV-MAE JSON.
    """

    format: str = "auto"
    media: Path | Sequence[Path] | None = None
    classes: Path | None = None
    split: str | None = None
    weights: Path | None = None


@dataclass(frozen=True)
class Reject:
    """A clip that was left out: ``cause`` to count by, ``detail`` for people."""

    key: str
    path: str
    cause: str
    detail: str


@dataclass(frozen=True)
class Listing:
    """The clips of a source in a fixed order, each with its own key.

    ``rejects`` are entries of an official list without a usable file (``missing``) or listed twice (``duplicate``), ids
    that a spreadsheet has changed (``mangled_id``), spans that end before they begin (``empty_span``), and tars that end too
    early (``damaged_tar``, ``damaged_record``); ``classes`` the class names in the official order, also those without clips,
    empty where the source has no order of its own.
    """

    clips: tuple[Clip, ...]
    rejects: tuple[Reject, ...] = ()
    classes: tuple[str, ...] = ()


@dataclass
class ListingBuilder:
    """Collects the clips of an official list, and every entry that gives none with its line.

    ``source`` is the list, named in every reject and error.
    """

    source: Path
    clips: list[Clip] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)
    _lines: dict[str, int | None] = field(default_factory=dict)

    def is_new(self, name: str, line: int | None = None) -> bool:
        """Whether this was not listed before; if it was, its second entry is rejected."""
        if name not in self._lines:
            self._lines[name] = line
            return True
        first = self._lines[name]
        self.reject(name, "duplicate", "there twice" if first is None else f"the same clip as in line {first}", line)
        return False

    def add(self, clip: Clip, name: str = "") -> None:
        """Take a clip; ``name`` is the list's own name where the key is only a plain form of it."""
        self.clips.append(clip)
        self._names.append(name or clip.key)

    def reject(self, key: str, cause: str, detail: str, line: int | None = None) -> None:
        """Leave an entry out."""
        where = "" if line is None else f"line {line}: "
        self.rejects.append(Reject(key, str(self.source), cause, where + detail))

    def listing(self, media: MediaFiles, classes: Sequence[str] = ()) -> Listing:
        """What was collected.

        Raises:
            UserError: no entry has a file: an example of the list and of the folder show why.
        """
        if self.clips:
            return Listing(tuple(with_own_keys(self.clips, self._names)), tuple(self.rejects), tuple(classes))
        if not self.rejects:
            raise UserError(f"{self.source}: lists no clip; is it complete, and of the named format and split?")
        causes = ", ".join(f"{cause} {count}" for cause, count in Counter(r.cause for r in self.rejects).items())
        first = next((reject for reject in self.rejects if reject.cause == "missing"), self.rejects[0])
        raise UserError(
            f"{self.source}: none of its {len(self.rejects)} clips has a file below {media.where} ({causes}): "
            f"e.g. {first.detail}; the folder has {media.example}; "
            "name the folder that holds the media files of this list"
        )


def write_rejects(path: Path, rejects: Iterable[Reject]) -> None:
    """Write the clips that were left out as CSV, one a row; only the header if there are none."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(REJECT_COLUMNS)
        writer.writerows((reject.key, reject.path, reject.cause, reject.detail) for reject in rejects)
