"""The model that ``mavil.load`` gives: files, waveforms and films of any length in, embeddings out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice
from typing import Any

import torch

from mavil.config import Recipe
from mavil.embedder.encoding import Halves, WindowEncoder
from mavil.embedder.layers import Layers, LayerTokens, Of, tokens_of_clip
from mavil.embedder.network import digest_of, widths_of
from mavil.embedder.reading import OpenClip, Reader, is_media
from mavil.embedder.results import Output, Row, in_form, means_of, windowed
from mavil.embedder.windows import Span
from mavil.export.hub import HubMixin
from mavil.export.parts import Exported
from mavil.models.masked import MaskedLearner
from mavil.structs import Modality, Sample, UserError

WINDOWS_AT_ONCE = 8
"""Decoded, and given to the model in one call: what bounds the memory of long clips and of lists."""


class Embedder(HubMixin):
    """Embeds clips with one model; made by :func:`mavil.load`.

    A clip is cut into windows of what the model was trained on (``window_seconds``), one after the other from its beginning,
    the last one ending where the clip does; a shorter clip is filled up as in training. The embedding of a clip is the mean
    over its windows. What a clip becomes does not depend on what else is in a list.

    ``save_pretrained``, ``push_to_hub`` and ``from_pretrained`` write and read exported folders.

    Args:
        encoder: embeds windows.
        output: what is given back unless a call says otherwise.
        exported: reads the model again for an export.

    Attributes:
        encoder: the network and its front ends; ``encoder.embed`` takes windows that somebody else decoded.
    """

    def __init__(
        self, encoder: WindowEncoder, output: Output = "torch", exported: Callable[[], Exported] | None = None
    ) -> None:
        self.encoder = encoder
        self._output: Output = output
        self._exported = exported

    def exported(self) -> Exported:
        """Recipe, weights and what is known of them, as ``mavil export`` writes them.

        Raises:
            UserError: a public checkpoint, or a model that was loaded with changes.
        """
        if self._exported is None:
            raise UserError(f"{self.source} cannot be exported: load it with mavil.load")
        return self._exported()

    def __repr__(self) -> str:
        sides = [f"{m} {seconds:g} s to {self.width[m]} values" for m, seconds in self.window_seconds.items()]
        return f"Embedder({self.source!r}: {', '.join(sides)}, on {self.device})"

    @property
    def model(self) -> MaskedLearner:
        """The network: encoders, fusion, projections."""
        return self.encoder.model

    @property
    def recipe(self) -> Recipe:
        """Of the model."""
        return self.encoder.recipe

    @property
    def source(self) -> str:
        """What it was loaded from."""
        return self.encoder.source

    @property
    def device(self) -> torch.device:
        """Where it computes; everything comes back on the CPU."""
        return self.encoder.device

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What it takes: ``audio``, ``video`` or both."""
        return self.encoder.modalities

    @property
    def width(self) -> dict[Modality, int]:
        """Z of :meth:`embed_audio` and :meth:`embed_video`."""
        return widths_of(self.model)

    @property
    def fused_width(self) -> int:
        """Z of :meth:`embed`: the encoders' widths together."""
        return sum(self.model.encoder(m).width for m in self.modalities)

    @property
    def window_seconds(self) -> dict[Modality, float]:
        """How long one input of each modality is, s; windows of both together are as long as the longer one."""
        return dict(Reader.of(self.recipe).lengths)

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256, 64 hexadecimal digits, of all weights by name and of the settings that an embedding depends on.

        Embeddings can be compared if they come from models that agree in it.
        """
        return digest_of(self.model, self.recipe)

    def embed_audio(
        self,
        sound: Any,
        rate: float | None = None,
        hop_seconds: float | None = None,
        windows: bool = False,
        normalise: bool = True,
        output: Output | None = None,
    ) -> Any:
        """The embedding of a sound: what retrieval compares. Digital silence is a sound and has one.

        Args:
            sound: path or bytes of a media file; ``[L]`` or ``[C, L]`` floating-point samples in [-1, 1] at ``rate``, a torch
                tensor or a numpy array; or a list of these.
            rate: Hz of samples that are given; a file knows its own.
            hop_seconds: from one window to the next; default: the length of a window.
            windows: one embedding per window instead of their mean.
            normalise: to length 1; without it what the model gives, or the mean of that over the windows.
            output: ``torch`` or ``numpy``; default: as the model was loaded.

        Returns:
            ``[Z]`` float32, of a list ``[B, Z]``; with ``windows`` a :class:`~mavil.embedder.windows.Windowed`, of a list a list
            of them.

        Raises:
            UserError: the model takes no sound, a file has none or cannot be decoded, or samples that are none.
        """
        return self._embed("audio", sound, rate, None, hop_seconds, windows, normalise, output)

    def embed_video(
        self,
        film: Any,
        frames_per_second: float | None = None,
        hop_seconds: float | None = None,
        windows: bool = False,
        normalise: bool = True,
        output: Output | None = None,
    ) -> Any:
        """The embedding of pictures; as :meth:`embed_audio`.

        Args:
            film: path or bytes of a media file; ``[T, H, Wd, 3]`` uint8 RGB at ``frames_per_second``; or a list of these. What is
                shorter than a window is read again from its beginning, as in training.
            frames_per_second: Hz of frames that are given.
            hop_seconds, windows, normalise, output: as in :meth:`embed_audio`.

        Raises:
            UserError: the model takes no pictures, a file has none or cannot be decoded, or frames that are none.
        """
        return self._embed("video", film, None, frames_per_second, hop_seconds, windows, normalise, output)

    def embed(
        self,
        clip: Any,
        rate: float | None = None,
        frames_per_second: float | None = None,
        hop_seconds: float | None = None,
        windows: bool = False,
        normalise: bool = True,
        output: Output | None = None,
    ) -> Any:
        """The embedding of a clip from its sound and its pictures together.

        Behind the fusion, where the model has one, the mean of each modality's tokens, side by side, then normalised; without
        a fusion the encoders' means [our choice; AV-SUPERB joins both means]. Projections take no part. Sound and pictures of a
        window are of the same moment: the shorter input lies in the middle of the longer. Where a clip has only one of them
        its half is as if it were alone, and the other half is zeros; ``Windowed.present`` says so.

        Args:
            clip: path or bytes of a media file; ``(sound, film)``, each as in :meth:`embed_audio` and :meth:`embed_video` or
                ``None``; or a list of these.
            rate, frames_per_second: of what is given as samples and frames.
            hop_seconds, windows, normalise, output: as in :meth:`embed_audio`.

        Returns:
            As :meth:`embed_audio`, ``Z`` being ``fused_width``.

        Raises:
            UserError: a clip has nothing that the model takes, or as :meth:`embed_audio` and :meth:`embed_video`.
        """
        return self._embed(None, clip, rate, frames_per_second, hop_seconds, windows, normalise, output)

    def tokens(
        self,
        clip: Any,
        modality: Modality,
        layers: Layers = "all",
        of: Of = "encoder",
        rate: float | None = None,
        frames_per_second: float | None = None,
        hop_seconds: float | None = None,
        output: Output | None = None,
    ) -> LayerTokens:
        """The tokens of one clip's windows, layer by layer, and when they are.

        Args:
            clip: one clip as in :meth:`embed`; for the encoder's tokens also as in :meth:`embed_audio`, :meth:`embed_video`.
            modality: whose tokens.
            layers: ``all``; ``last``, the last one through the norm behind it; a number or several: what leaves that block as
                it is, 0 is what enters the encoder's first.
            of: ``encoder``, or ``fusion``: after each of its blocks, having seen the other modality where the clip has it.
            rate, frames_per_second, hop_seconds, output: as in :meth:`embed`.

        Raises:
            UserError: no such modality, layer or fusion, more tokens than fit into memory, or as :meth:`embed`.
        """
        reader = self.reader(modality if of == "encoder" else None)
        self._refuse_absent(modality)
        opened = self._open(reader, clip, None, rate, frames_per_second)
        return tokens_of_clip(self.encoder, opened, modality, layers, of, hop_seconds, output or self._output)

    def reader(self, modality: Modality | None = None) -> Reader:
        """What cuts clips into windows for this model, of one modality or of all; it can be sent to another process.

        Raises:
            UserError: the model does not take that modality.
        """
        if modality is None:
            return Reader.of(self.recipe)
        self._refuse_absent(modality)
        return Reader.of(self.recipe, (modality,))

    def _embed(
        self,
        modality: Modality | None,
        clips: Any,
        rate: float | None,
        frames_per_second: float | None,
        hop_seconds: float | None,
        windows: bool,
        normalise: bool,
        output: Output | None,
    ) -> Any:
        """``modality`` by itself, or ``None``: all together."""
        reader, is_list = self.reader(modality), isinstance(clips, list)
        several = clips if is_list else [clips]
        if not several:
            raise UserError("an empty list: give at least one clip")
        opened = (
            self._open(reader, clip, number if is_list else None, rate, frames_per_second)
            for number, clip in enumerate(several)
        )
        rows: list[list[Row]] = [[] for _ in several]
        for number, span, halves in self._rows(opened, hop_seconds, joint=modality is None):
            rows[number].append(Row(span, halves))
        if modality is None:
            widths = {m: self.model.encoder(m).width for m in self.modalities}
        else:
            widths = {modality: self.width[modality]}
        form = output or self._output
        if windows:
            results = [windowed(own, widths, normalise, form) for own in rows]
            return results if is_list else results[0]
        means = means_of(rows, widths, normalise)
        return in_form(means if is_list else means[0], form)

    def _rows(
        self, opened: Iterator[OpenClip], hop_seconds: float | None, joint: bool
    ) -> Iterator[tuple[int, Span, Halves]]:
        """Every window of every clip, with the clip's number, in order; only a few are in memory."""

        def windows() -> Iterator[tuple[int, Span, Sample]]:
            for number, clip in enumerate(opened):
                spans = clip.spans(hop_seconds)
                for span, sample in zip(spans, clip.samples(spans), strict=True):
                    yield number, span, sample

        pending = windows()
        while some := list(islice(pending, WINDOWS_AT_ONCE)):
            embedded = self.encoder.embed([sample for _, _, sample in some], joint)
            for (number, span, _), halves in zip(some, embedded, strict=True):
                yield number, span, halves

    def _open(
        self, reader: Reader, clip: Any, number: int | None, rate: float | None, frames_per_second: float | None
    ) -> OpenClip:
        has_path = is_media(clip) and not isinstance(clip, bytes)
        name = None if has_path else "the clip" if number is None else f"clip {number} of the list"
        return reader.open(clip, name, rate, frames_per_second)

    def _refuse_absent(self, modality: Modality) -> None:
        if modality not in self.modalities:
            thing = {"audio": "sound", "video": "pictures"}.get(modality, modality)
            raise UserError(f"{self.source} takes {' and '.join(self.modalities)} only, no {thing}: load another model")
