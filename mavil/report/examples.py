"""Single clips to look at and listen to: reconstructions, and retrieval results one can watch."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

_SIGNATURES = (
    (0, b"\x89PNG", "image/png"),
    (0, b"\xff\xd8", "image/jpeg"),
    (0, b"RIFF", "audio/wav"),
    (4, b"ftypM4A", "audio/mp4"),
    (4, b"ftyp", "video/mp4"),
)


@dataclass(frozen=True)
class Media:
    """A picture (PNG, JPEG), sound (WAV, M4A) or moving picture (MP4) as file bytes, and words for those who cannot see it.

    ``poster`` is a picture that stands in for a moving one until it plays; without it that is the first frame.
    """

    data: bytes
    description: str
    poster: bytes | None = None

    def html(self) -> str:
        """An image or a player with the data inside.

        Raises:
            ValueError: the data, or the poster, is in none of these formats.
        """
        source, words = self._uri(self.data), escape(self.description)
        if source.startswith("data:image"):
            return f'<img src="{source}" alt="{words}">'
        if source.startswith("data:audio"):
            # Without its menu the player still fits into a sixth of the page.
            options = 'controls controlslist="nodownload noplaybackrate" preload="metadata"'
            return f'<audio {options} src="{source}" aria-label="{words}"></audio>'
        poster = f' poster="{self._uri(self.poster)}"' if self.poster else ""
        return (
            f'<video controls loop playsinline preload="metadata" src="{source}"{poster} aria-label="{words}"></video>'
        )

    def _uri(self, data: bytes) -> str:
        for offset, signature, kind in _SIGNATURES:
            if data[offset : offset + len(signature)] == signature:
                return f"data:{kind};base64,{base64.b64encode(data).decode()}"
        raise ValueError(f"{self.description!r} is neither PNG, JPEG, WAV, M4A nor MP4: it begins with {data[:8]!r}")


@dataclass(frozen=True)
class Picture:
    """One picture over the whole width under a title, a block of a section."""

    title: str
    media: Media
    note: str = ""

    def html(self) -> str:
        """The block as HTML."""
        return f"<article><h3>{escape(self.title)}</h3><figure>{self.media.html()}</figure>{_note(self.note)}</article>"


@dataclass(frozen=True)
class Panel:
    """One column of a reconstruction: a spectrogram, frames and sounds by label, whichever there are."""

    title: str
    spectrogram: Media | None = None
    frames: Media | None = None
    sounds: Mapping[str, Media] = field(default_factory=dict)


@dataclass(frozen=True)
class ReconstructionExample:
    """The original, what the model saw of it, and what it made of that, side by side; a block of a section.

    ``seconds`` is the time the spectrograms span, for the axis below them.
    """

    title: str
    panels: Sequence[Panel]
    seconds: float
    note: str = ""

    def html(self) -> str:
        """The block as HTML."""
        panels = "".join(
            f'<div class="panel"><h4>{escape(panel.title)}</h4>{self._parts(panel)}</div>' for panel in self.panels
        )
        return (
            f'<article class="reconstruction"><h3>{escape(self.title)}</h3>'
            f'<div class="panels">{panels}</div>{_note(self.note)}</article>'
        )

    def _parts(self, panel: Panel) -> str:
        parts = ""
        if panel.spectrogram:
            parts += (
                f'<figure class="spectrogram">{panel.spectrogram.html()}<figcaption><span>0 s</span>'
                f"<span>20 Hz (bottom) to 8 kHz</span><span>{self.seconds:.1f} s</span></figcaption></figure>"
            )
        if panel.frames:
            parts += f"<figure>{panel.frames.html()}</figure>"
        return parts + "".join(
            f"<figure>{sound.html()}<figcaption>{escape(label)}</figcaption></figure>"
            for label, sound in panel.sounds.items()
        )


@dataclass(frozen=True)
class Hit:
    """One retrieved item. ``rank`` is 1-based; ``is_answer`` marks the query's own clip, ``caption`` says what it is."""

    media: Media
    rank: int
    is_answer: bool
    caption: str = ""


@dataclass(frozen=True)
class RetrievalExample:
    """A query and the items nearest to it, best first; a block of a section.

    ``answer_rank`` is the rank of the query's own clip among ``gallery_size``. Where it is not among ``hits``, append it with
    its true rank: it is shown apart from them.
    """

    title: str
    query: Media
    hits: Sequence[Hit]
    answer_rank: float
    gallery_size: int
    caption: str = ""

    def html(self) -> str:
        """The block as HTML."""
        verdict = f"right clip at rank {self.answer_rank:g} of {self.gallery_size}"
        kind = "found" if any(hit.is_answer and hit.rank == 1 for hit in self.hits) else "missed"
        return (
            f'<article class="retrieval"><h3>{escape(self.title)} <span class="rank {kind}">{escape(verdict)}</span></h3>'
            f'<div class="hits"><div class="hit query"><h4>query</h4>{self.query.html()}{_caption(self.caption)}</div>'
            f"{''.join(self._hit(hit, position) for position, hit in enumerate(self.hits, start=1))}</div></article>"
        )

    def _hit(self, hit: Hit, position: int) -> str:
        kinds = "hit" + (" answer" if hit.is_answer else "") + (" apart" if hit.rank != position else "")
        title = f"{hit.rank}" + (" · right clip" if hit.is_answer else "")
        return f'<div class="{kinds}"><h4>{title}</h4>{hit.media.html()}{_caption(hit.caption)}</div>'


def _caption(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""
