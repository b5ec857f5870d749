"""The model that ``mavil.load`` gives: files, waveforms and films of any length in, embeddings out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Literal, overload

from mavil.embedder.clips import ClipEncoder, Media
from mavil.embedder.encoding import WindowEncoder
from mavil.embedder.layers import Layers, LayerTokens, Of, tokens_of_clip
from mavil.embedder.model import LoadedModel
from mavil.embedder.reading import Clip, Side
from mavil.embedder.results import Output, in_form
from mavil.embedder.windows import Array, Windowed
from mavil.export.hub import HubMixin
from mavil.export.parts import Exported
from mavil.structs import Modality, UserError


class Embedder(LoadedModel, HubMixin, Generic[Array]):
    """Embeds clips with one model; made by :func:`mavil.load`.

    A clip is cut into windows of what the model was trained on (``window_seconds``), one after the other from its beginning,
    the last one ending where the clip does; a shorter clip is filled up as in training. The embedding of a clip is the mean
    over its windows. What a clip becomes does not depend on what else is in a list.

    What comes back is of the kind that :func:`mavil.load` was asked for, torch tensors on the CPU or numpy arrays.

    ``save_pretrained``, ``push_to_hub`` and ``from_pretrained`` write and read exported folders.

    Args:
        encoder: embeds windows.
        output: what is given back, ``torch`` or ``numpy``.
        exported: reads the model again for an export.
    """

    def __init__(
        self, encoder: WindowEncoder, output: Output = "torch", exported: Callable[[], Exported] | None = None
    ) -> None:
        super().__init__(encoder)
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

    @overload
    def embed_audio(
        self,
        sound: Side | list[Any],
        rate: float | None = ...,
        *,
        hop_seconds: float | None = ...,
        windows: Literal[False] = ...,
        normalise: bool = ...,
    ) -> Array: ...

    @overload
    def embed_audio(
        self,
        sound: Side,
        rate: float | None = ...,
        *,
        hop_seconds: float | None = ...,
        windows: Literal[True],
        normalise: bool = ...,
    ) -> Windowed[Array]: ...

    @overload
    def embed_audio(
        self,
        sound: list[Any],
        rate: float | None = ...,
        *,
        hop_seconds: float | None = ...,
        windows: Literal[True],
        normalise: bool = ...,
    ) -> list[Windowed[Array]]: ...

    def embed_audio(
        self,
        sound: Side | list[Any],
        rate: float | None = None,
        *,
        hop_seconds: float | None = None,
        windows: bool = False,
        normalise: bool = True,
    ) -> Any:
        """The embedding of a sound: what retrieval compares. Digital silence is a sound and has one.

        Args:
            sound: path or bytes of a media file; ``[L]`` or ``[C, L]`` floating-point samples in [-1, 1] at ``rate``, a torch
                tensor or a numpy array; or a list of these.
            rate: Hz of samples that are given; a file knows its own.
            hop_seconds: from one window to the next; default: the length of a window.
            windows: one embedding per window instead of their mean.
            normalise: to length 1; without it what the model gives, or the mean of that over the windows.

        Returns:
            ``[Z]`` float32, of a list ``[B, Z]``; with ``windows`` a :class:`~mavil.embedder.windows.Windowed`, of a list a list
            of them.

        Raises:
            UserError: the model takes no sound, a file has none or cannot be decoded, or samples that are none.
        """
        return self._embed("audio", Media.of(sound, rate, None), hop_seconds, windows, normalise)

    @overload
    def embed_video(
        self,
        film: Side | list[Any],
        frames_per_second: float | None = ...,
        *,
        hop_seconds: float | None = ...,
        windows: Literal[False] = ...,
        normalise: bool = ...,
    ) -> Array: ...

    @overload
    def embed_video(
        self,
        film: Side,
        frames_per_second: float | None = ...,
        *,
        hop_seconds: float | None = ...,
        windows: Literal[True],
        normalise: bool = ...,
    ) -> Windowed[Array]: ...

    @overload
    def embed_video(
        self,
        film: list[Any],
        frames_per_second: float | None = ...,
        *,
        hop_seconds: float | None = ...,
        windows: Literal[True],
        normalise: bool = ...,
    ) -> list[Windowed[Array]]: ...

    def embed_video(
        self,
        film: Side | list[Any],
        frames_per_second: float | None = None,
        *,
        hop_seconds: float | None = None,
        windows: bool = False,
        normalise: bool = True,
    ) -> Any:
        """The embedding of pictures; as :meth:`embed_audio`.

        Args:
            film: path or bytes of a media file; ``[T, H, Wd, 3]`` uint8 RGB at ``frames_per_second``; or a list of these. What is
                shorter than a window is read again from its beginning, as in training.
            frames_per_second: Hz of frames that are given.
            hop_seconds, windows, normalise: as in :meth:`embed_audio`.

        Raises:
            UserError: the model takes no pictures, a file has none or cannot be decoded, or frames that are none.
        """
        return self._embed("video", Media.of(film, None, frames_per_second), hop_seconds, windows, normalise)

    @overload
    def embed(
        self,
        clip: Clip | list[Any],
        rate: float | None = ...,
        frames_per_second: float | None = ...,
        *,
        hop_seconds: float | None = ...,
        windows: Literal[False] = ...,
        normalise: bool = ...,
    ) -> Array: ...

    @overload
    def embed(
        self,
        clip: Clip,
        rate: float | None = ...,
        frames_per_second: float | None = ...,
        *,
        hop_seconds: float | None = ...,
        windows: Literal[True],
        normalise: bool = ...,
    ) -> Windowed[Array]: ...

    @overload
    def embed(
        self,
        clip: list[Any],
        rate: float | None = ...,
        frames_per_second: float | None = ...,
        *,
        hop_seconds: float | None = ...,
        windows: Literal[True],
        normalise: bool = ...,
    ) -> list[Windowed[Array]]: ...

    def embed(
        self,
        clip: Clip | list[Any],
        rate: float | None = None,
        frames_per_second: float | None = None,
        *,
        hop_seconds: float | None = None,
        windows: bool = False,
        normalise: bool = True,
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
            hop_seconds, windows, normalise: as in :meth:`embed_audio`.

        Returns:
            As :meth:`embed_audio`, ``Z`` being ``fused_width``.

        Raises:
            UserError: a clip has nothing that the model takes, or as :meth:`embed_audio` and :meth:`embed_video`.
        """
        return self._embed(None, Media.of(clip, rate, frames_per_second), hop_seconds, windows, normalise)

    def tokens(
        self,
        clip: Clip | Side,
        modality: Modality,
        layers: Layers = "all",
        of: Of = "encoder",
        rate: float | None = None,
        frames_per_second: float | None = None,
        *,
        hop_seconds: float | None = None,
    ) -> LayerTokens[Array]:
        """The tokens of one clip's windows, layer by layer, and when they are.

        Args:
            clip: one clip as in :meth:`embed`; for the encoder's tokens also as in :meth:`embed_audio`, :meth:`embed_video`.
            modality: whose tokens.
            layers: ``all``; ``last``, the last one through the norm behind it; a number or several: what leaves that block as
                it is, 0 is what enters the encoder's first.
            of: ``encoder``, or ``fusion``: after each of its blocks, having seen the other modality where the clip has it.
            rate, frames_per_second, hop_seconds: as in :meth:`embed`.

        Raises:
            UserError: no such modality, layer or fusion, more tokens than fit into memory, or as :meth:`embed`.
        """
        reader = self.reader(modality if of == "encoder" else None)
        self.check_takes(modality)
        (opened,) = Media([clip], rate, frames_per_second).opened(reader)
        return in_form(tokens_of_clip(self.encoder, opened, modality, layers, of, hop_seconds), self._output)

    def _embed(
        self, modality: Modality | None, media: Media, hop_seconds: float | None, windows: bool, normalise: bool
    ) -> Any:
        """``modality`` by itself, or ``None``: all together."""
        reader, takes = self.reader(modality), self.modalities if modality is None else (modality,)
        widths = {m: self.model.encoder(m).width if modality is None else self.width[m] for m in takes}
        clips = ClipEncoder(self.encoder, widths, modality is None, hop_seconds, normalise)
        if windows:
            each = [in_form(own, self._output) for own in clips.windows(media, reader)]
            return each if media.are_listed else each[0]
        means = clips.means(media, reader)
        return in_form(means if media.are_listed else means[0], self._output)
